"""Split networks: each party's part of one model, its settings, and what is kept of it.

A party's bottom model turns its features into an embedding; the active party's top model turns all embeddings, its own
first and then the passive parties' in the job's order, into outputs.  Initial weights are derived from the job's seed
and the party's name, and are not secret.  Parts are kept as arrays and plain values: reading them can run no code.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fl_core.errors import DataError, JobFileError
from fl_core.learning.gradient_protection import PROTECTIONS
from fl_core.learning.seeds import derive_seed

if TYPE_CHECKING:
    import torch
    from torch import nn

Arrays = dict[str, NDArray[Any]]
Shape = tuple[int, ...]
OBJECTIVES = ("binary", "multiclass", "regression")
_FORMAT = "fedseal-split/1"
_OPTIMIZER, _BEST = "optimizer.", "best."


@dataclass(frozen=True)
class SplitSettings:
    """How a split network is built and trained; the same at all parties.

    Attributes
    ----------
    optimizer : `adam` or `sgd`, which alone looks at `momentum`.
    hidden : widths of a bottom model's hidden layers, for tables.
    channels : of a bottom model's 3x3 convolutions, each followed by 2x2 pooling, for pictures.
    embedding : values that a passive party sends of a row.
    top_hidden : widths of the top model's hidden layers.
    gradient : protection of returned gradients, see `fl_core.learning.gradient_protection`.
    gradient_power : of `marvell`.
    clipping_norm : L2 bound of a row's embedding, where there is noise.
    noise_multiplier : standard deviation of the noise on embeddings over `clipping_norm`; None for neither.
    early_stopping : epochs without a better loss on the validation rows after which to stop; 0 for never.
    class_weight : of each class in the loss; empty for all alike.
    l2 : weight decay of all parameters.
    device : `cpu`, `cuda` or `auto`.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    optimizer: str = "adam"
    momentum: float = 0.9
    hidden: tuple[int, ...] = (64,)
    channels: tuple[int, ...] = (16, 32)
    embedding: int = 64
    top_hidden: tuple[int, ...] = (64,)
    gradient: str = "none"
    gradient_power: float = 4.0
    clipping_norm: float = 1.0
    noise_multiplier: float | None = None
    early_stopping: int = 0
    class_weight: tuple[float, ...] = ()
    l2: float = 0.0
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name, allowed in (("optimizer", ("adam", "sgd")), ("gradient", PROTECTIONS), ("device", _DEVICES)):
            if getattr(self, name) not in allowed:
                raise JobFileError(f"vertical.{name}", repr(getattr(self, name)), allowed=" | ".join(allowed))
        for name in ("epochs", "batch_size", "embedding"):
            _check(name, getattr(self, name) >= 1, getattr(self, name), "1 or more")
        for name in ("hidden", "channels", "top_hidden"):
            _check(name, all(width >= 1 for width in getattr(self, name)), getattr(self, name), "widths of 1 or more")
        for name in ("learning_rate", "gradient_power", "clipping_norm"):
            _check(name, _positive(getattr(self, name)), getattr(self, name), "a number above 0")
        sigma = self.noise_multiplier
        _check("noise_multiplier", sigma is None or _positive(sigma), sigma, "a number above 0")
        _check("early_stopping", self.early_stopping >= 0, self.early_stopping, "0 or more")
        _check("class_weight", all(map(_positive, self.class_weight)), self.class_weight, "numbers above 0")
        _check("l2", self.l2 == 0.0 or _positive(self.l2), self.l2, "0 or more")
        _check("momentum", 0.0 <= self.momentum < 1.0, self.momentum, "0 to below 1")


_DEVICES = ("cpu", "cuda", "auto")


def _positive(value: float) -> bool:
    return math.isfinite(value) and value > 0.0


def _check(name: str, good: bool, value: object, allowed: str) -> None:
    if not good:
        raise JobFileError(f"vertical.{name}", f"{value!r}", allowed=allowed)


