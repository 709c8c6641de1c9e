"""Joint prediction: scores of new rows by the parts of a vertical model, for named receivers only."""
