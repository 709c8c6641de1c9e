"""scikit-learn's pipelines, read from the parts of a saved file (`inert`) without scikit-learn."""

from __future__ import annotations

from typing import Any

import numpy as np

from fl_core.errors import UsageError
from server.serving.folding import Floats, Found, Layer
from server.serving.inert import ALLOWED_MODELS, Part, array_of

_ACTIVATIONS = {"relu": "relu", "tanh": "tanh", "logistic": "sigmoid"}


def read_estimator(content: Any) -> Found:
    """A fitted classifier, alone or at the end of a pipeline of scalers.

    Raises
    ------
    UsageError : another estimator, or one whose probabilities no logits give.
    ValueError, KeyError, TypeError : not what scikit-learn saves.
    """
    steps = _steps(content)
    if not steps:
        raise UsageError(f"holds no model; allowed: {ALLOWED_MODELS}")
    mean, std = _scale(steps[:-1])
    model = steps[-1]
    kind = _kind(model)
    if kind not in ("LogisticRegression", "SGDClassifier", "MLPClassifier"):
        raise UsageError(f"holds a {kind} at its end; allowed: {ALLOWED_MODELS}")
    if "classes_" not in model.state:
        raise UsageError(f"a {kind} that is not fitted; allowed: a fitted one")
    layers, activations = _network(model) if kind == "MLPClassifier" else ((_linear(model, kind),), ())
    named = [step for step in steps if step.state.get("feature_names_in_") is not None]
    names = _texts(named[0].state["feature_names_in_"]) if named else ()
    return Found(names, _texts(model.state["classes_"]), layers, activations, mean, std)


def _kind(part: Part) -> str:
    return part.kind.rpartition(".")[2]


def _steps(content: Any) -> list[Part]:
    """The steps of a pipeline and of those in it, in turn."""
    if not isinstance(content, Part):
        return []
    if _kind(content) != "Pipeline":
        return [content]
    steps: list[Part] = []
    for _, step in content.state["steps"]:
        if step is not None and step != "passthrough":
            if not isinstance(step, Part):
                raise ValueError("a step that is no estimator")
            steps += _steps(step)
    return steps


def _scale(steps: list[Part]) -> tuple[Floats | None, Floats | None]:
    """One mean and deviation for scalers in turn."""
    mean: Floats | None = None
    std: Floats | None = None
    for step in steps:
        centre, unit = _scaler(step)
        if mean is None or std is None:
            mean, std = centre, unit
        else:
            mean, std = mean + std * centre, std * unit
    return mean, std


def _scaler(step: Part) -> tuple[Floats, Floats]:
    """Centre and unit of x -> (x - centre) / unit."""
    kind, state = _kind(step), step.state
    if "n_features_in_" not in state:
        raise UsageError(f"a {kind} that is not fitted; allowed: a fitted one")
    if state.get("clip"):
        raise UsageError(f"a {kind} with clip=True; allowed: scalers that only shift and divide")
    zeros, ones = np.zeros(int(state["n_features_in_"])), np.ones(int(state["n_features_in_"]))
    if kind == "StandardScaler":
        return (
            _floats(state["mean_"]) if state["with_mean"] else zeros,
            _floats(state["scale_"]) if state["with_std"] else ones,
        )
    if kind == "RobustScaler":
        return (
            _floats(state["center_"]) if state["with_centering"] else zeros,
            _floats(state["scale_"]) if state["with_scaling"] else ones,
        )
    if kind == "MaxAbsScaler":
        return zeros, _floats(state["scale_"])
    if kind == "MinMaxScaler":
        scale = _floats(state["scale_"])
        return -_floats(state["min_"]) / scale, 1.0 / scale
    raise UsageError(f"holds a {kind} before the model; allowed: {ALLOWED_MODELS}")


def _linear(model: Part, kind: str) -> Layer:
    state, count = model.state, len(_texts(model.state["classes_"]))
    if kind == "SGDClassifier" and (state.get("loss") not in ("log_loss", "log") or count > 2):
        got = f"loss {str(state.get('loss'))[:40]!r} and {count} classes"
        raise UsageError(f"a SGDClassifier with {got}; allowed: log_loss and two classes")
    ovr = state.get("multi_class") == "ovr" or state.get("solver") == "liblinear"
    if kind == "LogisticRegression" and ovr and count > 2:
        raise UsageError(f"a LogisticRegression one-versus-rest of {count} classes; allowed: multinomial")
    weights, bias = _floats(state["coef_"]), _floats(state["intercept_"])
    bias = np.broadcast_to(bias, weights.shape[:1])
    if len(weights) > 1:
        return weights, bias
    if state.get("multi_class") == "multinomial":  # softmax of a score and its negative
        weights, bias = 2.0 * weights, 2.0 * bias
    return _against_zero(weights, bias)


def _network(model: Part) -> tuple[tuple[Layer, ...], tuple[str, ...]]:
    state = model.state
    name, classes, outputs = state.get("activation"), _texts(state["classes_"]), int(array_of(state["n_outputs_"]))
    if state.get("out_activation_") != ("softmax" if outputs > 1 else "logistic") or (outputs == 1) != (
        len(classes) == 2
    ):
        raise UsageError("a MLPClassifier of several labels a row; allowed: one class a row")
    layers = [
        (_floats(weights).T, _floats(bias)) for weights, bias in zip(state["coefs_"], state["intercepts_"], strict=True)
    ]
    if outputs == 1:
        layers[-1] = _against_zero(*layers[-1])
    if name == "identity":
        weights, bias = layers[0]
        for then, offset in layers[1:]:
            weights, bias = then @ weights, then @ bias + offset
        return ((weights, bias),), ()
    if name not in _ACTIVATIONS:
        raise UsageError(f"a MLPClassifier with {str(name)[:40]!r}; allowed: relu, tanh, logistic, identity")
    return tuple(layers), (_ACTIVATIONS[name],) * (len(layers) - 1)


def _against_zero(weights: Floats, bias: Floats) -> Layer:
    """One score as two logits, the first of them 0."""
    return np.concatenate([np.zeros_like(weights), weights]), np.concatenate([np.zeros(1), bias])


def _floats(value: Any) -> Floats:
    array = array_of(value)
    if array.dtype.kind not in "iuf":
        raise ValueError("weights that are no numbers")
    return np.atleast_1d(array).astype(np.float64)


def _texts(value: Any) -> tuple[str, ...]:
    """Names, whole numbers without a fraction."""
    texts = array_of(value).ravel().tolist()
    return tuple(str(int(text)) if isinstance(text, float) and text.is_integer() else str(text) for text in texts)
