"""A job of one million parameters whose training costs little: few rows of 64 random numbers, ten classes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

PARAMETERS = 1_000_000  # 64·954 + 954 + 954·972 + 972 + 972·10 + 10
ROWS, WIDTH, CLASSES = 1_280, 64, 10


def dataset() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """(1280, 64) float32 and (1280,) labels of a random linear rule; the same at every call."""
    rng = np.random.default_rng(0)
    x = rng.normal(0, 1, (ROWS, WIDTH)).astype(np.float32)
    return x, np.argmax(x @ rng.normal(0, 1, (WIDTH, CLASSES)), axis=1)


def job(*, parties: int, rounds: int, scheme: str) -> dict[str, Any]:
    """The job as a table; a party trains in one step, with four parties on 256 rows."""
    return {
        "kind": "horizontal",
        "name": f"million-{scheme}-{parties}",
        "seed": 1,
        "dataset": {"name": "experiments.million:dataset", "parties": parties},
        "model": {"name": "mlp", "hidden": [954, 972]},
        "train": {"rounds": rounds, "batch_size": 1024, "learning_rate": 0.05},
        "encryption": {"scheme": scheme},
        "evaluate": {"test_fraction": 0.2},
    }
