"""A network with ordinary activations made one with x², by the rows its owner has.

Each hidden unit's activation becomes the quadratic nearest to it over the unit's own pre-activations and somewhat
beyond; then all layers learn the original's answers, on mixtures of the rows with a little noise, where the original
says what is right.  Nothing holds a quadratic far outside of the rows: there the converted network answers as it
likes, and what it says of rows unlike these means nothing.  In the end each unit is scaled so that what is squared
stays within 1 over the rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from fl_core.errors import UsageError
from server.serving.folding import Floats, Found, Layer, activate, scaled, square_between, squares

if TYPE_CHECKING:
    from torch import Tensor

MIN_ROWS = 20
_HELD_OUT = 0.2
_STEPS, _BATCH, _RATE = 800, 256, 3e-3
_MIX, _NOISE = 0.3, 0.1  # of another row; of a feature's deviation
_LOGITS = 0.02  # weight of the logits' own distance beside the classes'
_BEYOND, _GRID, _GRID_WEIGHT = 0.1, 41, 0.1  # of the pre-activations' range, on each side
_RIDGE, _LEAST_SPREAD = 1e-4, 1e-2
_UNSCALED = 8.0  # largest feature that is taken as it is: what a client may send of a network's
_SHIFT = 3.0  # most of b/2a, in deviations: a unit must stay a square


@dataclass(frozen=True)
class Conversion:
    """How well a converted network does, on rows that it was not made with.

    Attributes
    ----------
    rows, fitted : rows it is measured on, and made with.
    agreement : share of rows whose likeliest class is the original's.
    accuracy_before, accuracy_after : of the original and the converted one; None without labels. The original may have
        learned from these rows.
    max_difference, mean_difference : of probabilities, over rows and classes.
    largest : the largest number that is squared, a layer; 1 over the rows it was made with.
    """

    rows: int
    fitted: int
    agreement: float
    accuracy_before: float | None
    accuracy_after: float | None
    max_difference: float
    mean_difference: float
    largest: tuple[float, ...]


def convert(found: Found, x: Floats, y: Sequence[str] | None = None, *, seed: int = 0) -> tuple[Found, Conversion]:
    """Fit a network with x² between its layers to one with ordinary activations; seconds, the same for the same rows.

    Parameters
    ----------
    x : (n, d) raw features, finite, in the order of `found.features`; like those it will be asked about. A fifth of
        them is kept to measure with. A model without a scale gets their mean and deviation where a feature is beyond
        8: a client then learns rough location and width of these rows' features.
    y : (n,) names of classes, or None; only to measure with.
    seed : of the rows kept, and of the noise.

    Raises
    ------
    UsageError : too few rows, rows of another width or not finite, an unknown label, or a model without hidden layers.
    """
    x = np.asarray(x, dtype=np.float64)
    labels = _check(found, x, y)
    order = np.random.default_rng(seed).permutation(len(x))
    kept, used = np.split(order, [int(len(x) * _HELD_OUT)])
    given, found = found, _with_scale(found, x[used])
    inputs = scaled(found, x[used])
    with _one_thread():
        layers = _distilled(found, _started(found, inputs), inputs, seed)
    layers = _within_one(layers, inputs)
    activations = tuple(squares(len(bias)) for _, bias in layers[:-1])
    made = replace(found, layers=tuple(layers), activations=activations)
    return made, _measure(given, made, x[kept], None if labels is None else labels[kept], len(used))


def _check(found: Found, x: Floats, y: Sequence[str] | None) -> Floats | None:
    """Positions of the labels in the classes."""
    if not found.activations:
        raise UsageError("a model without hidden layers; allowed: serve it as it is")
    if x.ndim != 2 or x.shape[1] != len(found.features):
        raise UsageError(f"rows of shape {x.shape}; allowed: (rows, {len(found.features)})")
    if len(x) < MIN_ROWS:
        raise UsageError(f"{len(x)} rows to convert with; allowed: {MIN_ROWS} and more, better some thousands")
    if not np.isfinite(x).all():
        raise UsageError("a row that is not finite; allowed: finite numbers")
    if y is None:
        return None
    at = {name: i for i, name in enumerate(found.classes)}
    if len(y) != len(x) or not all(str(label) in at for label in y):
        shown = ", ".join(found.classes[:10])
        raise UsageError(f"labels that are not {len(x)} of the model's classes; allowed: {shown}")
    return np.array([at[str(label)] for label in y])


def _with_scale(found: Found, x: Floats) -> Found:
    """The same network, with the rows' own mean and deviation where it has none and they are far from 0."""
    if found.mean is not None or np.abs(x).max() <= _UNSCALED:
        return found
    mean, std = x.mean(axis=0), x.std(axis=0)
    std = np.where(std > 0, std, 1.0)
    weights, bias = found.layers[0]
    return replace(found, layers=((weights * std, bias + weights @ mean), *found.layers[1:]), mean=mean, std=std)


