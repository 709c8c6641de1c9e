"""Models from files and from MLflow: the library's own probabilities, no code of a file run, one line for what is wrong."""

from __future__ import annotations

import os
import pickle
import re
import struct
import zipfile
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import joblib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_breast_cancer, load_wine
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression, SGDClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MaxAbsScaler, MinMaxScaler, RobustScaler, StandardScaler
from sklearn.svm import LinearSVC
from torch import nn

from fl_core.errors import UsageError
from fl_core.job import Model
from fl_core.learning.models import Meta, build_model, save_model
from server.serving.folding import activate, square_between
from server.serving.sources import Found, Linear, Network, find, load_linear, ready, save_converted

D = 5
NAMES = ("mass", "age", "x10", "x9", "Dose")


def cancer(words=True):
    x, y = load_breast_cancer(return_X_y=True, as_frame=True)
    x = x.iloc[:, :D].set_axis(NAMES, axis=1)
    return x, np.where(y == 1, "benign", "malignant").astype(object) if words else y.to_numpy()


def wine():
    x, y = load_wine(return_X_y=True)
    return x[:, :D], y


def softmax(logits):
    e = np.exp(logits - logits.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def served(model: Linear | Network, x: np.ndarray, names) -> np.ndarray:
    """Probabilities (n, K) as a client gets them, of raw features in the order of `names`."""
    assert list(model.features) == sorted(names)
    z = (x[:, [list(names).index(name) for name in model.features]] - model.centre) / np.exp2(model.unit_bits)
    if isinstance(model, Linear):
        scores = z @ model.weights.T + model.bias
    else:
        for i, (weights, bias) in enumerate(model.layers):
            z = z @ weights.T + bias
            z = z * z if i < len(model.layers) - 1 else z
        scores = z
    return softmax(np.column_stack([np.zeros(len(x)), scores]))


def write(path: Path, model, form: str) -> str:
    if form.startswith("pickle"):
        path.write_bytes(pickle.dumps(model, protocol=int(form[-1])))
    elif form == "joblib":
        joblib.dump(model, path)
    elif form.startswith("joblib-"):
        joblib.dump(model, path, compress=(form.removeprefix("joblib-"), 3))
    else:
        import skops.io

        skops.io.dump(model, path)
    return str(path)


LINEAR = {
    "standard": lambda: make_pipeline(StandardScaler(), LogisticRegression()),
    "bare": lambda: LogisticRegression(max_iter=20),
    "minmax": lambda: make_pipeline(MinMaxScaler((-1, 2)), LogisticRegression(fit_intercept=False)),
    "robust": lambda: make_pipeline(RobustScaler(with_centering=False), LogisticRegression()),
    "two scalers": lambda: make_pipeline(RobustScaler(), "passthrough", MaxAbsScaler(), LogisticRegression()),
    "half": lambda: make_pipeline(make_pipeline(StandardScaler(with_mean=False)), LogisticRegression()),
    "sgd": lambda: make_pipeline(StandardScaler(), SGDClassifier(loss="log_loss", random_state=0)),
    "identity": lambda: make_pipeline(StandardScaler(), MLPClassifier((4, 3), "identity", max_iter=9)),
}
FORMS = ["pickle0", "pickle2", "pickle4", "pickle5", "joblib", "joblib-zlib", "joblib-gzip", "joblib-bz2", "joblib-xz"]
FORMS += ["joblib-lzma", "skops"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", LINEAR)
@pytest.mark.parametrize("classes", [2, 3])
def test_a_linear_pipeline_has_scikit_learns_probabilities(tmp_path, kind, classes):
    if classes == 3 and kind == "sgd":
        pytest.skip("refused, below")
    x, y = cancer() if classes == 2 else wine()
    fitted = LINEAR[kind]().fit(x, y)
    found = find(write(tmp_path / "m", fitted, "pickle5"))
    names = NAMES if classes == 2 else tuple(f"x{i}" for i in range(D))
    model = ready(found)
    assert isinstance(model, Linear) and set(model.features) == set(names)
    assert model.classes == (("benign", "malignant") if classes == 2 else ("0", "1", "2"))
    assert served(model, np.asarray(x), names) == pytest.approx(fitted.predict_proba(x), abs=1e-9)
    if kind == "bare":
        assert (model.centre == 0).all() and set(model.unit_bits) == {0}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("words", [False, True])
def test_each_way_to_save_gives_the_same_network(tmp_path, form, words):
    x, y = cancer(words)
    if not words:
        x = x.to_numpy()
    net = MLPClassifier((6, 4), activation="logistic", max_iter=9, early_stopping=True, random_state=1)
    fitted = make_pipeline(StandardScaler(), net).fit(x, y)
    found = find(write(tmp_path / "m", fitted, form))
    assert found.activations == ("sigmoid", "sigmoid")
    assert found.features == (NAMES if words else tuple(f"x{i}" for i in range(D)))
    assert softmax(found.logits(np.asarray(x))) == pytest.approx(fitted.predict_proba(x), abs=1e-9)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("activation", ["relu", "tanh", "logistic"])
@pytest.mark.parametrize("solver", ["adam", "sgd", "lbfgs"])
def test_each_activation_and_solver_of_an_mlp_is_read(tmp_path, activation, solver):
    x, y = wine()
    fitted = MLPClassifier((7,), activation, solver=solver, max_iter=5, random_state=1).fit(x / 10, y)
    for form in ("joblib", "skops"):
        found = find(write(tmp_path / form, fitted, form))
        assert softmax(found.logits(x / 10)) == pytest.approx(fitted.predict_proba(x / 10), abs=1e-9)


@pytest.mark.parametrize("multi_class", ["multinomial", "ovr", "auto"])
def test_an_older_multinomial_model_of_two_classes_counts_its_score_twice(tmp_path, multi_class):
    x, y = cancer()
    fitted = LogisticRegression(max_iter=20).fit(x / 100, y)
    fitted.multi_class = multi_class
    score = fitted.decision_function(x / 100) * (2 if multi_class == "multinomial" else 1)
    logits = find(write(tmp_path / "m", fitted, "pickle5")).logits(x.to_numpy() / 100)
    assert logits[:, 1] - logits[:, 0] == pytest.approx(score, abs=1e-9)


# ---- nothing of a file runs


class Shell:
    """What a pickle can do to whoever opens it."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def hostile_skops(path: Path, marker: Path, loader: str) -> None:
    import skops.io

    skops.io.dump(LogisticRegression().fit([[0.0], [1.0]], [0, 1]), path)
    with zipfile.ZipFile(path) as old:
        parts = {name: old.read(name) for name in old.namelist()}
    call = (
        '{"__class__": "system", "__module__": "posix", "__loader__": "%s", "content": {"content": "touch %s", '
        '"__class__": "str", "__module__": "builtins", "__loader__": "JsonNode"}}'
    )
    schema = re.sub(rb'("classes_": )', b'"C_": ' + (call % (loader, marker)).encode() + rb", \1", parts["schema.json"])
    assert schema != parts["schema.json"]
    with zipfile.ZipFile(path, "w") as new:
        for name, data in parts.items():
            new.writestr(name, schema if name == "schema.json" else data)


def hostile(kind: str, path: Path, marker: Path) -> None:
    shell = Shell(marker)
    if kind.startswith("pickle"):
        path.write_bytes(pickle.dumps(shell, protocol=int(kind[-1])))
    elif kind == "inside a model":
        model = LogisticRegression().fit([[0.0], [1.0]], [0, 1])
        model.coef_ = shell
        path.write_bytes(pickle.dumps(model))
    elif kind == "joblib":
        joblib.dump({"a": shell}, path, compress=3)
    elif kind == "joblib array":  # its own reader opens a pickle within the file
        model = LogisticRegression().fit([[0.0], [1.0]], [0, 1])
        model.classes_ = np.array([shell, "b"], dtype=object)
        joblib.dump(model, path)
    elif kind == "inst":
        path.write_bytes(b"(S'touch %s'\nios\nsystem\n." % bytes(marker))
    elif kind == "obj":
        path.write_bytes(b"(cos\nsystem\nS'touch %s'\no." % bytes(marker))
    elif kind == "through a name":  # what an allowed name leads to
        path.write_bytes(b"\x80\x04\x8c\x05numpy\x8c\x0fndarray.__class__\x93.")
    elif kind == "torch":
        torch.save({"0.weight": torch.ones(2, 2), "x": shell}, path)
    elif kind == "torch old":
        torch.save(shell, path, _use_new_zipfile_serialization=False)
    elif kind == "torchscript":
        torch.jit.script(nn.Sequential(nn.Linear(3, 2))).save(path)
    elif kind == "npz":
        np.savez(path.with_suffix(".npz"), fedseal=np.array([shell], dtype=object))
        path.with_suffix(".npz").rename(path)
    elif kind.startswith("skops"):
        hostile_skops(path, marker, loader=kind.split()[1])


HOSTILE = ["pickle0", "pickle2", "pickle5", "inside a model", "joblib", "joblib array", "inst", "obj", "through a name"]
HOSTILE += ["torch", "torch old", "torchscript", "npz", "skops ObjectNode", "skops FunctionNode", "skops MethodNode"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", HOSTILE)
def test_opening_a_file_runs_nothing_of_it(tmp_path, kind):
    marker, path = tmp_path / "marker", tmp_path / "m"
    hostile(kind, path, marker)
    with pytest.raises(UsageError) as refused:
        find(str(path))
    assert not marker.exists()
    assert "\n" not in str(refused.value) and "allowed" in str(refused.value)
    if kind not in ("inst", "obj", "through a name", "torch old", "torchscript", "npz"):
        assert "posix.system" in str(refused.value)


def test_the_attacks_would_work_on_the_libraries_own_readers(tmp_path):
    for kind, load in (("inside a model", pickle.load), ("joblib array", joblib.load), ("inst", pickle.load)):
        marker, path = tmp_path / f"marker {kind}".replace(" ", "-"), tmp_path / kind
        hostile(kind, path, marker)
        with path.open("rb") as file:
            load(file)
        assert marker.exists()


def test_a_model_of_a_plugin_is_refused_before_the_plugin_is_imported(tmp_path, monkeypatch):
    (tmp_path / "planted.py").write_text(f"open({str(tmp_path / 'marker')!r}, 'w')\ndef build(**_): ...\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    spec = Model("logistic", classes=("a", "b"))
    net = build_model(spec, input_shape=(D,), image_shape=None, num_classes=2, seed=1)
    save_model(tmp_path / "model.pt", net, spec, Meta((D,), None, ("a", "b"), NAMES))
    content = torch.load(tmp_path / "model.pt", weights_only=True)
    content["model"]["name"] = "planted:build"
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(UsageError, match=r"'planted:build'; allowed: logistic, mlp"):
        find(str(tmp_path))
    assert not (tmp_path / "marker").exists()


def dtype_pickle(fields: bool) -> bytes:
    """An array whose eight bytes a number are called a structure or an object, which numpy may follow as a pointer."""
    model = LogisticRegression().fit([[0.0], [1.0]], [0, 1])
    data = pickle.dumps(model, protocol=2)
    at = data.index(b"X\x02\x00\x00\x00f8")
    return data[:at] + (b"X\x02\x00\x00\x00V8" if fields else b"X\x02\x00\x00\x00O8") + data[at + 7 :]


@pytest.mark.parametrize("fields", [True, False])
def test_bytes_of_a_file_do_not_become_pointers(tmp_path, fields):
    (tmp_path / "m").write_bytes(dtype_pickle(fields))
    with pytest.raises(UsageError, match="cannot be read"):
        find(str(tmp_path / "m"))


_GOOD = pickle.dumps(make_pipeline(StandardScaler(), LogisticRegression()).fit([[0.0, 1], [1.0, 0]], [0, 1]))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_damaged_pickle_is_a_usage_error_or_a_model(tmp_path_factory, data):
    path, damaged = tmp_path_factory.mktemp("damaged") / "m", bytearray(_GOOD)
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(damaged[: data.draw(st.integers(0, len(damaged)))] if data.draw(st.booleans()) else damaged)
    try:
        assert isinstance(find(str(path)), Found)
    except UsageError as error:
        assert "\n" not in str(error)


def test_an_array_that_would_fill_the_memory_is_refused(tmp_path):
    data = pickle.dumps(LogisticRegression().fit(np.zeros((2, 3)), [0, 1]), protocol=2)
    assert b"K\x01K\x03\x86" in data
    huge = data.replace(b"K\x01K\x03\x86", b"K\x01\x8a\x06\x00\x00\x00\x00\x00\x01\x86")
    (tmp_path / "m").write_bytes(huge)
    with pytest.raises(UsageError, match="too large"):
        find(str(tmp_path / "m"))


# ---- torch


def torch_net(activation, width=1, tail=()):
    torch.manual_seed(0)
    layers = [nn.Flatten(), nn.Linear(D, 6), activation, nn.Dropout(0.5), nn.Linear(6, 4), nn.Identity()]
    return nn.Sequential(*layers, nn.Linear(4, width), *tail).eval()


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.Tanh(), nn.Sigmoid(), nn.GELU(), nn.GELU(approximate="tanh")])
@pytest.mark.parametrize("width", [1, 2, 3])
@pytest.mark.parametrize("tail", [False, True])
def test_a_torch_network_has_its_own_probabilities(tmp_path, activation, width, tail):
    last = nn.Sigmoid() if width == 1 else nn.Softmax(dim=1)
    net = torch_net(activation, width, [last] if tail else [])
    torch.save(net, tmp_path / "net.pt")
    found = find(str(tmp_path / "net.pt"), features=NAMES, classes=[f"c{k}" for k in range(max(width, 2))])
    x = np.random.default_rng(0).normal(size=(50, D))
    with torch.no_grad():
        out = net.double()(torch.from_numpy(x))
    out = out if tail else last(out)
    own = torch.cat([1 - out, out], dim=1).numpy() if width == 1 else out.numpy()
    assert (found.features, found.classes[1], len(found.layers)) == (NAMES, "c1", 2)
    assert softmax(found.logits(x)) == pytest.approx(own, abs=1e-9)


def test_a_state_dict_with_squares_is_served_as_it_is(tmp_path):
    torch.manual_seed(0)
    layers = [nn.Linear(D, 6), nn.Linear(6, 4), nn.Linear(4, 3)]
    state = {f"{2 * i}.{name}": part for i, layer in enumerate(layers) for name, part in layer.state_dict().items()}
    torch.save(state, tmp_path / "state.pt")
    x = np.random.default_rng(0).normal(size=(50, D))
    z = torch.from_numpy(x)
    for i, layer in enumerate(layers):
        z = layer.double()(z)
        z = z * z if i < 2 else z
    model = ready(find(str(tmp_path / "state.pt"), features=NAMES, activation="square"))
    assert isinstance(model, Network) and [part.shape for part, _ in model.layers] == [(6, D), (4, 6), (2, 4)]
    assert served(model, x, NAMES) == pytest.approx(softmax(z.detach().numpy()), abs=1e-9)
    with pytest.raises(UsageError, match="allowed: relu, tanh, sigmoid, square"):
        find(str(tmp_path / "state.pt"))


def test_a_state_dict_is_read_with_the_named_activation(tmp_path):
    net = torch_net(nn.Tanh(), 3)
    plain = nn.Sequential(net[1], net[2], nn.Linear(6, 3)).double()
    torch.save(plain.state_dict(), tmp_path / "s.pt")
    x = np.random.default_rng(0).normal(size=(20, D))
    found = find(str(tmp_path / "s.pt"), activation="tanh")
    assert found.logits(x) == pytest.approx(plain(torch.from_numpy(x)).detach().numpy(), abs=1e-9)


# ---- fedseal's own


@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("name", ["logistic", "mlp"])
def test_a_fedseal_model_is_read_from_its_run(tmp_path, name, activation):
    spec = Model(name, hidden=(7, 4), activation=activation, classes=("a", "b", "c"))
    net = build_model(spec, input_shape=(D,), image_shape=None, num_classes=3, seed=1)
    (tmp_path / "bank").mkdir()
    rng = np.random.default_rng(0)
    mean, std = rng.normal(size=D) * 9, np.exp(rng.normal(size=D) * 2)
    save_model(tmp_path / "bank" / "model.pt", net, spec, Meta((D,), None, ("a", "b", "c"), NAMES, mean, std))
    found, x = find(str(tmp_path)), rng.normal(size=(40, D)) * std + mean
    own = net.double()(torch.from_numpy((x - mean) / std)).detach().numpy()
    assert (found.features, found.classes) == (NAMES, ("a", "b", "c"))
    assert found.logits(x) == pytest.approx(own, abs=1e-9)
    if name == "logistic":
        assert served(load_linear(tmp_path), x, NAMES) == pytest.approx(softmax(own), abs=1e-9)
    else:
        with pytest.raises(UsageError, match=f"{activation} .*fedseal serve --convert"):
            ready(found)


def test_a_converted_network_is_read_as_it_was_written(tmp_path):
    rng = np.random.default_rng(0)
    layers = ((rng.normal(size=(6, D)), rng.normal(size=6)), (rng.normal(size=(3, 6)), rng.normal(size=3)))
    curves = (rng.normal(size=(6, 3)),)
    found = Found(NAMES, ("ä", "b", "c"), layers, curves, rng.normal(size=D), np.exp(rng.normal(size=D)))
    save_converted(found, tmp_path / "risk.fedseal")
    again, x = find(str(tmp_path / "risk.fedseal")), rng.normal(size=(30, D))
    assert (again.features, again.classes) == (found.features, found.classes)
    assert np.array_equal(again.logits(x), found.logits(x))
    assert served(ready(again), x, NAMES) == pytest.approx(softmax(found.logits(x)), abs=1e-9)
    assert oct((tmp_path / "risk.fedseal").stat().st_mode)[-3:] == "600"
    with pytest.raises(UsageError, match="relu cannot be saved"):
        save_converted(Found(NAMES, ("a", "b", "c"), layers, ("relu",)), tmp_path / "no")


# ---- folding

NUMBERS = st.floats(-4, 4, allow_nan=False)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(NUMBERS | st.sampled_from([0.0, 1e-9, 1e-300]), NUMBERS, NUMBERS), min_size=1, max_size=5))
def test_any_quadratic_between_two_layers_becomes_a_square(coefficients):
    curve = np.array(coefficients)
    rng = np.random.default_rng(0)
    before = rng.normal(size=(len(curve), 3)), rng.normal(size=len(curve))
    after = rng.normal(size=(2, len(curve))), rng.normal(size=2)
    x = rng.normal(size=(20, 3)) * 3
    first, second = square_between(before, curve, after)
    own = activate(curve, x @ before[0].T + before[1]) @ after[0].T + after[1]
    assert (x @ first[0].T + first[1]) ** 2 @ second[0].T + second[1] == pytest.approx(own, rel=1e-9, abs=1e-9)
    assert max(np.abs(part).max(initial=0) for part in (*first, *second)) < 1e4, "numbers without room"


def test_a_network_tells_a_client_no_mean_and_no_deviation():
    rng = np.random.default_rng(0)
    layers = ((rng.normal(size=(6, D)), rng.normal(size=6)), (rng.normal(size=(3, 6)), rng.normal(size=3)))
    mean, std = rng.normal(size=D) * 50, np.exp(rng.normal(size=D) * 3)
    model = ready(Found(NAMES, ("a", "b", "c"), layers, (np.tile([1.0, 0, 0], (6, 1)),), mean, std))
    assert (model.centre % np.exp2(model.unit_bits) == 0).all()
    order = np.argsort(NAMES)
    assert (np.abs(np.log2(std[order]) - model.unit_bits) <= 0.5).all()


# ---- what is wrong


def saved(model, path: Path) -> Path:
    path.write_bytes(pickle.dumps(model))
    return path


class Own(nn.Module):
    pass


def bad(kind: str, path: Path) -> None:
    x, y = np.random.default_rng(0).normal(size=(30, D)), np.arange(30) % 3
    one, two = nn.Linear(D, 3), nn.Linear(3, 3)
    pipelines = {
        "forest": lambda: RandomForestClassifier(2).fit(x, y),
        "svc": lambda: LinearSVC().fit(x, y),
        "sgd of three": lambda: SGDClassifier(loss="log_loss").fit(x, y),
        "hinge": lambda: SGDClassifier().fit(x, y > 0),
        "not fitted": lambda: make_pipeline(StandardScaler(), LogisticRegression()),
        "clip": lambda: make_pipeline(MinMaxScaler(clip=True), LogisticRegression()).fit(x, y),
        "only a scaler": lambda: StandardScaler().fit(x),
        "several labels": lambda: MLPClassifier((3,), max_iter=2).fit(x, np.eye(3)[y]),
        "a number": lambda: 7,
    }
    modules = {
        "own module": lambda: Own(),
        "cnn": lambda: nn.Sequential(nn.Conv2d(1, 1, 3)),
        "do not fit": lambda: nn.Sequential(one, nn.ReLU(), nn.Linear(9, 2)),
        "two activations": lambda: nn.Sequential(one, nn.ReLU(), nn.ReLU(), two),
        "ends with relu": lambda: nn.Sequential(one, nn.ReLU()),
        "nan": lambda: nn.Sequential(
            nn.Linear(D, 2, device="cpu").requires_grad_(False).apply(lambda m: m.weight.fill_(np.nan))
        ),
        "no layers": lambda: nn.Sequential(),
        "a tensor": lambda: torch.ones(3),
        "other state": lambda: {"running_mean": torch.ones(3)},
        "conv state": lambda: {"0.weight": torch.ones(3, 3, 3, 3), "0.bias": torch.ones(3)},
        "empty state": dict,
    }
    files = {
        "empty": b"",
        "text": b"hello there, this is no model",
        "zip": b"PK\x03\x04" + bytes(100),
        "png": b"\x89PNG\r\n\x1a\n" + bytes(40),
        "bomb": b"\x80\x04" + b"\x8a\xff" + bytes(20),
        "long": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 60) + b".",
    }
    if kind in pipelines:
        saved(pipelines[kind](), path)
    elif kind in modules:
        torch.save(modules[kind](), path)
    elif kind == "csv in a zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a.csv", "a,b")
    elif kind == "folder":
        path.mkdir()
    elif kind in files:
        path.write_bytes(files[kind])


BAD = {
    "forest": "RandomForestClassifier",
    "svc": "LinearSVC",
    "sgd of three": "two classes",
    "hinge": "Hinge",
    "not fitted": "not fitted",
    "clip": "clip=True",
    "only a scaler": "holds a StandardScaler at its end",
    "several labels": "several labels a row",
    "a number": "holds no model",
    "own module": "test_sources.Own",
    "cnn": "Conv2d",
    "do not fit": r"layer 2 of shapes \(2, 9\)",
    "two activations": "relu where a linear layer belongs",
    "ends with relu": "no linear layer at its end",
    "nan": "no finite number",
    "no layers": "no linear layer",
    "a tensor": "holds a Tensor",
    "other state": "'running_mean'",
    "conv state": "without a matrix",
    "empty state": "empty state dict",
    "empty": "cannot be read",
    "text": "cannot be read",
    "zip": "cannot be read",
    "png": "cannot be read",
    "bomb": "cannot be read",
    "long": "cannot be read",
    "csv in a zip": "another kind of file",
    "folder": "no model.pt there",
    "nothing": "no model there",
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", BAD)
def test_a_wrong_source_gives_one_clear_line(tmp_path, kind):
    bad(kind, tmp_path / "m")
    with pytest.raises(UsageError, match=BAD[kind]) as error:
        find(str(tmp_path / "m"))
    text = str(error.value)
    assert text.startswith(str(tmp_path / "m")) and "allowed: " in text and "\n" not in text and len(text) < 600


def test_names_that_do_not_fit_are_refused(tmp_path):
    torch.save(nn.Sequential(nn.Linear(D, 2)), tmp_path / "m")
    x, y = cancer()
    saved(LogisticRegression(max_iter=5).fit(x / 100, y), tmp_path / "own")
    for path, given_names, message in (
        ("m", {"features": NAMES[:-1]}, "4 names for 5 features"),
        ("m", {"features": NAMES[:-1] + NAMES[:1]}, "4 names for 5 features"),
        ("m", {"classes": ["a"]}, "1 names for 2 classes"),
        ("own", {"features": sorted(NAMES)}, "names of its features"),
        ("own", {"classes": ["a", "b"]}, "names of its classes"),
    ):
        with pytest.raises(UsageError, match=message):
            find(str(tmp_path / path), **given_names)
    assert find(str(tmp_path / "own"), features=NAMES).features == NAMES


@pytest.mark.parametrize("shape", ["flat", "none", "infinite", "scale"])
def test_a_converted_file_of_other_shapes_is_refused(tmp_path, shape):
    layers = ((np.ones((2, 2)), np.ones(2)), (np.ones((2, 2)), np.ones(2)))
    found = Found(("a", "b"), ("c", "d"), layers, (np.ones((2, 3)),), np.ones(2), np.ones(2))
    broken = {
        "flat": {"layers": ((np.ones(2), np.ones(2)), layers[1])},
        "none": {"layers": (), "activations": ()},
        "infinite": {"activations": (np.full((2, 3), np.inf),)},
        "scale": {"mean": np.ones(3)},
    }
    save_converted(replace(found, **broken[shape]), tmp_path / "m")
    with pytest.raises(UsageError, match=f"^{tmp_path}.*allowed: ") as error:
        find(str(tmp_path / "m"))
    assert "cannot be read" not in str(error.value)


# ---- MLflow


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_models_in_mlflow_are_found_by_run_version_and_alias(tmp_path, monkeypatch):
    """With the store given, and another one (empty) as MLflow's own setting."""
    import mlflow
    from mlflow.models import infer_signature

    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.chdir(tmp_path)
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(uri)
    x, y = cancer()
    fitted = make_pipeline(StandardScaler(), LogisticRegression()).fit(x, y)
    spec = Model("logistic", classes=("a", "b"))
    net = build_model(spec, input_shape=(D,), image_shape=None, num_classes=2, seed=1)
    save_model(tmp_path / "model.pt", net, spec, Meta((D,), None, ("a", "b"), NAMES))
    client, quiet = mlflow.MlflowClient(), {"pip_requirements": []}
    try:
        experiment = client.create_experiment("e", artifact_location=(tmp_path / "artifacts").as_uri())
        with mlflow.start_run(experiment_id=experiment) as run:
            for form in ("skops", "pickle", "cloudpickle"):
                mlflow.sklearn.log_model(
                    fitted, name=form, serialization_format=form, registered_model_name="r", **quiet
                )
            module, columns = nn.Sequential(nn.Linear(D, 2)), infer_signature(x, y.astype(str))
            mlflow.pytorch.log_model(module, name="torch", serialization_format="pickle", signature=columns, **quiet)
            client.log_artifact(run.info.run_id, str(tmp_path / "model.pt"), "model")
            source = f"{run.info.artifact_uri}/model"
            client.create_registered_model("fed")  # as a run of fedseal publishes
            client.create_model_version("fed", source=source, run_id=run.info.run_id)
            mlflow.log_text("hello", "text/a.txt")
        client.set_registered_model_alias("r", "best", "2")
        mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'other.db'}")
        at, seen = run.info.run_id, np.asarray(x)
        mine = [f"runs:/{at}/skops", f"runs:/{at}/cloudpickle", f"runs:/{at}/pickle/model.pkl"]
        for name in (*mine, "models:/r/1", "models:/r@best", "models:/r/3", "models:/r/1/model.skops"):
            model = ready(find(name, tracking_uri=uri))
            assert served(model, seen, NAMES) == pytest.approx(fitted.predict_proba(x), abs=1e-9), name
        assert find(f"runs:/{at}/torch", tracking_uri=uri).features == NAMES
        for name in ("models:/fed/1", f"runs:/{at}/model", f"runs:/{at}/model/model.pt", "models:/fed/1/model.pt"):
            assert find(name, tracking_uri=uri).classes == ("a", "b"), name
        for name in ("models:/r/9", "models:/r@none", "models:/r", "models:/q/1", "runs:/0/a", f"runs:/{at}/no"):
            with pytest.raises(UsageError, match=f"^{name}: ") as error:
                find(name, tracking_uri=uri)
            assert "\n" not in str(error.value)
        with pytest.raises(UsageError, match="no MLflow store"):
            find("models:/r/1", tracking_uri=f"sqlite:///{tmp_path / 'none.db'}")
        assert not (tmp_path / "none.db").exists()
        with pytest.raises(UsageError) as error:
            find("models:/r/1", tracking_uri="mysql://root:hunter2@127.0.0.1:1/x")
        assert "hunter2" not in str(error.value)
    finally:
        mlflow.set_tracking_uri(before)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["escape", "yaml", "flavor", "code"])
