"""`fedseal audit serve`: the ledger, and MLflow beside it, as web pages for auditors; nothing here can write.

`rows` opens the ledger, `look` reads it, `runs` keeps what the runs are, `checking` runs the verifier, `beside` asks
MLflow, `told` and `told_run` gather what a page shows, `templates` say how, `site` answers requests.
"""
