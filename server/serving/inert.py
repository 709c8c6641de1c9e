"""Reads saved scikit-learn models without running anything of them: pickle, joblib and skops files.

A pickle is a program: it names functions and has them called.  Here a name is only text, checked against a list, and
what would be a call or an object becomes a `Part`: the name, the arguments, the state.  No opcode imports or calls
anything; arrays are made from bytes of numbers and short text, by this module.  A file that wants more is refused,
with the name it wants.
"""

from __future__ import annotations

import bz2
import json
import lzma
import pickle
import re
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fl_core.errors import UsageError

MAX_BYTES = 1 << 30
_MAX_VALUES = 1 << 27
_DTYPE = re.compile(r"[<>|=]?(b1|[iu][1248]|f[248]|[US]\d{1,5}|O8?)")

ALLOWED_MODELS = (
    "a Pipeline of StandardScaler, MinMaxScaler, RobustScaler or MaxAbsScaler with LogisticRegression, "
    "SGDClassifier (log_loss, two classes) or MLPClassifier"
)
_MODULES = {
    "sklearn.pipeline": "Pipeline",
    "sklearn.preprocessing._data": "StandardScaler MinMaxScaler RobustScaler MaxAbsScaler",
    "sklearn.preprocessing._label": "LabelBinarizer",
    "sklearn.linear_model._logistic": "LogisticRegression",
    "sklearn.linear_model._stochastic_gradient": "SGDClassifier",
    "sklearn.linear_model._sgd_fast": "Log",
    "sklearn._loss._loss": "CyHalfBinomialLoss",
    "sklearn.neural_network._multilayer_perceptron": "MLPClassifier",
    "sklearn.neural_network._stochastic_optimizers": "AdamOptimizer SGDOptimizer",
    "numpy": "ndarray dtype int32 int64 float32 float64 bool bool_",
    "numpy._core.multiarray": "_reconstruct scalar",
    "numpy.core.multiarray": "_reconstruct scalar",
    "numpy._core.numeric": "_frombuffer",
    "numpy.core.numeric": "_frombuffer",
    "numpy.random": "MT19937",
    "numpy.random.mtrand": "RandomState",
    "numpy.random._mt19937": "MT19937",
    "numpy.random._pickle": "__randomstate_ctor __bit_generator_ctor",
    "numpy.random.bit_generator": "SeedSequence __pyx_unpickle_SeedSequence",
    "joblib.numpy_pickle": "NumpyArrayWrapper",
    "copyreg": "_reconstructor",
    "copy_reg": "_reconstructor",
    "builtins": "object",
    "__builtin__": "object",
    "_codecs": "encode",
}
_NAMES = frozenset(f"{module}.{name}" for module, names in _MODULES.items() for name in names.split())


@dataclass(frozen=True)
class _Name:
    """What a file names: text."""

    name: str


@dataclass(eq=False)
class Part:
    """An object of a file.

    kind : its full class or function name. args, state : what it was to be made with, and hold.
    """

    kind: str
    args: tuple[Any, ...] = ()
    state: dict[str, Any] = field(default_factory=dict)
    array: NDArray[Any] | None = None


def _named(name: str) -> _Name:
    if name not in _NAMES:
        raise UsageError(f"holds {name[:100]!r}; allowed: {ALLOWED_MODELS}")
    return _Name(name)


