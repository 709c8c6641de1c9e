"""Process environment of the libraries we stand on: quiet, offline, one torch thread a party."""

from __future__ import annotations

import os

SETTINGS = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "GIT_PYTHON_REFRESH": "quiet",
    "OMP_NUM_THREADS": "1",  # weights differ with the number of threads
    "MALLOC_ARENA_MAX": "1",  # of the processes that we start: less freed memory is held
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_enable_metrics_collection": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


def prepare() -> None:
    """Set what is not set; call before flwr, torch or mlflow is imported."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
