"""Model files, told apart by what is in them: of fedseal, scikit-learn, torch, and what MLflow lays around these.

Reading runs nothing of a file: see `inert` for scikit-learn's; of torch's only tensors and the layers listed here are
made, and nothing of them is called.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fl_core.errors import JobFileError, UsageError
from server.serving.folding import Floats, Found, Layer, squares
from server.serving.inert import MAX_BYTES, read_pickle, read_skops
from server.serving.source_sklearn import read_estimator

if TYPE_CHECKING:
    from torch import nn

NETWORK_FORMAT = "fedseal-network/1"
FILES = "a model.pt of fedseal, a scikit-learn pickle, joblib or skops file, a torch nn.Sequential or state dict"
LAYERS = "Sequential of Flatten, Linear, ReLU, Tanh, Sigmoid, GELU, Identity, Dropout, and Softmax at its end"
ACTIVATIONS = ("relu", "tanh", "sigmoid", "square")
_OLD_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_MAX_VALUES = 1 << 27

Step = Layer | str
"""A layer, or the name of an activation."""


def read_source(path: Path, where: str, activation: str) -> Found:
    """The model in a file or folder, its names left empty where it has none.

    Parameters
    ----------
    where : how messages begin. activation : of a state dict.
    """
    if path.is_dir() and (path / "MLmodel").is_file():
        return _read_mlflow(path, where, activation)
    file = _find(path, where)
    try:
        if file.stat().st_size > MAX_BYTES:
            raise UsageError(f"holds more than {MAX_BYTES >> 20} MiB; allowed: models up to that size")
        return _read_file(file, activation)
    except JobFileError as error:
        raise UsageError(f"{where}: {str(error).removeprefix('model.init: ')}") from None
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from None
    except Exception as error:  # readers of broken bytes fail in as many ways as bytes can be wrong
        reason = " ".join(str(error).split())[:160]
        problem = f"{file.name} cannot be read ({reason or type(error).__name__})"
        raise UsageError(f"{where}: {problem}; allowed: {FILES}") from error


def _find(source: Path, where: str) -> Path:
    """The file itself, or the only or first `model.pt` in a run's folder."""
    if source.is_file():
        return source
    found = sorted(source.glob("model.pt")) + sorted(source.glob("*/model.pt"))
    if not found:
        raise UsageError(f"{where}: no model.pt there; allowed: {FILES}; a folder with a model.pt or an MLmodel")
    return found[0]


def _read_mlflow(folder: Path, where: str, activation: str) -> Found:
    """A folder that MLflow wrote; its signature names features where the model does not."""
    from mlflow.models import Model

    try:
        about = Model.load(str(folder / "MLmodel"))
        columns = about.get_input_schema()
        names = tuple(columns.input_names()) if columns is not None and not columns.is_tensor_spec() else ()
        flavors = about.flavors
        if "sklearn" in flavors:
            file = folder / str(flavors["sklearn"]["pickled_model"])
        elif "pytorch" in flavors:
            file = folder / str(flavors["pytorch"]["model_data"]) / "model.pth"
        else:
            raise UsageError(f"{where}: an MLflow model of {', '.join(flavors)}; allowed: sklearn, pytorch")
    except UsageError:
        raise
    except Exception as error:  # as many ways as YAML can be wrong
        raise UsageError(f"{where}: its MLmodel cannot be read ({type(error).__name__})") from error
    if not file.resolve().is_relative_to(folder.resolve()) or not file.is_file():
        allowed = "a model saved with serialization_format skops, pickle or cloudpickle (pytorch: pickle)"
        raise UsageError(f"{where}: no {file.name} in the MLflow model; allowed: {allowed}")
    found = read_source(file, where, activation)
    return replace(found, features=tuple(map(str, names))) if names and not found.features else found


