"""Models: built from the job's settings and seed alone, moved about as one float64 vector, kept as
`model.pt`.

A model here has parameters and no floating-point buffers: what is aggregated is exactly what the model is.
Batch normalisation breaks that (its running statistics are computed from the data and would bypass encryption
and DP).
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import warnings
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fl_core.errors import JobFileError
from fl_core.files import write_atomic
from fl_core.job import Model
from fl_core.learning.plugins import is_reference, load_function

Vector = NDArray[np.float64]
Shape = tuple[int, ...]
_FORMAT = "fedseal-model/1"


class _Picture(nn.Module):
    """Brings flat rows (n, c·h·w) into pictures (n, c, h, w)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(n, …) to (n, c, h, w)."""
        return x.reshape(len(x), *self.shape)


def build_model(
    spec: Model, *, input_shape: Shape, image_shape: Shape | None, num_classes: int, seed: int
) -> nn.Module:
    """Build the job's model on the CPU, float32.

    Parameters
    ----------
    input_shape : of one row: (features,) or (c, h, w).
    image_shape : (c, h, w) where rows are pictures, flat or not.
    seed : decides the initial weights, alone; the same at every party. torch's own random state stays
        untouched.

    Returns
    -------
    nn.Module : (n, *input_shape) float32 to (n, num_classes) logits.

    Raises
    ------
    JobFileError : no such model, a model that does not fit the data, or one with floating-point buffers.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if is_reference(spec.name):
            model = _user_model(spec.name, input_shape, num_classes)
        elif spec.name == "logistic":
            model = nn.Sequential(nn.Flatten(), nn.Linear(_size(input_shape), num_classes))
        elif spec.name == "mlp":
            model = nn.Sequential(nn.Flatten(), *_dense(spec, _size(input_shape), num_classes))
        elif spec.name == "cnn":
            model = _cnn(spec, image_shape, num_classes)
        else:
            allowed = 'logistic, mlp, cnn or "package.module:function"'
            raise JobFileError("model.name", f"no model {spec.name!r}", allowed=allowed)
    if any(b.is_floating_point() for b in model.buffers()):
        raise JobFileError(
            "model.name",
            f"{spec.name!r} keeps floating-point buffers (batch norm?), which are not aggregated",
            allowed="models of parameters only; use GroupNorm",
        )
    _check_output(spec.name, model, input_shape, num_classes)
    return model


def _size(shape: Shape) -> int:
    return int(np.prod(shape, dtype=np.int64))


def _dense(spec: Model, size: int, num_classes: int) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for width in spec.hidden:
        layers += [nn.Linear(size, width), _activation(spec)]
        size = width
    return [*layers, nn.Linear(size, num_classes)]


def _activation(spec: Model) -> nn.Module:
    return nn.Tanh() if spec.activation == "tanh" else nn.ReLU()


