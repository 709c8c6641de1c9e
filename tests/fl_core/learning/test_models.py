from __future__ import annotations

import os
import pickle
import sys

import numpy as np
import pytest
import torch
from torch import nn

from fl_core.errors import JobFileError
from fl_core.job import Model
from fl_core.learning import models
from fl_core.learning.models import Meta

HERE = f"{__name__}:"
FLAT = Meta((64,), (1, 8, 8), ("0", "1", "2"), tuple(f"p{i}" for i in range(64)))


def with_batch_norm(*, input_shape, num_classes):
    return nn.Sequential(nn.Linear(*input_shape, 8), nn.BatchNorm1d(8), nn.Linear(8, num_classes))


def with_group_norm(*, input_shape, num_classes):
    return nn.Sequential(nn.Linear(*input_shape, 8), nn.GroupNorm(2, 8), nn.Linear(8, num_classes))


def no_module(*, input_shape, num_classes):
    return lambda x: x


def no_parameters(*, input_shape, num_classes):
    return nn.Flatten()


def wrong_width(*, input_shape, num_classes):
    return nn.Linear(*input_shape, num_classes + 1)


def takes_nothing():
    return nn.Linear(1, 1)


def build(name="mlp", *, seed=0, shape=(64,), image=(1, 8, 8), classes=3, **more):
    return models.build_model(Model(name, **more), input_shape=shape, image_shape=image, num_classes=classes, seed=seed)


@pytest.fixture(autouse=True)
def this_module_can_be_imported(monkeypatch):
    monkeypatch.setitem(sys.modules, __name__, sys.modules[with_batch_norm.__module__])


@pytest.mark.parametrize(
    ("name", "shape", "image", "size"),
    [
        ("logistic", (64,), None, 64 * 3 + 3),
        ("mlp", (64,), None, 64 * 64 + 64 + 64 * 3 + 3),
        ("mlp", (1, 28, 28), (1, 28, 28), 784 * 64 + 64 + 64 * 3 + 3),
        ("cnn", (64,), (1, 8, 8), (9 + 1) * 16 + (144 + 1) * 32 + (128 + 1) * 64 + 65 * 3),
        ("cnn", (1, 28, 28), (1, 28, 28), (9 + 1) * 16 + (144 + 1) * 32 + (1568 + 1) * 64 + 65 * 3),
        (HERE + "with_group_norm", (64,), None, 64 * 8 + 8 + 16 + 27),
    ],
)
def test_models_have_the_expected_parameters_and_logits(name, shape, image, size):
    model = build(name, shape=shape, image=image)
    assert models.num_parameters(model) == size == len(models.get_vector(model))
    assert model(torch.zeros(2, *shape)).shape == (2, 3)
    assert model(torch.zeros(0, *shape)).shape == (0, 3)


def test_initial_weights_depend_on_the_seed_alone():
    torch.manual_seed(1)
    first, drawn = models.get_vector(build("cnn", seed=5)), torch.rand(3)
    torch.manual_seed(2)
    assert (models.get_vector(build("cnn", seed=5)) == first).all()
    torch.manual_seed(1)
    assert (torch.rand(3) == drawn).all(), "building a model moved torch's random state"
    assert (models.get_vector(build("cnn", seed=6)) != first).any()


def test_a_vector_survives_the_way_through_a_model():
    model = build("cnn")
    vector = np.random.default_rng(0).normal(size=models.num_parameters(model))
    models.set_vector(model, vector)
    assert (models.get_vector(model) == vector.astype(np.float32)).all()
    assert models.get_vector(model).dtype == np.float64
    with pytest.raises(ValueError, match="parameters"):
        models.set_vector(model, vector[:-1])


def test_batch_norm_would_bypass_aggregation_and_is_refused():
    with pytest.raises(JobFileError, match=r"model\.name: .*buffers.*use GroupNorm"):
        build(HERE + "with_batch_norm")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("resnet", "no model 'resnet'; allowed: logistic, mlp, cnn"),
        (HERE + "no_module", "returned function; allowed: a torch.nn.Module"),
        (HERE + "no_parameters", "has no parameters"),
        (HERE + "wrong_width", r"turns 2 rows into \(2, 4\); allowed: \(2, 3\)"),
        (HERE + "takes_nothing", "raised TypeError"),
        (HERE + "nowhere", "'nowhere' is not there"),
        ("no_such_module_here:f", "cannot be imported"),
    ],
)
def test_a_model_that_cannot_serve_is_named(name, text):
    with pytest.raises(JobFileError, match=text):
        build(name)


