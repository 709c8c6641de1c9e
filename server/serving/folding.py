"""A model of features in their own scale, made one of features in a client's scale.

Features travel as (x - centre) / 2^k.  The client must know both, and they are coarse on purpose: k is the rounded
log2 of the deviation that training scaled with, the centre its mean to the nearest 2^k, so that a client learns rough
location and width of a feature and no statistic of the training data.  Mean and deviation themselves are folded into
the weights, where a model has them; without, centre and k are 0.  Of K classes, K - 1 scores are served, each against
the first class: the others change nothing.

Between the layers of a served network is x² and nothing else.  Any polynomial of degree 2 becomes one by a shift:
a z² + b z + c = a (z + b/2a)² + c - b²/4a.  Where a is too small for that, two squares do:
a z² + b z + c = α (z + 1)² + β (z - 1)² + c - a, with α = (a + b/2) / 2 and β = (a - b/2) / 2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fl_core.errors import UsageError

Floats = NDArray[np.float64]
Layer = tuple[Floats, Floats]

SMOOTH = ("relu", "tanh", "sigmoid", "gelu", "gelu_tanh")
"""Activations that `convert` makes polynomials of."""
_MAX_SHIFT = 16.0  # of b/2a, beyond which what is squared is mostly the shift


@dataclass(frozen=True, eq=False)
class Linear:
    """A linear model on raw features, in alphabetical order of their names.

    weights, bias : (K - 1, d) and (K - 1,) float64. centre, unit_bits : (d,) as in `Offer`.
    """

    features: tuple[str, ...]
    classes: tuple[str, ...]
    weights: Floats
    bias: Floats
    centre: Floats
    unit_bits: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Network:
    """A network with x² between its layers, on raw features in alphabetical order of their names.

    layers : ((out, in), (out,)) float64 each; the first takes features in the client's scale, the last gives K - 1
    scores. centre, unit_bits : as of `Linear`.
    """

    features: tuple[str, ...]
    classes: tuple[str, ...]
    layers: tuple[Layer, ...]
    centre: Floats
    unit_bits: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Found:
    """What a source holds.

    Attributes
    ----------
    features : d names, in the model's order. classes : K names.
    layers : ((out, in), (out,)) float64 each, on features (x - mean) / std; the last gives K logits.
    activations : after each layer but the last: one of `SMOOTH`, or (width, 3) float64, a unit's a, b and c of
        a z² + b z + c.
    mean, std : (d,) float64, or None where features are taken as they are.
    """

    features: tuple[str, ...]
    classes: tuple[str, ...]
    layers: tuple[Layer, ...]
    activations: tuple[str | Floats, ...] = ()
    mean: Floats | None = None
    std: Floats | None = None

    def logits(self, x: Floats) -> Floats:
        """(n, d) raw features, in the order of `features`, to (n, K)."""
        z = scaled(self, x)
        for (weights, bias), activation in zip(self.layers, (*self.activations, None), strict=True):
            z = z @ weights.T + bias
            z = z if activation is None else activate(activation, z)
        return z


def scaled(found: Found, x: Floats) -> Floats:
    """Raw features (n, d) as the first layer takes them."""
    if found.mean is None or found.std is None:
        return np.asarray(x, dtype=np.float64)
    scaled: Floats = (x - found.mean) / np.where(found.std > 0, found.std, 1.0)
    return scaled


def activate(activation: str | Floats, z: Floats) -> Floats:
    """An activation of `Found` on pre-activations (n, width)."""
    if not isinstance(activation, str):
        a, b, c = activation.T
        return (a * z + b) * z + c
    if activation == "relu":
        return np.maximum(z, 0.0)
    if activation == "tanh":
        return np.tanh(z)
    if activation == "sigmoid":
        return (1.0 + np.tanh(z / 2.0)) / 2.0
    if activation == "gelu":
        return z * (1.0 + np.vectorize(math.erf, otypes=[np.float64])(z / math.sqrt(2.0))) / 2.0
    if activation == "gelu_tanh":
        return z * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (z + 0.044715 * z**3))) / 2.0
    raise UsageError(f"activation {activation[:40]!r}; allowed: {', '.join(SMOOTH)}")


def squares(width: int) -> Floats:
    """The activation z², (width, 3)."""
    return np.tile([1.0, 0.0, 0.0], (width, 1))


def ready(found: Found) -> Linear | Network:
    """The model on features in the client's scale.

    Raises
    ------
    UsageError : an activation that is no polynomial of degree 2.
    """
    named = sorted({activation for activation in found.activations if isinstance(activation, str)})
    if named:
        allowed = "x² between layers, which `fedseal serve --convert` fits"
        raise UsageError(f"a network with {', '.join(named)} cannot be computed under encryption; allowed: {allowed}")
    if not found.activations:
        return fold(found.features, found.classes, *found.layers[0], found.mean, found.std)
    return _fold_network(found)


@dataclass(frozen=True, eq=False)
class _Scale:
    """From the client's scale to the model's: z = gain · x' + shift, (d,) each."""

    gain: Floats
    shift: Floats
    centre: Floats
    bits: tuple[int, ...]