# ---- the first guess: a quadratic a unit


def _started(found: Found, inputs: Floats) -> list[Layer]:
    """Layers with x² between them: nearest quadratics, then a last layer nearest to the original's logits."""
    layers, h = list(found.layers), inputs
    for i, activation in enumerate(found.activations):
        weights, bias = layers[i]
        polynomials = _nearest(h @ weights.T + bias, activation)
        layers[i], layers[i + 1] = square_between(layers[i], polynomials, layers[i + 1])
        h = (h @ layers[i][0].T + layers[i][1]) ** 2
    weights, bias = layers[-1]
    wanted = replace(found, mean=None, std=None).logits(inputs) - (h @ weights.T + bias)
    columns = np.column_stack([h, np.ones(len(h))])
    gram = columns.T @ columns
    ridge = 10.0 * _RIDGE * np.trace(gram) / len(gram)
    change = np.linalg.solve(gram + ridge * np.eye(len(gram)), columns.T @ wanted).T
    layers[-1] = (weights + change[:, :-1], bias + change[:, -1])
    return layers


def _nearest(z: Floats, activation: str | Floats) -> Floats:
    """(width, 3): for each column of pre-activations, the quadratic nearest to the activation."""
    if not isinstance(activation, str):
        return activation
    low, high, centre = z.min(axis=0), z.max(axis=0), z.mean(axis=0)
    spread: Floats = np.maximum(z.std(axis=0), _LEAST_SPREAD)
    beyond = _BEYOND * (high - low)
    points: Floats = np.concatenate([z, np.linspace(low - beyond, high + beyond, _GRID)])
    weight = np.concatenate([np.full(len(z), (1 - _GRID_WEIGHT) / len(z)), np.full(_GRID, _GRID_WEIGHT / _GRID)])
    wanted = activate(activation, points)
    u: Floats = (points - centre) / spread
    fitted = [_least_squares(u[:, j], wanted[:, j], weight) for j in range(z.shape[1])]
    a, b, c = np.array(fitted).T
    least = np.maximum(np.abs(b) / (2.0 * _SHIFT), 1e-3)
    a = np.where(np.abs(a) < least, np.where(a < 0, -least, least), a)
    a, b, c = a / spread**2, b / spread, c  # of u to those of z
    return np.column_stack([a, b - 2.0 * a * centre, c - b * centre + a * centre**2])


def _least_squares(u: Floats, wanted: Floats, weight: Floats) -> Floats:
    columns = np.column_stack([u * u, u, np.ones_like(u)])
    gram = (columns * weight[:, None]).T @ columns + _RIDGE * np.diag([1.0, 1.0, 0.0])
    return np.asarray(np.linalg.solve(gram, columns.T @ (weight * wanted)), dtype=np.float64)


# ---- learning the original's answers


