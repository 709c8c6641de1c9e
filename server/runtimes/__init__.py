"""Where a job runs: one module a runtime."""