def test_a_hostile_mlflow_folder_is_refused(tmp_path, kind):
    folder, marker = tmp_path / "m", tmp_path / "marker"
    folder.mkdir()
    saved(LogisticRegression().fit([[0.0], [1.0]], [0, 1]), tmp_path / "outside.pkl")
    hostile("pickle5", folder / "model.pkl", marker)
    about = {
        "escape": "flavors:\n  sklearn:\n    pickled_model: ../outside.pkl\n",
        "yaml": f"flavors: !!python/object/apply:os.system ['touch {marker}']\n",
        "flavor": "flavors:\n  xgboost:\n    data: model.pkl\n",
        "code": "flavors:\n  sklearn:\n    pickled_model: model.pkl\n    serialization_format: pickle\n",
    }
    (folder / "MLmodel").write_text(about[kind])
    with pytest.raises(UsageError) as error:
        find(str(folder))
    assert not marker.exists() and "\n" not in str(error.value)
    wanted = {"escape": "no outside.pkl", "yaml": "cannot be read", "flavor": "xgboost", "code": "posix.system"}
    assert wanted[kind] in str(error.value)


def test_bytes_after_an_archive_do_not_hide_another(tmp_path):
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("notes.txt", "x")
    (tmp_path / "m").write_bytes(buffer.getvalue() + pickle.dumps(Shell(tmp_path / "marker")))
    with pytest.raises(UsageError):
        find(str(tmp_path / "m"))
    assert not (tmp_path / "marker").exists()
