"""Sessions: parties of a run talk to each other, sealed from end to end, over an exchange that only routes."""