def _read_file(file: Path, activation: str) -> Found:
    data = file.read_bytes()
    if data[:4] != b"PK\x03\x04":
        if data.startswith(_OLD_TORCH):
            raise UsageError("saved in torch's format before 1.6; allowed: what torch.save writes since")
        return read_estimator(read_pickle(data))
    with zipfile.ZipFile(BytesIO(data)) as archive:
        names = archive.namelist()
        if sum(info.file_size for info in archive.infolist()) > MAX_BYTES:
            raise UsageError(f"holds more than {MAX_BYTES >> 20} MiB; allowed: models up to that size")
        if "schema.json" in names:
            return read_estimator(read_skops(archive))
        if "fedseal.npy" in names:
            return _read_converted(data)
    if any(name.endswith("/code/") or "/code/" in name for name in names):
        raise UsageError(f"TorchScript, which is code; allowed: {LAYERS}, saved by torch.save")
    if any(name.endswith("/data.pkl") for name in names):
        return _read_torch(file, activation)
    raise UsageError(f"another kind of file; allowed: {FILES}")


def _read_converted(data: bytes) -> Found:
    """What `save_converted` wrote."""
    with np.load(BytesIO(data), allow_pickle=False) as parts:
        about = json.loads(str(parts["fedseal"]))
        if about["format"] != NETWORK_FORMAT:
            raise UsageError(f"of format {str(about['format'])[:40]!r}; allowed: {NETWORK_FORMAT!r}")
        arrays = {name: np.asarray(parts[name], dtype=np.float64) for name in parts.files if name != "fedseal"}
    count = int(about["layers"])
    layers = tuple((arrays[f"weights_{i}"], arrays[f"bias_{i}"]) for i in range(count))
    polynomials = tuple(arrays[f"polynomials_{i}"] for i in range(count - 1))
    if any(part.shape != (len(layer[1]), 3) for part, layer in zip(polynomials, layers, strict=False)):
        raise UsageError("polynomials of other units; allowed: an a, b and c for each")
    names = tuple(map(str, about["features"])), tuple(map(str, about["classes"]))
    return Found(*names, layers, polynomials, arrays.get("mean"), arrays.get("std"))


# ---- torch


def _read_torch(file: Path, activation: str) -> Found:
    import torch

    classes = _modules()
    known = {f"{module.__module__}.{module.__name__}" for module in classes}
    foreign = sorted(set(torch.serialization.get_unsafe_globals_in_checkpoint(str(file))) - known)
    if foreign:
        raise UsageError(f"holds {foreign[0][:100]!r}; allowed: {LAYERS}")
    with torch.serialization.safe_globals(list(classes)):
        content = torch.load(file, map_location="cpu", weights_only=True)
    if isinstance(content, Mapping) and content.get("format") == "fedseal-model/1":
        return _read_fedseal(file, content)
    if isinstance(content, Mapping):
        return _assembled(_state_steps(content, activation))
    steps = list(_module_steps(content))
    own = {step for step in steps if isinstance(step, str)}
    if activation and own - {activation}:
        raise UsageError(f"a model with {', '.join(sorted(own))} of its own; allowed: no activation beside it")
    return _assembled(steps)


def _read_fedseal(file: Path, content: Mapping[str, Any]) -> Found:
    """A `model.pt`; the model's name is looked at first, since one of a plugin would be imported."""
    from fl_core.learning.models import load_model

    about = content.get("model")
    name = about.get("name") if isinstance(about, Mapping) else None
    if name not in ("logistic", "mlp"):
        raise UsageError(f"a model {str(name)[:60]!r}; allowed: logistic, mlp")
    saved = load_model(file)
    width = int(np.prod(saved.meta.input_shape, dtype=np.int64))
    if len(set(saved.meta.feature_names)) != width or len(saved.meta.feature_names) != width:
        count = len(set(saved.meta.feature_names))
        raise UsageError(f"{count} names for {width} features; allowed: a name for each")
    scale = [None if part is None else np.broadcast_to(part, (width,)) for part in (saved.meta.mean, saved.meta.std)]
    found = _assembled(list(_module_steps(saved.model)))
    return Found(
        saved.meta.feature_names, saved.meta.classes, found.layers, found.activations, mean=scale[0], std=scale[1]
    )


def _modules() -> dict[type[nn.Module], str]:
    """Layers of torch that are read, and what they do; "" for nothing."""
    from torch import nn

    return {
        nn.Sequential: "",
        nn.Linear: "linear",
        nn.ReLU: "relu",
        nn.Tanh: "tanh",
        nn.Sigmoid: "sigmoid",
        nn.GELU: "gelu",
        nn.Softmax: "softmax",
        nn.LogSoftmax: "softmax",
        nn.Flatten: "",
        nn.Identity: "",
        nn.Dropout: "",
    }


