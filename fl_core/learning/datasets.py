"""Datasets for experiments: a registry of named loaders, and `"package.module:function"` for one's own.

A real party's file is not one of them: see `clients/sources.py`.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fl_core.errors import DataError, FedsealError, JobFileError
from fl_core.learning.plugins import is_reference, load_function

DATA_VARIABLE = "FEDSEAL_DATA"
_DEFAULT_FOLDER = Path("../shared/data")


@dataclasses.dataclass(frozen=True, eq=False)
class Raw:
    """A whole dataset before it is split.

    x_train : (n, features) or (n, channels, height, width) float32, pixels in [0, 1].
    y_train : (n,) int64, an index into `classes`.
    x_test, y_test : the official test set, or None.
    image_shape : (channels, height, width) where rows are pictures, also when they are kept flat.
    """

    x_train: NDArray[np.float32]
    y_train: NDArray[np.int64]
    x_test: NDArray[np.float32] | None
    y_test: NDArray[np.int64] | None
    classes: tuple[str, ...]
    feature_names: tuple[str, ...]
    image_shape: tuple[int, ...] | None = None


Loader = Callable[[], Raw]
_REGISTRY: dict[str, Loader] = {}


def register(name: str) -> Callable[[Loader], Loader]:
    """Decorate the loader of a named dataset; a name is given once."""

    def enter(loader: Loader) -> Loader:
        if name in _REGISTRY or is_reference(name):
            raise ValueError(f"dataset {name!r} is registered already, or is no plain name")
        _REGISTRY[name] = loader
        return loader

    return enter


def names() -> tuple[str, ...]:
    """What the registry holds."""
    return tuple(sorted(_REGISTRY))


def load(name: str) -> Raw:
    """Load a dataset by its registered name or by `"package.module:function"`.

    The function takes no argument and returns `(x, y)` or `(x_train, y_train, x_test, y_test)`; `y` holds
    labels of any kind, classes are their distinct values in order.

    Raises
    ------
    JobFileError : no such name. DataError : its files are missing or unreadable.
    """
    if is_reference(name):
        return _from_function(name)
    if name not in _REGISTRY:
        allowed = ", ".join(names()) + ' or "package.module:function"'
        raise JobFileError("dataset.name", f"no dataset {name!r}", allowed=allowed)
    return _registered(name, folder())


@functools.lru_cache(maxsize=1)
def _registered(name: str, place: Path) -> Raw:
    """The dataset read last stays in memory: a process that serves many parties deals it again for each."""
    return _REGISTRY[name]()


@register("digits")
def _digits() -> Raw:
    """1,797 handwritten digits of 8x8 pixels (UCI id 80), flat; values 0..16 brought to [0, 1]."""
    table = np.loadtxt(_sklearn_file("digits.csv.gz"), delimiter=",", dtype=np.float32)
    names = tuple(f"pixel_{row}_{column}" for row in range(8) for column in range(8))
    classes = tuple(map(str, range(10)))
    return Raw(table[:, :-1] / np.float32(16), table[:, -1].astype(np.int64), None, None, classes, names, (1, 8, 8))


@register("breast_cancer")
def _breast_cancer() -> Raw:
    """569 tumours, 30 measures (UCI id 17), standardised with the dataset's own mean and deviation."""
    path = _sklearn_file("breast_cancer.csv")
    with path.open(encoding="utf-8") as lines:
        header = lines.readline().strip().split(",")
        table = np.loadtxt(lines, delimiter=",", dtype=np.float64)
    x = (table[:, :-1] - table[:, :-1].mean(axis=0)) / table[:, :-1].std(axis=0)
    names = tuple(f"measure_{i}" for i in range(x.shape[1]))
    return Raw(x.astype(np.float32), table[:, -1].astype(np.int64), None, None, tuple(header[2:4]), names)


@register("mnist10k")
def _mnist10k() -> Raw:
    """10,000 training and 10,000 test digits of MNIST, 28x28."""
    return _pictures("mnist10k.npz", tuple(map(str, range(10))))


@register("pneumoniamnist")
def _pneumoniamnist() -> Raw:
    """MedMNIST v2 PneumoniaMNIST: chest x-rays of children, 28x28."""
    return _pictures("pneumoniamnist.npz", ("normal", "pneumonia"))


def folder() -> Path:
    """Where files of pictures are looked for: FEDSEAL_DATA, or `../shared/data`."""
    return Path(os.environ.get(DATA_VARIABLE) or _DEFAULT_FOLDER)


def _pictures(file: str, classes: tuple[str, ...]) -> Raw:
    path = folder() / file
    if not path.is_file():
        raise DataError("dataset.name", f"no file {path}", allowed=f"{file} in the folder that {DATA_VARIABLE} names")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            x_train, y_train, x_test, y_test = (arrays[k] for k in ("x_train", "y_train", "x_test", "y_test"))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(str(path), f"unreadable ({error})", allowed="npz: x_train, y_train, x_test, y_test") from None
    shape = (1, *x_train.shape[1:])
    names = tuple(f"pixel_{row}_{column}" for row in range(shape[1]) for column in range(shape[2]))
    train, test = (x.reshape(-1, *shape).astype(np.float32) / np.float32(255) for x in (x_train, x_test))
    return Raw(
        train,
        y_train.reshape(-1).astype(np.int64),
        test,
        y_test.reshape(-1).astype(np.int64),
        classes,
        names,
        shape,
    )


def _sklearn_file(name: str) -> Path:
    """A csv that scikit-learn carries, found without importing it (2 s)."""
    spec = importlib.util.find_spec("sklearn")
    for place in (spec.submodule_search_locations or []) if spec else []:
        path = Path(place) / "datasets" / "data" / name
        if path.is_file():
            return path
    raise DataError("dataset.name", f"{name} is not there", allowed="scikit-learn installed (it carries the file)")


def _from_function(name: str) -> Raw:
    function = load_function("dataset.name", name)
    try:
        arrays = tuple(map(np.asarray, function()))
    except FedsealError:
        raise
    except Exception as error:  # the user's function may raise anything
        raise DataError(name, f"it raised {type(error).__name__}: {error}") from error
    if len(arrays) not in (2, 4):
        raise DataError(
            name, f"it returned {len(arrays)} arrays", allowed="(x, y) or (x_train, y_train, x_test, y_test)"
        )
    features = [_checked_features(name, x, y) for x, y in zip(arrays[::2], arrays[1::2], strict=True)]
    classes, codes = np.unique(np.concatenate(arrays[1::2]), return_inverse=True)
    cut = len(arrays[1])
    shape = features[0].shape[1:]
    official = len(arrays) == 4
    return Raw(
        features[0],
        codes[:cut].astype(np.int64),
        features[1] if official else None,
        codes[cut:].astype(np.int64) if official else None,
        tuple(map(str, classes.tolist())),
        tuple(f"x{i}" for i in range(int(np.prod(shape)))),
        shape if len(shape) == 3 else None,
    )


def _checked_features(name: str, x: NDArray[np.generic], y: NDArray[np.generic]) -> NDArray[np.float32]:
    if x.ndim == 3:
        x = x[:, None]
    if x.ndim not in (2, 4) or y.ndim != 1 or len(x) != len(y) or len(x) == 0 or x.dtype.kind not in "biuf":
        shapes = f"x {x.dtype} {x.shape}, y {y.dtype} {y.shape}"
        raise DataError(name, shapes, allowed="x (n, features), (n, h, w) or (n, c, h, w) of numbers, y (n,)")
    if not np.isfinite(x).all():
        raise DataError(name, "x holds NaN or infinity", allowed="finite numbers")
    return x.astype(np.float32)