@dataclass(frozen=True, eq=False)
class SplitPart:
    """One party's part of a split network, on the CPU.

    Attributes
    ----------
    input_shape : of this party's rows, (d,), (h, w) or (c, h, w); None for an active party without features.
    bottom : (n, *input_shape) to (n, embedding) in [-1, 1].
    top : (n, embeddings · embedding) to (n, outputs); None at a passive party.
    embeddings : that the top model takes; 0 at a passive party.
    objective, outputs : of the top model; "" and 0 at a passive party.
    mean, scale : of a regression's target: outputs times `scale` plus `mean` are predictions.
    """

    settings: SplitSettings
    input_shape: Shape | None
    bottom: nn.Module | None
    top: nn.Module | None = None
    embeddings: int = 0
    objective: str = ""
    outputs: int = 0
    mean: float = 0.0
    scale: float = 1.0

    @property
    def modules(self) -> dict[str, nn.Module]:
        """The modules that are there, by name."""
        both = {"bottom": self.bottom, "top": self.top}
        return {name: module for name, module in both.items() if module is not None}

    def parameters(self) -> dict[str, torch.Tensor]:
        """All weights by name, in one order."""
        return {f"{name}.{key}": p for name, module in self.modules.items() for key, p in module.named_parameters()}

    def to_arrays(self) -> Arrays:
        """The weights, float32, by name."""
        return {name: p.detach().cpu().numpy().copy() for name, p in self.parameters().items()}

    def describe(self) -> dict[str, Any]:
        """All but the weights, as values that JSON has."""
        return {
            "format": _FORMAT,
            "settings": {k: list(v) if isinstance(v, tuple) else v for k, v in vars(self.settings).items()},
            "input_shape": None if self.input_shape is None else list(self.input_shape),
            **{name: getattr(self, name) for name in ("embeddings", "objective", "outputs", "mean", "scale")},
        }

    @classmethod
    def from_arrays(cls, described: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> SplitPart:
        """What `describe` and `to_arrays` gave.

        Raises
        ------
        DataError : it is something else, or the weights do not fit it.
        """
        try:
            if described["format"] != _FORMAT:
                raise DataError("model", f"format {str(described['format'])[:40]!r}", allowed=_FORMAT)
            settings: dict[str, Any]
            settings = {k: tuple(v) if isinstance(v, list) else v for k, v in described["settings"].items()}
            shape = described["input_shape"]
            part = build_part(
                SplitSettings(**settings),
                None if shape is None else tuple(map(int, shape)),
                party="",
                **{name: described[name] for name in ("embeddings", "objective", "outputs", "mean", "scale")},
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            problem = f"its description cannot be read ({type(error).__name__})"
            raise DataError("model", problem, allowed="what was saved, unchanged") from error
        set_weights(part.parameters(), arrays)
        return part


def build_part(
    settings: SplitSettings,
    input_shape: Shape | None,
    *,
    party: str,
    embeddings: int = 0,
    objective: str = "",
    outputs: int = 0,
    mean: float = 0.0,
    scale: float = 1.0,
) -> SplitPart:
    """A party's part with its initial weights; with `embeddings` above 0 it has a top model.

    torch works with one thread from here on, so that sums repeat.

    Raises
    ------
    DataError : rows of a shape that no bottom model takes.
    """
    import torch

    torch.set_num_threads(1)

    def random(purpose: str) -> torch.Generator:
        return torch.Generator().manual_seed(derive_seed(settings.seed, "split", party, purpose))

    bottom = top = None
    if input_shape is not None:
        bottom = _bottom(input_shape, settings, random("bottom")).to(memory_format=torch.channels_last)
    if embeddings:
        top = _dense((embeddings * settings.embedding, *settings.top_hidden, outputs), random("top"))
    return SplitPart(settings, input_shape, bottom, top, embeddings, objective, outputs, mean, scale)


def _bottom(shape: Shape, settings: SplitSettings, random: torch.Generator) -> nn.Module:
    from torch import nn

    if not 1 <= len(shape) <= 3 or min(shape) < 1:
        raise DataError("features", f"rows of shape {shape}", allowed="(d,), (h, w) or (c, h, w)")
    if len(shape) == 1:
        return nn.Sequential(_dense((*shape, *settings.hidden, settings.embedding), random), nn.Tanh())
    size, high, wide = shape if len(shape) == 3 else (1, *shape)
    layers: list[nn.Module] = [nn.Unflatten(1, (1, high))] if len(shape) == 2 else []
    for channels in settings.channels:
        layers.append(_drawn(nn.Conv2d, size, channels, 3, random=random, padding=1))
        layers += [nn.MaxPool2d(2, ceil_mode=True), nn.ReLU()]  # the same as ReLU first, on a quarter of the values
        size, high, wide = channels, -(-high // 2), -(-wide // 2)
    return nn.Sequential(*layers, nn.Flatten(), _dense((size * high * wide, settings.embedding), random), nn.Tanh())


def _dense(widths: Sequence[int], random: torch.Generator) -> nn.Module:
    """Linear layers with ReLU between them."""
    from torch import nn

    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [_drawn(nn.Linear, before, after, random=random), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def _drawn(kind: type[nn.Module], *sizes: int, random: torch.Generator, **options: int) -> nn.Module:
    """A layer with torch's usual initial weights, drawn from `random` and not from torch's own state."""
    import torch
    from torch import nn
    from torch.nn.utils import skip_init

    layer = skip_init(kind, *sizes, **options)
    bound = 1.0 / math.sqrt(layer.weight[0].numel())
    with torch.no_grad():
        for p in layer.parameters():
            nn.init.uniform_(p, -bound, bound, generator=random)
    return layer


def set_weights(parameters: Mapping[str, torch.Tensor], arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write arrays into the weights of the same names.

    Raises
    ------
    DataError : other names, shapes or types, or values that are not finite.
    """
    import torch

    shapes = {name: (tuple(p.shape), "float32") for name, p in parameters.items()}
    if {name: (a.shape, str(a.dtype)) for name, a in arrays.items()} != shapes:
        raise DataError("model", "its weights are not those of its settings", allowed="what was saved, unchanged")
    if not all(np.isfinite(a).all() for a in arrays.values()):
        raise DataError("model", "its weights are not finite", allowed="finite numbers")
    with torch.no_grad():
        for name, p in parameters.items():
            p.copy_(torch.from_numpy(np.array(arrays[name])))


class Learner:
    """A part in training: weights, optimiser, and the best weights so far, as arrays and back.

    part : moved to the device of its settings.
    """

    def __init__(self, part: SplitPart) -> None:
        import torch

        self.part, settings = part, part.settings
        self.device = find_device(settings.device)
        for module in part.modules.values():
            module.to(self.device)
        self._weights = part.parameters()
        self._best: Arrays = {}
        weights = list(self._weights.values())
        self._optimizer: torch.optim.Optimizer
        if settings.optimizer == "adam":
            self._optimizer = torch.optim.Adam(weights, lr=settings.learning_rate, weight_decay=settings.l2)
        else:
            self._optimizer = torch.optim.SGD(
                weights, lr=settings.learning_rate, momentum=settings.momentum, weight_decay=settings.l2
            )

    def step(self) -> None:
        """Apply the gradients that the weights hold, and forget them."""
        self._optimizer.step()
        self._optimizer.zero_grad()

    def keep(self) -> None:
        """These are the best weights so far."""
        self._best = self.part.to_arrays()

    def finish(self) -> SplitPart:
        """The part on the CPU, with its best weights where some were kept."""
        if self._best:
            set_weights(self._weights, self._best)
        for module in self.part.modules.values():
            module.to("cpu")
        return self.part

    def to_arrays(self) -> Arrays:
        """All that training goes on from."""
        arrays = self.part.to_arrays()
        for name, p in self._weights.items():
            for key, value in self._optimizer.state[p].items():
                if value is not None:
                    arrays[f"{_OPTIMIZER}{key}:{name}"] = value.detach().cpu().numpy().copy()
        return arrays | {_BEST + name: value for name, value in self._best.items()}

    def load(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Go on from what `to_arrays` gave.

        Raises
        ------
        DataError : it is of another model.
        """
        import torch

        set_weights(self._weights, {k: v for k, v in arrays.items() if not k.startswith((_OPTIMIZER, _BEST))})
        self._best = {k.removeprefix(_BEST): v for k, v in arrays.items() if k.startswith(_BEST)}
        for full, value in arrays.items():
            if full.startswith(_OPTIMIZER):
                key, name = full.removeprefix(_OPTIMIZER).split(":", 1)
                p = self._weights.get(name)
                if p is None or value.shape not in ((), tuple(p.shape)):
                    raise DataError("model", "the optimiser's state is of another model", allowed="what was kept")
                device = "cpu" if key == "step" else self.device
                self._optimizer.state[p][key] = torch.from_numpy(np.array(value)).to(device)


def find_device(name: str) -> torch.device:
    """The device of a job's `device`."""
    import torch

    return torch.device("cuda" if name == "auto" and torch.cuda.is_available() else name.replace("auto", "cpu"))


def row_losses(objective: str, outputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Loss of each row, (m,): cross-entropy in nats, or the squared error.

    Parameters
    ----------
    outputs : (m, outputs). target : (m,), int64 for `multiclass`, else float32.
    """
    from torch.nn import functional

    if objective == "multiclass":
        return functional.cross_entropy(outputs, target, reduction="none")
    if objective == "binary":
        return functional.binary_cross_entropy_with_logits(outputs[:, 0], target, reduction="none")
    return (outputs[:, 0] - target) ** 2