def _module_steps(module: Any) -> Iterable[Step]:
    """The steps of a module; its `__dict__` is read, its methods are not called."""
    from torch import nn

    kinds = _modules()
    if type(module) not in kinds:
        raise UsageError(f"holds a {type(module).__name__}; allowed: {LAYERS}")
    held = vars(module)
    if type(module) is nn.Sequential:
        for child in held["_modules"].values():
            yield from _module_steps(child)
    elif type(module) is nn.Linear:
        yield _layer(held["_parameters"]["weight"], held["_parameters"].get("bias"))
    elif type(module) is nn.GELU:
        yield "gelu" if held.get("approximate", "none") == "none" else "gelu_tanh"
    elif type(module) is nn.Flatten and (held["start_dim"], held["end_dim"]) != (1, -1):
        raise UsageError("holds a Flatten of other dimensions; allowed: Flatten()")
    elif kinds[type(module)]:
        yield kinds[type(module)]


def _layer(weight: Any, bias: Any) -> Layer:
    import torch

    for part, dimensions in ((weight, 2), (bias, 1)):
        if part is None and dimensions == 1:
            continue
        if not isinstance(part, torch.Tensor) or part.dim() != dimensions or part.numel() > _MAX_VALUES:
            raise UsageError("a layer without a matrix of weights and a bias; allowed: those of nn.Linear")
    matrix: Floats = weight.detach().double().numpy().copy()
    return matrix, np.zeros(len(matrix)) if bias is None else bias.detach().double().numpy().copy()


def _state_steps(state: Mapping[Any, Any], activation: str) -> list[Step]:
    """The layers of a state dict, in its order, with an activation between them."""
    import torch

    layers: dict[str, dict[str, Any]] = {}
    for key, value in state.items():
        prefix, _, last = str(key).rpartition(".")
        if last not in ("weight", "bias") or not isinstance(value, torch.Tensor):
            raise UsageError(f"holds {str(key)[:60]!r}; allowed: the weight and bias of linear layers, or {LAYERS}")
        layers.setdefault(prefix, {})[last] = value
    if not layers:
        raise UsageError("an empty state dict; allowed: one of linear layers")
    if len(layers) > 1 and activation not in ACTIVATIONS:
        given = f"activation {activation[:40]!r}" if activation else "no activation given"
        raise UsageError(f"a state dict of {len(layers)} layers, {given}; allowed: {', '.join(ACTIVATIONS)}")
    steps: list[Step] = []
    for part in layers.values():
        steps += [_layer(part.get("weight"), part.get("bias")), activation]
    return steps[:-1]


def _assembled(steps: list[Step]) -> Found:
    """Layers and activations in turn, of steps in any order that makes such a model."""
    if steps and (steps[-1] == "softmax" or (steps[-1] == "sigmoid" and len(steps) > 1 and _outputs(steps[-2]) == 1)):
        steps = steps[:-1]
    layers: list[Layer] = []
    activations: list[str | Floats] = []
    for step in steps:
        if isinstance(step, str):
            if len(layers) != len(activations) + 1 or step == "softmax":
                raise UsageError(f"{step} where a linear layer belongs; allowed: {LAYERS}")
            activations.append(squares(len(layers[-1][1])) if step == "square" else step)
        elif len(layers) == len(activations) + 1:  # two linear layers are one
            (first, bias), (weights, offset) = layers[-1], step
            layers[-1] = (weights @ first, weights @ bias + offset)
        else:
            layers.append(step)
    if len(layers) != len(activations) + 1:
        raise UsageError(f"no linear layer at its end; allowed: {LAYERS}")
    if len(layers[-1][1]) == 1:  # one logit is the second class's against the first
        weights, bias = layers[-1]
        layers[-1] = (np.concatenate([np.zeros_like(weights), weights]), np.concatenate([np.zeros(1), bias]))
    return Found((), (), tuple(layers), tuple(activations))


def _outputs(step: Step) -> int:
    return 0 if isinstance(step, str) else len(step[1])
