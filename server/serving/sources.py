"""What `fedseal serve --model SOURCE` can be given: where models lie, what they are called, and converted ones."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from fl_core.errors import UsageError
from fl_core.files import write_atomic
from fl_core.urls import without_passwords
from server.serving.folding import Floats, Found, Linear, Network, fold, ready
from server.serving.source_files import NETWORK_FORMAT, read_source

__all__ = ["Found", "Linear", "Network", "find", "fold", "load_linear", "ready", "save_converted"]

_MODELS = re.compile(r"models:/([^/@]+)(?:@([^/]+)|/(\d+))(?:/(.+))?")


def find(
    source: str,
    *,
    tracking_uri: str = "",
    features: Sequence[str] = (),
    classes: Sequence[str] = (),
    activation: str = "",
) -> Found:
    """Read a model: a file, a folder, or one in MLflow.  Nothing in it is run.

    A file may be a `model.pt` of fedseal (logistic, mlp), what `save_converted` wrote, a scikit-learn pipeline saved by
    pickle, joblib or skops, or a torch `nn.Sequential` or its state dict.  A folder may be a run's `--out` folder, of
    which the only or first `model.pt` is taken, or an MLflow model.

    Parameters
    ----------
    source : a path, `runs:/RUN/PATH`, `models:/NAME/VERSION` or `models:/NAME@ALIAS`.
    tracking_uri : MLflow's.
    features, classes : names, in the model's order, where it has none; without them x0, x1, …, as npz files have them,
        and 0, 1, ….
    activation : `relu`, `tanh`, `sigmoid` or `square`, for a state dict of several layers.

    Raises
    ------
    UsageError : nothing there, another kind of model, or names that do not fit; which, and what is allowed.
    """
    if source.startswith(("runs:/", "models:/")):
        with tempfile.TemporaryDirectory(prefix="fedseal-") as folder:
            found = read_source(_download(source, tracking_uri, Path(folder)), source, activation)
    elif Path(source).exists():
        found = read_source(Path(source), source, activation)
    else:
        allowed = "a file, a folder, runs:/RUN/PATH, models:/NAME/VERSION or models:/NAME@ALIAS"
        raise UsageError(f"{source}: no model there; allowed: {allowed}")
    return _checked(_named(found, source, features, classes), source)


def load_linear(source: Path) -> Linear:
    """Read a linear model from a file or folder.

    Raises
    ------
    UsageError : as `find`; or a network.
    """
    model = ready(find(str(source)))
    if not isinstance(model, Linear):
        raise UsageError(f"{source}: a network; allowed: a model without hidden layers")
    return model


def save_converted(found: Found, path: Path) -> None:
    """Write a model with polynomials between its layers (0600), for `find`; arrays and text only; atomic.

    Raises
    ------
    UsageError : another activation, or the file cannot be written.
    """
    parts: dict[str, Any] = {}
    for i, layer in enumerate(found.layers):
        parts[f"weights_{i}"], parts[f"bias_{i}"] = layer
    for i, activation in enumerate(found.activations):
        if isinstance(activation, str):
            raise UsageError(f"{path}: a network with {activation} cannot be saved; allowed: polynomials of degree 2")
        parts[f"polynomials_{i}"] = activation
    if found.mean is not None and found.std is not None:
        parts["mean"], parts["std"] = found.mean, found.std
    about = {
        "format": NETWORK_FORMAT,
        "features": found.features,
        "classes": found.classes,
        "layers": len(found.layers),
    }
    buffer = BytesIO()
    np.savez(buffer, fedseal=np.array(json.dumps(about)), **parts)
    try:
        write_atomic(path, buffer.getvalue())
    except OSError as error:
        raise UsageError(f"{path}: cannot be written ({error.strerror})") from None


def _download(source: str, tracking_uri: str, folder: Path) -> Path:
    """What lies under an MLflow URI, brought into a folder."""
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient
    from requests.exceptions import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    store = Path(tracking_uri.removeprefix("sqlite:///").partition("?")[0])
    if tracking_uri.startswith("sqlite:///") and not store.exists():  # mlflow would make it
        raise UsageError(f"{source}: no MLflow store at {store}; allowed: MLFLOW_TRACKING_URI or a home that has one")
    try:
        client = MlflowClient(tracking_uri=tracking_uri, registry_uri=tracking_uri)
        uri = (_registered if source.startswith("models:/") else _logged)(client, source)
        return Path(download_artifacts(uri, dst_path=str(folder), tracking_uri=tracking_uri))
    except (MlflowException, RequestException, SQLAlchemyError, OSError, ImportError) as error:
        reason = without_passwords(" ".join(str(error).split()))[:200]
        raise UsageError(f"{source}: MLflow does not give it ({reason or type(error).__name__})") from None


# MLflow's own way from a URI to its artifacts asks the store of a global setting, not the one it was given.


def _registered(client: Any, source: str) -> str:
    """Where the artifacts of a `models:/` URI lie."""
    match = _MODELS.fullmatch(source.rstrip("/"))
    if match is None:
        raise UsageError(f"{source}: no version of a model; allowed: models:/NAME/VERSION or models:/NAME@ALIAS")
    name, alias, version, rest = match.groups()
    if alias:
        version = client.get_model_version_by_alias(name, alias).version
    uri = client.get_model_version_download_uri(name, version)
    if uri.startswith("models:/"):  # a model with an id of its own
        uri = client.get_logged_model(uri.removeprefix("models:/")).artifact_location
    return f"{uri.rstrip('/')}/{rest}" if rest else str(uri)


def _logged(client: Any, source: str) -> str:
    """Where the artifacts of a `runs:/` URI lie: those of a model that the run logged under this name, or its own."""
    run_id, _, path = source.removeprefix("runs:/").strip("/").partition("/")
    name, _, rest = path.partition("/")
    run = client.get_run(run_id)
    ids = [output.model_id for output in run.outputs.model_outputs] if run.outputs is not None else []
    models = [model for model in map(client.get_logged_model, ids) if model.name == name]
    if models:
        base, path = max(models, key=lambda model: model.creation_timestamp).artifact_location, rest
    else:
        base = run.info.artifact_uri
    return f"{base.rstrip('/')}/{path}" if path else str(base)


def _named(found: Found, where: str, features: Sequence[str], classes: Sequence[str]) -> Found:
    """A model with a name for each feature and class: its own, the caller's, or numbered ones."""
    if not found.layers or any(weights.ndim != 2 or bias.ndim != 1 for weights, bias in found.layers):
        raise UsageError(f"{where}: layers without a matrix of weights and a bias; allowed: both in each")
    inputs, outputs = found.layers[0][0].shape[1], found.layers[-1][0].shape[0]
    for what, own, given in (("features", found.features, features), ("classes", found.classes, classes)):
        if own and given and tuple(own) != tuple(given):
            raise UsageError(f"{where}: the model has names of its {what}; allowed: those, or none")
    return replace(
        found,
        features=found.features or tuple(features) or tuple(f"x{i}" for i in range(inputs)),
        classes=found.classes or tuple(classes) or tuple(str(k) for k in range(outputs)),
    )