@contextmanager
def _one_thread() -> Iterator[None]:
    """More threads would wait for one another at layers of this size."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _distilled(found: Found, layers: list[Layer], inputs: Floats, seed: int) -> list[Layer]:
    """The layers after some hundred steps towards the original's probabilities."""
    import torch

    x = _tensor(inputs)
    spread = x.std(dim=0)
    values = [_tensor(part).requires_grad_() for layer in layers for part in layer]
    optimizer = torch.optim.Adam(values, lr=_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=_RATE, total_steps=_STEPS)
    noise = torch.Generator().manual_seed(seed)
    original = _original(found)
    with torch.no_grad():
        wanted = original(x)
        unit = float((wanted - wanted.mean(dim=1, keepdim=True)).square().mean()) or 1.0
    for _ in range(_STEPS):
        one, two = torch.randint(len(x), (2, _BATCH), generator=noise)
        share = _MIX * torch.rand(_BATCH, 1, generator=noise)
        batch = x[one] * (1 - share) + x[two] * share
        batch = batch + _NOISE * spread * torch.randn(batch.shape, generator=noise)
        with torch.no_grad():
            wanted = original(batch)
        loss = _distance(_squared(batch, values), wanted, unit)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(values, 1.0)
        optimizer.step()
        schedule.step()
    parts = [part.detach().double().numpy() for part in values]
    return list(zip(parts[::2], parts[1::2], strict=True))


def _original(found: Found) -> Callable[[Tensor], Tensor]:
    """The network on scaled features, in torch."""
    import torch
    from torch.nn import functional

    named = {
        "relu": torch.relu,
        "tanh": torch.tanh,
        "sigmoid": torch.sigmoid,
        "gelu": functional.gelu,
        "gelu_tanh": lambda z: functional.gelu(z, approximate="tanh"),
    }
    layers = [(_tensor(weights), _tensor(bias)) for weights, bias in found.layers]
    between = [named[part] if isinstance(part, str) else _polynomial(part) for part in found.activations]

    def logits(z: Tensor) -> Tensor:
        for (weights, bias), activation in zip(layers, [*between, None], strict=True):
            z = z @ weights.T + bias
            z = z if activation is None else activation(z)
        return z

    return logits


def _polynomial(coefficients: Floats) -> Callable[[Tensor], Tensor]:
    a, b, c = _tensor(coefficients.T)
    return lambda z: (a * z + b) * z + c


def _tensor(part: Floats) -> Tensor:
    """A copy in float32: training needs no more."""
    import torch

    return torch.from_numpy(part.astype(np.float32))


def _squared(z: Tensor, values: list[Tensor]) -> Tensor:
    for i in range(0, len(values), 2):
        z = z @ values[i].T + values[i + 1]
        z = z if i == len(values) - 2 else z * z
    return z


def _distance(logits: Tensor, wanted: Tensor, unit: float) -> Tensor:
    """Of probabilities (Kullback-Leibler), and a little of logits."""
    from torch.nn import functional

    classes = functional.kl_div(logits.log_softmax(1), wanted.log_softmax(1), reduction="batchmean", log_target=True)
    apart = (logits - logits.mean(dim=1, keepdim=True)) - (wanted - wanted.mean(dim=1, keepdim=True))
    return classes + _LOGITS * apart.square().mean() / unit


# ---- what comes out


def _within_one(layers: list[Layer], inputs: Floats) -> list[Layer]:
    """The same network, each unit scaled so that what is squared stays within 1 over the rows."""
    made, h = list(layers), inputs
    for i in range(len(layers) - 1):
        weights, bias = made[i]
        z = h @ weights.T + bias
        largest = np.maximum(np.abs(z).max(axis=0), 1e-9)
        then, offset = made[i + 1]
        made[i], made[i + 1] = (weights / largest[:, None], bias / largest), (then * largest**2, offset)
        h = (z / largest) ** 2
    return made


def _measure(found: Found, made: Found, x: Floats, labels: Floats | None, fitted: int) -> Conversion:
    before, after = found.logits(x), made.logits(x)
    apart = np.abs(_softmax(before) - _softmax(after))
    h, largest = scaled(made, x), []
    for weights, bias in made.layers[:-1]:
        z = h @ weights.T + bias
        largest.append(float(np.abs(z).max()))
        h = z * z
    first, second = before.argmax(axis=1), after.argmax(axis=1)
    return Conversion(
        rows=len(x),
        fitted=fitted,
        agreement=float(np.mean(first == second)),
        accuracy_before=None if labels is None else float(np.mean(first == labels)),
        accuracy_after=None if labels is None else float(np.mean(second == labels)),
        max_difference=float(apart.max()),
        mean_difference=float(apart.mean()),
        largest=tuple(largest),
    )


def _softmax(logits: Floats) -> Floats:
    e = np.exp(logits - logits.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)