def test_a_cnn_needs_pictures():
    with pytest.raises(JobFileError, match="'cnn': the data are no pictures"):
        build("cnn", shape=(30,), image=None)
    with pytest.raises(JobFileError, match="3x3 are too small"):
        build("cnn", shape=(1, 3, 3), image=(1, 3, 3))


@pytest.mark.parametrize("scaled", [False, True])
def test_a_saved_model_comes_back_whole(tmp_path, scaled):
    path, spec = tmp_path / "out" / "model.pt", Model("mlp", hidden=(5, 4), activation="tanh")
    extra = {"mean": np.arange(64.0), "std": np.ones(64)} if scaled else {}
    meta = Meta(FLAT.input_shape, FLAT.image_shape, FLAT.classes, FLAT.feature_names, **extra)
    model = build("mlp", hidden=(5, 4), activation="tanh", seed=3)
    models.save_model(path, model, spec, meta)
    saved = models.load_model(path)
    assert (saved.vector == models.get_vector(model)).all()
    x = torch.rand(4, 64)
    assert (saved.model(x) == model(x)).all()
    assert (saved.spec.name, saved.spec.hidden, saved.spec.activation) == ("mlp", (5, 4), "tanh")
    assert (saved.meta.classes, saved.meta.feature_names, saved.meta.image_shape) == (
        FLAT.classes, FLAT.feature_names, (1, 8, 8),
    )  # fmt: skip
    assert (saved.meta.mean is None) != scaled and (not scaled or (saved.meta.mean == np.arange(64)).all())
    assert [p.name for p in path.parent.iterdir()] == ["model.pt"] and path.stat().st_mode & 0o777 == 0o600
    models.check_fits(saved, spec, FLAT)


def test_a_model_file_cannot_run_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "owned"),)

    torch.save({"format": "fedseal-model/1", "weights": Evil()}, tmp_path / "model.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Evil(), protocol=2))
    for name in ("model.pt", "plain.pt"):
        with pytest.raises(JobFileError, match=r"model\.init"):
            models.load_model(tmp_path / name)
    assert not (tmp_path / "owned").exists()


def test_a_broken_model_file_is_one_clear_line(tmp_path):
    path = tmp_path / "model.pt"
    models.save_model(path, build(), Model(), FLAT)
    good = torch.load(path, weights_only=True)
    variants = {
        "cut": path.read_bytes()[:500],
        "empty": b"",
        "text": b"hello",
    }
    for data in variants.values():
        path.write_bytes(data)
        with pytest.raises(JobFileError, match=r"model\.init: model\.pt cannot be read"):
            models.load_model(path)
    for change in (
        {"format": "other"},
        {"digest": "0" * 64},
        {"weights": {"1.weight": torch.zeros(64, 64)}},
        {"weights": {k: torch.zeros(1) for k in good["weights"]}},
        {"model": {"name": "mlp"}},
        {"classes": None},
    ):
        torch.save(good | change, path)
        with pytest.raises(JobFileError, match=r"model\.init") as caught:
            models.load_model(path)
        assert "\n" not in str(caught.value)
    with pytest.raises(JobFileError, match="cannot be read"):
        models.load_model(tmp_path / "nothing.pt")


@pytest.mark.parametrize(
    ("spec", "change", "text"),
    [
        (Model("mlp", hidden=(32,)), {}, "its model"),
        (Model("logistic"), {}, "its model"),
        (Model(), {"input_shape": (1, 8, 8)}, "its input shape"),
        (Model(), {"classes": ("0", "1", "3")}, "its classes: .*; allowed: the job's"),
        (Model(), {"feature_names": ("a",) * 64}, "its features"),
    ],
)
def test_starting_from_another_kind_of_model_is_refused(tmp_path, spec, change, text):
    models.save_model(tmp_path / "model.pt", build(), Model(), FLAT)
    saved = models.load_model(tmp_path / "model.pt")
    import dataclasses

    with pytest.raises(JobFileError, match=text):
        models.check_fits(saved, spec, dataclasses.replace(FLAT, **change))
