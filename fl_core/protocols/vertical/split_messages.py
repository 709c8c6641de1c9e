"""What the parties of a split network send each other, and the passes outside of training.

Messages are little-endian float32 of a size that both sides know; anything else is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fl_core.channel import Channel
from fl_core.crypto.noise import NoiseStream
from fl_core.errors import BadFrame, TrainingDiverged
from fl_core.learning.gradient_protection import clip_rows, release
from fl_core.learning.split_models import SplitPart, SplitSettings
from fl_core.protocols.stream import recv_bytes, send_bytes
from fl_core.protocols.vertical.course import Rows

if TYPE_CHECKING:
    import torch

Features = NDArray[np.float32]
BLOCK = 4096  # rows whose embeddings are computed at a time outside of training
ROWS = "split rows"


def predict(
    channel: Channel, passives: Sequence[str], part: SplitPart, x: Features | None, rows: Rows
) -> NDArray[np.float32]:
    """(rows, outputs) of the top model, while all passive parties are in `send_rows`."""
    import torch

    assert part.top is not None
    device = next(part.top.parameters()).device
    outputs = np.empty((len(rows), part.outputs), np.float32)
    for start in range(0, len(rows), BLOCK):
        block = rows[start : start + BLOCK]
        with torch.no_grad():
            own = [] if x is None else [embed(part, x, block)]
            received = [recv_embedding(channel, peer, len(block), part.settings, step=ROWS) for peer in passives]
            joined = torch.cat([*own, *(torch.from_numpy(one).to(device) for one in received)], dim=1)
            outputs[start : start + BLOCK] = part.top(joined).cpu().numpy()
    if not np.isfinite(outputs).all():
        raise diverged(part.settings)
    return outputs


def send_rows(channel: Channel, active: str, part: SplitPart, x: Features, rows: Rows, noise: NoiseStream) -> None:
    """Embeddings of `rows` for `predict`, each released once."""
    import torch

    for start in range(0, len(rows), BLOCK):
        with torch.no_grad():
            embedding = embed(part, x, rows[start : start + BLOCK])
        send_embedding(channel, active, embedding, part.settings, noise, step=ROWS)


def embed(part: SplitPart, x: Features, rows: Rows) -> torch.Tensor:
    """(rows, embedding), clipped at a passive party of a job with noise."""
    import torch

    assert part.bottom is not None
    device = next(part.bottom.parameters()).device
    embedding: torch.Tensor = part.bottom(torch.from_numpy(x[rows]).to(device))
    if part.settings.noise_multiplier is not None and part.top is None:
        embedding = clip_rows(embedding, part.settings.clipping_norm)
    if not bool(torch.isfinite(embedding).all()):
        raise diverged(part.settings)
    return embedding


def send_embedding(
    channel: Channel, to: str, embedding: torch.Tensor, settings: SplitSettings, noise: NoiseStream, *, step: str
) -> None:
    """Send (m, embedding) as `embed` gave it, with noise where the settings say so."""
    values = embedding.detach().cpu().numpy()
    sigma = settings.noise_multiplier
    if sigma is not None:
        values = release(values, clipping_norm=settings.clipping_norm, noise_multiplier=sigma, noise=noise)
    send_floats(channel, to, values, step=step)


def recv_embedding(
    channel: Channel, source: str, count: int, settings: SplitSettings, *, step: str
) -> NDArray[np.float32]:
    """(count, embedding) in [-1, 1], or finite where there is noise; else `BadFrame`."""
    values = recv_floats(channel, source, count, settings.embedding, step=step)
    if settings.noise_multiplier is None and (np.abs(values) > 1.0).any():
        raise BadFrame(source, step, "an embedding outside [-1, 1]")
    return values


def send_floats(channel: Channel, to: str, values: NDArray[np.float32], *, step: str) -> None:
    """Send an array."""
    send_bytes(channel, to, np.ascontiguousarray(values, dtype="<f4").view(np.uint8), step=step)


def recv_floats(channel: Channel, source: str, count: int, width: int, *, step: str) -> NDArray[np.float32]:
    """(count, width), finite; else `BadFrame`."""
    values = recv_bytes(channel, source, count, 4 * width, step=step).view("<f4")
    if not np.isfinite(values).all():
        raise BadFrame(source, step, "a value that is not finite")
    return values.astype(np.float32, copy=False)


def diverged(settings: SplitSettings) -> TrainingDiverged:
    """What to raise where values are no longer finite."""
    return TrainingDiverged(
        f"values are no longer finite with learning_rate {settings.learning_rate:g}; try a smaller one"
    )
