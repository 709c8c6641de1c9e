"""The server's optimisers, as functions: state in, state out.

Under encryption the coordinator cannot run them: every party applies them alike to the mean update it
decrypted, and all arrive at the same model. Float64 throughout, in one order, so that "alike" means the same
bits.

fedavg, fedprox: McMahan et al. 2017 (arXiv 1602.05629), Li et al. 2020 (1812.06127), w + lr·Δ.
fedavgm: Hsu et al. 2019 (1909.06335). fedadam: Reddi et al. 2021 (2003.00295), Algorithm 2, no bias
correction.
"""

from __future__ import annotations

import dataclasses
import io
import zipfile

import numpy as np
from numpy.typing import NDArray

from fl_core.errors import BadMessage
from fl_core.job import Train

Vector = NDArray[np.float64]
DEFAULT_LEARNING_RATE = {"fedavg": 1.0, "fedprox": 1.0, "fedavgm": 1.0, "fedadam": 0.01}
BETA_2 = 0.99
TAU = 1e-3
_MOMENTS = {"fedavg": 0, "fedprox": 0, "fedavgm": 1, "fedadam": 2}


@dataclasses.dataclass(frozen=True, eq=False)
class OptState:
    """What an optimiser remembers: `moments`, (0 | 1 | 2, P) float64 (none; momentum; first and second
    moment)."""

    moments: Vector


def init(strategy: str, size: int) -> OptState:
    """The state before the first round, for `size` parameters (fedadam: v = τ², as Algorithm 2 asks)."""
    moments = np.zeros((_MOMENTS[strategy], size))
    if strategy == "fedadam":
        moments[1] = TAU**2
    return OptState(moments)


def apply(train: Train, state: OptState, weights: Vector, mean_update: Vector) -> tuple[Vector, OptState]:
    """Apply one round's mean update.

    Parameters
    ----------
    train : `strategy`, `server_learning_rate` (None: the strategy's default), `server_momentum` (β₁ of
        fedadam).
    weights, mean_update : (P,) float64.

    Returns
    -------
    The new weights (P,) and the new state; the arguments stay as they were.
    """
    if len(state.moments) != _MOMENTS[train.strategy] or weights.shape != mean_update.shape:
        shapes = f"moments {state.moments.shape}, weights {weights.shape}, update {mean_update.shape}"
        raise ValueError(f"{train.strategy}: {shapes}")
    rate = train.server_learning_rate or DEFAULT_LEARNING_RATE[train.strategy]
    beta = train.server_momentum
    if train.strategy == "fedavgm":
        moments = beta * state.moments + mean_update
        step = moments[0]
    elif train.strategy == "fedadam":
        first = beta * state.moments[0] + (1 - beta) * mean_update
        second = BETA_2 * state.moments[1] + (1 - BETA_2) * mean_update**2
        moments = np.stack([first, second])
        step = first / (np.sqrt(second) + TAU)
    else:
        moments, step = state.moments, mean_update
    return weights + rate * step, OptState(moments)


def dump(state: OptState) -> bytes:
    """The state as npz bytes, the same bytes for the same state."""
    buffer = io.BytesIO()
    np.savez(buffer, moments=state.moments)
    return buffer.getvalue()


def load(data: bytes) -> OptState:
    """Read what `dump` wrote; raises BadMessage."""
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            moments = np.asarray(arrays["moments"], dtype=np.float64)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise BadMessage(f"optimiser state is unreadable ({error})") from None
    if moments.ndim != 2 or len(moments) > 2:
        raise BadMessage(f"optimiser state with moments of shape {moments.shape}")
    return OptState(moments)