class _Reader(pickle._Unpickler):
    """Opcodes of values and containers as they are; those that would make or call something make a `Part`."""

    dispatch: ClassVar[dict[int, Callable[..., None]]] = dict(pickle._Unpickler.dispatch)
    stack: list[Any]
    for _code in b"".join((pickle.INST, pickle.OBJ, pickle.EXT1, pickle.EXT2, pickle.EXT4)):
        del dispatch[_code]
    for _code in b"".join((pickle.PERSID, pickle.BINPERSID, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER)):
        del dispatch[_code]

    def __init__(self, file: BytesIO) -> None:
        super().__init__(file, encoding="bytes")
        self._bytes = file

    def find_class(self, module: str, name: str) -> Any:
        """A name, not what it names."""
        return _named(f"{module}.{name}")

    def _make(self) -> None:
        args, name = self.stack.pop(), self.stack.pop()
        if not isinstance(name, _Name) or not isinstance(args, tuple):
            raise ValueError("a call of what is no name")
        made: Any = Part(name.name, args)
        if name.name == "_codecs.encode":
            made = args[0].encode("latin-1") if isinstance(args[0], str) and args[1:] in (("latin1",), ()) else None
        elif name.name.endswith("._reconstructor"):
            made = Part(args[0].name) if isinstance(args[0], _Name) else None
        if made is None:
            raise ValueError("a call with other arguments")
        self.stack.append(made)

    def _make_with_names(self) -> None:
        if self.stack.pop():
            raise ValueError("a call with other arguments")
        self._make()

    def _build(self) -> None:
        state, part = self.stack.pop(), self.stack[-1]
        if not isinstance(part, Part):
            raise ValueError("a state of what is no object")
        if isinstance(state, dict):
            part.state = {_text(key): value for key, value in state.items()}
        else:
            part.args = (part.args, state)
        if part.kind == "joblib.numpy_pickle.NumpyArrayWrapper":
            part.array = self._following(part.state)

    def _following(self, state: dict[str, Any]) -> NDArray[Any]:
        """The array whose bytes joblib wrote right after its description."""
        dtype, shape = _dtype(state["dtype"]), _shape(state["shape"])
        if dtype.hasobject:
            return _array(_Reader(self._bytes).load()).reshape(shape)
        if state.get("numpy_array_alignment_bytes") is not None:
            self._bytes.read(self._bytes.read(1)[0])
        data = self._bytes.read(_count(shape) * dtype.itemsize)
        return _numbers(data, dtype, shape, _text(state["order"]) == "F")

    dispatch[pickle.REDUCE[0]] = _make
    dispatch[pickle.NEWOBJ[0]] = _make
    dispatch[pickle.NEWOBJ_EX[0]] = _make_with_names
    dispatch[pickle.BUILD[0]] = _build


def read_pickle(data: bytes) -> Any:
    """What a pickle or joblib file holds, as values and `Part`s.

    Raises
    ------
    UsageError : something outside the list of names, by name; or more than `MAX_BYTES` when unpacked.
    Exception : of any kind, for bytes that are no such file.
    """
    return _Reader(BytesIO(_unpacked(data))).load()


