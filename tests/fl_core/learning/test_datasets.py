from __future__ import annotations

import numpy as np
import pytest

from fl_core.errors import DataError, JobFileError
from fl_core.learning import datasets


def two_arrays():
    return np.arange(8.0).reshape(4, 2), ["b", "a", "b", "a"]


def pictures():
    return np.zeros((3, 5, 5)), [2, 1, 2], np.ones((1, 5, 5)), [9]


def broken():
    raise RuntimeError("no network")


def with_nan():
    return np.array([[np.nan]]), [1]


def ragged():
    return np.zeros((3, 2)), [0, 1]


HERE = f"{__name__}:"


@pytest.fixture(autouse=True)
def this_module_can_be_imported(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, __name__, sys.modules[two_arrays.__module__])


@pytest.mark.parametrize(("name", "bunch"), [("digits", "load_digits"), ("breast_cancer", "load_breast_cancer")])
def test_bundled_files_read_as_scikit_learn_reads_them(name, bunch):
    import sklearn.datasets

    theirs, ours = getattr(sklearn.datasets, bunch)(), datasets.load(name)
    x = theirs.data / 16 if name == "digits" else (theirs.data - theirs.data.mean(0)) / theirs.data.std(0)
    assert np.allclose(ours.x_train, x, atol=1e-6) and (ours.y_train == theirs.target).all()
    assert ours.classes == tuple(map(str, theirs.target_names))
    assert ours.x_train.dtype == np.float32 and ours.y_train.dtype == np.int64
    assert len(ours.feature_names) == ours.x_train.shape[1] == len(set(ours.feature_names))


def test_loading_digits_does_not_import_scikit_learn():
    import subprocess
    import sys

    code = (
        "import sys; from fl_core.learning.datasets import load; load('digits');"
        "sys.exit('sklearn' in sys.modules or 'torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_pictures_come_in_channels_and_unit_range(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (6, 28, 28), dtype=np.uint8)
    x[0, 0, 0] = 255
    np.savez(
        tmp_path / "pneumoniamnist.npz",
        x_train=x[:4],
        y_train=np.array([[0], [1], [1], [0]], dtype=np.uint8),
        x_test=x[4:],
        y_test=np.array([1, 0]),
    )
    monkeypatch.setenv(datasets.DATA_VARIABLE, str(tmp_path))
    raw = datasets.load("pneumoniamnist")
    assert raw.x_train.shape == (4, 1, 28, 28) and raw.image_shape == (1, 28, 28)
    assert raw.x_train[0, 0, 0, 0] == 1.0 and raw.x_train.dtype == np.float32
    assert raw.y_train.tolist() == [0, 1, 1, 0] and raw.y_test.tolist() == [1, 0]
    assert raw.classes == ("normal", "pneumonia") and len(raw.feature_names) == 784


def test_a_missing_file_names_itself_and_the_variable(tmp_path, monkeypatch):
    monkeypatch.setenv(datasets.DATA_VARIABLE, str(tmp_path))
    with pytest.raises(DataError, match=r"no file .*mnist10k\.npz; allowed: .* FEDSEAL_DATA"):
        datasets.load("mnist10k")
    (tmp_path / "mnist10k.npz").write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(DataError, match="unreadable"):
        datasets.load("mnist10k")


def test_an_unknown_name_lists_what_exists():
    with pytest.raises(
        JobFileError, match="no dataset 'iris'; allowed: breast_cancer, digits, mnist10k, pneumoniamnist"
    ):
        datasets.load("iris")


def test_a_second_registration_cannot_replace_a_dataset():
    with pytest.raises(ValueError, match="registered already"):
        datasets.register("digits")(lambda: datasets.load("digits"))
    with pytest.raises(ValueError, match="no plain name"):
        datasets.register("a:b")(lambda: datasets.load("digits"))


def test_a_function_of_ones_own_gives_codes_in_label_order():
    raw = datasets.load(HERE + "two_arrays")
    assert raw.classes == ("a", "b") and raw.y_train.tolist() == [1, 0, 1, 0] and raw.x_test is None
    raw = datasets.load(HERE + "pictures")
    assert raw.classes == ("1", "2", "9") and raw.y_test.tolist() == [2] and raw.image_shape == (1, 5, 5)


@pytest.mark.parametrize(
    ("name", "error", "text"),
    [
        (HERE + "broken", DataError, "RuntimeError: no network"),
        (HERE + "with_nan", DataError, "NaN or infinity"),
        (HERE + "ragged", DataError, r"x float64 \(3, 2\), y int64 \(2,\)"),
        (HERE + "nowhere", JobFileError, "'nowhere' is not there"),
        (HERE + "np", JobFileError, "'np' is not a function"),
        ("no_such_module_here:f", JobFileError, "dataset.name: .*cannot be imported .ModuleNotFoundError"),
        (":f", JobFileError, 'allowed: "package.module:function"'),
    ],
)
def test_a_bad_function_is_one_clear_line(name, error, text):
    with pytest.raises(error, match=text) as caught:
        datasets.load(name)
    assert "\n" not in str(caught.value)