def _cnn(spec: Model, shape: Shape | None, num_classes: int) -> nn.Module:
    """Two 3x3 convolutions (16, 32) with 2x2 pooling, then the dense layers of `hidden`."""
    if shape is None or min(shape[1:]) < 4:
        problem = "the data are no pictures" if shape is None else f"pictures of {shape[1]}x{shape[2]} are too small"
        raise JobFileError("model.name", f"'cnn': {problem}", allowed="logistic or mlp, or pictures of 4x4 and more")
    blocks: list[nn.Module] = [_Picture(shape)]
    for channels, filters in ((shape[0], 16), (16, 32)):
        blocks += [nn.Conv2d(channels, filters, 3, padding=1), _activation(spec), nn.MaxPool2d(2)]
    return nn.Sequential(*blocks, nn.Flatten(), *_dense(spec, 32 * (shape[1] // 4) * (shape[2] // 4), num_classes))


def _user_model(name: str, input_shape: Shape, num_classes: int) -> nn.Module:
    function = load_function("model.name", name)
    try:
        model = function(input_shape=input_shape, num_classes=num_classes)
    except Exception as error:  # the user's function may raise anything
        reason = f"{type(error).__name__}: {_reason(error)}"
        raise JobFileError("model.name", f"{name!r} raised {reason}") from error
    if not isinstance(model, nn.Module):
        kind = type(model).__name__
        raise JobFileError("model.name", f"{name!r} returned {kind}", allowed="a torch.nn.Module")
    if not any(True for _ in model.parameters()):
        raise JobFileError("model.name", f"{name!r} has no parameters", allowed="a model that can be trained")
    return model


def _check_output(name: str, model: nn.Module, input_shape: Shape, num_classes: int) -> None:
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            shape = tuple(model(torch.zeros(2, *input_shape)).shape)
    except Exception as error:  # whatever a layer says about a shape it cannot take
        raise JobFileError(
            "model.name", f"{name!r} does not take rows of shape {input_shape}: {_reason(error)}"
        ) from error
    finally:
        model.train(was_training)
    if shape != (2, num_classes):
        problem = f"{name!r} turns 2 rows into {shape}"
        raise JobFileError("model.name", problem, allowed=f"(2, {num_classes}): a logit a class")


def num_parameters(model: nn.Module) -> int:
    """P: length of the model's vector."""
    return sum(p.numel() for p in model.parameters())


def get_vector(model: nn.Module) -> Vector:
    """All parameters in `model.parameters()` order as (P,) float64 on the CPU."""
    return np.concatenate([p.detach().cpu().double().numpy().ravel() for p in model.parameters()])


def set_vector(model: nn.Module, vector: Vector) -> None:
    """Write (P,) float64 into the parameters, rounded to their own precision."""
    if vector.shape != (num_parameters(model),):
        raise ValueError(f"vector of shape {vector.shape} for {num_parameters(model)} parameters")
    at = 0
    with torch.no_grad():
        for p in model.parameters():
            part = torch.from_numpy(np.array(vector[at : at + p.numel()], dtype=np.float64))
            p.copy_(part.reshape(p.shape))
            at += p.numel()


@dataclasses.dataclass(frozen=True, eq=False)
class Meta:
    """What one must know to use a model: its input, its classes, and how features were standardised.

    mean, std : (d,) float64, or None where features were left as they are.
    """

    input_shape: Shape
    image_shape: Shape | None
    classes: tuple[str, ...]
    feature_names: tuple[str, ...]
    mean: Vector | None = None
    std: Vector | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class SavedModel:
    """A `model.pt`: the model with its weights, the settings it was built from, and its `Meta`."""

    model: nn.Module
    spec: Model
    meta: Meta

    @property
    def vector(self) -> Vector:
        """The weights, (P,) float64."""
        return get_vector(self.model)


class RowFormat(Protocol):
    """What `check_fits` asks of a party's data."""

    @property
    def input_shape(self) -> Shape:
        """Shape of one row."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes in order."""

    @property
    def feature_names(self) -> tuple[str, ...]:
        """A name for each value of a row."""


def save_model(path: Path, model: nn.Module, spec: Model, meta: Meta) -> None:
    """Write `model.pt` (0600): tensors, texts and numbers only, so that reading it can run no code;
    atomic."""
    standardization = None
    if meta.mean is not None and meta.std is not None:
        standardization = {
            "mean": torch.from_numpy(meta.mean.copy()),
            "std": torch.from_numpy(meta.std.copy()),
        }
    content = {
        "format": _FORMAT,
        "model": {"name": spec.name, "hidden": list(spec.hidden), "activation": spec.activation},
        "weights": {name: p.detach().cpu().clone() for name, p in model.named_parameters()},
        "digest": _digest(model),
        "input_shape": list(meta.input_shape),
        "image_shape": None if meta.image_shape is None else list(meta.image_shape),
        "classes": list(meta.classes),
        "feature_names": list(meta.feature_names),
        "standardization": standardization,
    }
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_atomic(path, buffer.getvalue())


def load_model(path: Path) -> SavedModel:
    """Read a `model.pt` that `save_model` wrote.

    Raises
    ------
    JobFileError : `model.init` names no such file, or its weights do not fit its own settings.
    """
    content = _read(path)
    try:
        saved = content["model"]
        spec = Model(saved["name"], tuple(saved["hidden"]), saved["activation"], classes=tuple(content["classes"]))
        image, scaling = content["image_shape"], content["standardization"]
        meta = Meta(
            tuple(content["input_shape"]),
            None if image is None else tuple(image),
            tuple(content["classes"]),
            tuple(content["feature_names"]),
            None if scaling is None else scaling["mean"].double().numpy(),
            None if scaling is None else scaling["std"].double().numpy(),
        )
        model = build_model(
            spec,
            input_shape=meta.input_shape,
            image_shape=meta.image_shape,
            num_classes=len(meta.classes),
            seed=0,
        )
        parameters, weights = dict(model.named_parameters()), content["weights"]
        if {k: v.shape for k, v in weights.items()} != {k: p.shape for k, p in parameters.items()}:
            raise JobFileError("model.init", f"{path.name}: its weights are not those of {spec.name!r}")
        with torch.no_grad():
            for name, p in parameters.items():
                p.copy_(weights[name])
        if content["digest"] != _digest(model):  # torch does not look at the archive's checksums
            raise JobFileError("model.init", f"{path.name}: its weights were damaged")
    except (KeyError, TypeError, AttributeError, RuntimeError, ValueError) as error:
        problem = f"{path.name}: {_reason(error)}"
        raise JobFileError("model.init", problem, allowed="an unchanged model.pt of fedseal") from error
    return SavedModel(model, spec, meta)


def _digest(model: nn.Module) -> str:
    return hashlib.sha256(get_vector(model).astype("<f8").tobytes()).hexdigest()


def _read(path: Path) -> dict[str, Any]:
    allowed = "a model.pt that fedseal wrote"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # advice to whoever wrote the file
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # its restricted unpickler fails in as many ways as bytes can be wrong
        problem = f"{path.name} cannot be read ({_reason(error)})"
        raise JobFileError("model.init", problem, allowed=allowed) from error
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise JobFileError("model.init", f"{path.name} is another kind of file", allowed=allowed)
    return content


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__


def check_fits(saved: SavedModel, spec: Model, data: RowFormat) -> None:
    """Check that a model to start from is the job's own kind and fits a party's data.

    Raises
    ------
    JobFileError : `model.init` differs in model, input shape, features or classes; the message says in what.
    """
    pairs = {
        "model": (_kind(saved.spec), _kind(spec)),
        "input shape": (saved.meta.input_shape, data.input_shape),
        "features": (saved.meta.feature_names, data.feature_names),
        "classes": (saved.meta.classes, data.classes),
    }
    for what, (theirs, ours) in pairs.items():
        if theirs != ours:
            raise JobFileError("model.init", f"its {what}: {_show(theirs)}", allowed=f"the job's: {_show(ours)}")


def _kind(spec: Model) -> tuple[Any, ...]:
    if spec.name in ("mlp", "cnn"):
        return (spec.name, spec.hidden, spec.activation)
    return (spec.name,)


def _show(value: tuple[Any, ...]) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