def _unpacked(data: bytes) -> bytes:
    """What joblib compressed."""
    if data[:2] == b"\x1f\x8b" or data[:1] == b"x":
        data = zlib.decompressobj(wbits=47).decompress(data, MAX_BYTES + 1)
    elif data[:3] == b"BZh":
        data = bz2.BZ2Decompressor().decompress(data, MAX_BYTES + 1)
    elif data[:6] == b"\xfd7zXZ\0" or data[:3] == b"\x5d\0\0":
        data = lzma.LZMADecompressor().decompress(data, MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise UsageError(f"holds more than {MAX_BYTES >> 20} MiB; allowed: models up to that size")
    return data


def read_skops(archive: zipfile.ZipFile) -> Any:
    """What a skops file holds, as values and `Part`s; raises as `read_pickle`."""
    return _node(json.loads(archive.read("schema.json")), archive)


def _node(node: dict[str, Any], archive: zipfile.ZipFile) -> Any:
    name, content = f"{node['__module__']}.{node['__class__']}", node.get("content")
    loader = node["__loader__"]
    if loader == "JsonNode":
        return json.loads(str(content))
    if loader == "NdArrayNode":
        return _skops_array(_named(name), node, archive)
    if loader in ("ListNode", "TupleNode") and name in ("builtins.list", "builtins.tuple"):
        values = [_node(item, archive) for item in content or ()]
        return values if loader == "ListNode" else tuple(values)
    if loader == "DictNode" and name == "builtins.dict":
        return {key: _node(item, archive) for key, item in (content or {}).items()}
    _named(name)
    if loader != "ObjectNode":  # such as a random state: there, and not looked at
        return Part(name)
    state = _node(content, archive) if content else {}
    return Part(name, state=state if isinstance(state, dict) else {})


def _skops_array(name: _Name, node: dict[str, Any], archive: zipfile.ZipFile) -> Any:
    if node["type"] == "json":
        values = [_node(item, archive) for item in node["content"]]
        return _objects(values, _shape(_node(node["shape"], archive)))
    array = np.load(BytesIO(archive.read(node["file"])), allow_pickle=False)
    _dtype(array.dtype.str)
    return array if name.name == "numpy.ndarray" else array[()]


# ---- values of parts


def array_of(value: Any) -> NDArray[Any]:
    """An array, or a number as one of no dimension.  Raises `ValueError` for anything else."""
    if isinstance(value, (bool, int, float, np.generic)):
        return np.asarray(value)
    return _array(value)


def _array(value: Any) -> NDArray[Any]:
    if isinstance(value, np.ndarray):
        return value
    if not isinstance(value, Part):
        raise ValueError("something else where an array belongs")
    if value.array is not None:
        return value.array
    if value.kind.endswith("._reconstruct"):
        _, (_, shape, dtype, fortran, data) = value.args
        return _from(data, _dtype(dtype), _shape(shape), bool(fortran))
    if value.kind.endswith("._frombuffer"):
        data, dtype, shape, order, *_ = value.args
        return _from(data, _dtype(dtype), _shape(shape), _text(order) == "F")
    if value.kind.endswith(".scalar"):
        dtype, data = value.args
        return _from(data, _dtype(dtype), (), False)
    raise ValueError("something else where an array belongs")


def _from(data: Any, dtype: np.dtype[Any], shape: tuple[int, ...], fortran: bool) -> NDArray[Any]:
    if dtype.hasobject:
        return _objects(data, shape)
    if not isinstance(data, (bytes, bytearray)):
        raise ValueError("an array without bytes")
    return _numbers(bytes(data), dtype, shape, fortran)


def _numbers(data: bytes, dtype: np.dtype[Any], shape: tuple[int, ...], fortran: bool) -> NDArray[Any]:
    if len(data) != _count(shape) * dtype.itemsize:
        raise ValueError("an array with bytes for another shape")
    return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C") if data else np.zeros(shape, dtype)


def _objects(values: Any, shape: tuple[int, ...]) -> NDArray[Any]:
    """An array of objects, all of them text or numbers."""
    if not isinstance(values, list) or not all(isinstance(value, (str, int, float)) for value in values):
        raise ValueError("an array of other objects than text and numbers")
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array.reshape(shape)


def _dtype(value: Any) -> np.dtype[Any]:
    """A type of numbers or text from its description, at a byte order that a state may give."""
    order = ""
    if isinstance(value, Part) and value.kind == "numpy.dtype":
        args = value.args
        if len(args) == 2 and isinstance(args[0], tuple):
            args, state = args
            order = _text(state[1])
            if any(part is not None for part in state[2:5]):
                raise ValueError("an array of structures")
        value = args[0]
    text = _text(value)
    if _DTYPE.fullmatch(text) is None or order not in ("", "<", ">", "|", "="):
        raise ValueError(f"an array of {text[:20]!r}")
    dtype = np.dtype("O" if text[:1] == "O" or text[1:2] == "O" else text)
    return dtype.newbyteorder(order) if order in ("<", ">") else dtype  # type: ignore[arg-type]


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode("ascii")
    if not isinstance(value, str):
        raise ValueError("something else where text belongs")
    return value


def _shape(value: Any) -> tuple[int, ...]:
    if not isinstance(value, tuple) or not all(type(n) is int and n >= 0 for n in value):
        raise ValueError("an array of no shape")
    _count(value)
    return value


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for n in shape:
        count *= n
    if count > _MAX_VALUES:
        raise ValueError("an array too large")
    return count