def _scale(width: int, mean: Floats | None, std: Floats | None) -> _Scale:
    mean = np.zeros(width) if mean is None else np.broadcast_to(mean, (width,))
    std = np.ones(width) if std is None else np.broadcast_to(std, (width,))
    bits = tuple(round(math.log2(s)) if s > 0 else 0 for s in std.tolist())
    unit = np.exp2(bits)
    centre = np.rint(mean / unit) * unit
    safe = np.where(std > 0, std, 1.0)
    return _Scale(unit / safe, (centre - mean) / safe, centre, bits)


def fold(
    names: tuple[str, ...],
    classes: tuple[str, ...],
    matrix: Floats,
    bias: Floats,
    mean: Floats | None,
    std: Floats | None,
) -> Linear:
    """Weights against the first class, for features in the client's scale.

    Parameters
    ----------
    matrix, bias : (K, d) and (K,), a logit a class, for standardised features.
    mean, std : (d,), or None where features were left as they are.
    """
    scale, order = _scale(matrix.shape[1], mean, std), np.argsort(np.array(names))
    against, offset = matrix[1:] - matrix[0], bias[1:] - bias[0]
    return Linear(
        tuple(names[i] for i in order),
        tuple(classes),
        (against * scale.gain)[:, order],
        offset + against @ scale.shift,
        scale.centre[order],
        tuple(scale.bits[i] for i in order),
    )


def _fold_network(found: Found) -> Network:
    scale, order = _scale(len(found.features), found.mean, found.std), np.argsort(np.array(found.features))
    layers = list(found.layers)
    first, bias = layers[0]
    layers[0] = ((first * scale.gain)[:, order], bias + first @ scale.shift)
    last, bias = layers[-1]
    layers[-1] = (last[1:] - last[0], bias[1:] - bias[0])
    for i, coefficients in enumerate(found.activations):
        assert not isinstance(coefficients, str)
        layers[i], layers[i + 1] = square_between(layers[i], coefficients, layers[i + 1])
    return Network(
        tuple(found.features[i] for i in order),
        found.classes,
        tuple(layers),
        scale.centre[order],
        tuple(scale.bits[i] for i in order),
    )


def square_between(before: Layer, coefficients: Floats, after: Layer) -> tuple[Layer, Layer]:
    """Two layers with x² between them, for two with a polynomial a unit.

    Parameters
    ----------
    coefficients : (width, 3), a, b and c of a z² + b z + c. A unit whose a is too small becomes two.
    """
    (weights, bias), (then, offset) = before, after
    a, b, c = coefficients.T
    one = (np.abs(b) <= 2.0 * _MAX_SHIFT * np.abs(a)) & (a != 0.0)
    two = ~one & (b != 0.0)  # what is neither is a constant
    shift = b[one] / (2.0 * a[one])
    plus, minus = (a[two] + b[two] / 2.0) / 2.0, (a[two] - b[two] / 2.0) / 2.0
    constant = c.copy()
    constant[one] -= b[one] * shift / 2.0
    constant[two] -= a[two]
    inner = (
        np.concatenate([weights[one], weights[two], weights[two]]),
        np.concatenate([bias[one] + shift, bias[two] + 1.0, bias[two] - 1.0]),
    )
    outer = np.concatenate([then[:, one] * a[one], then[:, two] * plus, then[:, two] * minus], axis=1)
    return inner, (outer, offset + then @ constant)