def _checked(found: Found, where: str) -> Found:
    """A model whose names, layers and scale fit one another, of finite numbers."""
    width, outputs = found.layers[0][0].shape[1], found.layers[-1][0].shape[0]
    for what, names, count in (("features", found.features, width), ("classes", found.classes, outputs)):
        if len(names) != count or len(set(names)) != count:
            raise UsageError(f"{where}: {len(set(names))} names for {count} {what}; allowed: a name for each")
    if outputs < 2:
        raise UsageError(f"{where}: one class; allowed: two and more")
    scale = [part for part in (found.mean, found.std) if part is not None]
    if any(part.shape != (width,) for part in scale):
        raise UsageError(f"{where}: a scale of other length; allowed: a number for each of {width} features")
    for i, (weights, bias) in enumerate(found.layers):
        if weights.shape[1] != width or bias.shape != weights.shape[:1]:
            got = f"{weights.shape} and {bias.shape}"
            raise UsageError(f"{where}: layer {i + 1} of shapes {got}; allowed: ({len(bias)}, {width}), ({len(bias)},)")
        width = len(bias)
    parts: list[Floats] = [*scale, *(part for layer in found.layers for part in layer)]
    parts += [part for part in found.activations if not isinstance(part, str)]
    if not all(np.isfinite(part).all() for part in parts) or (found.std is not None and (found.std < 0).any()):
        raise UsageError(f"{where}: a weight or scale that is no finite number; allowed: finite ones")
    return found
