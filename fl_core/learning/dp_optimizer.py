"""DP-SGD's optimiser step on Opacus, with randomness of our own choosing.

Opacus draws its noise from torch's generator, and its secure mode needs a package that is not to be had. Here
noise comes from a `NoiseStream`, and a sample whose gradient is not finite counts as zero instead of ending the
run: whether a run ends then depends on released weights only.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from opacus import GradSampleModule
from opacus.optimizers import DPOptimizer
from opacus.validators import ModuleValidator
from torch import nn
from torch.nn import functional

from fl_core.crypto.noise import NoiseStream
from fl_core.errors import JobFileError


class NoisyOptimizer(DPOptimizer):
    """Opacus' DPOptimizer whose Gaussian noise comes from `noise`, one draw a step for all parameters."""

    def __init__(self, optimizer: torch.optim.Optimizer, *, noise: NoiseStream, **settings: Any) -> None:
        super().__init__(optimizer, loss_reduction="mean", **settings)
        self.noise = noise

    def clip_and_accumulate(self) -> None:
        """Clip each sample's gradient to `max_grad_norm` and add it to the sum."""
        for gradients in self.grad_samples:
            torch.nan_to_num_(gradients, nan=0.0, posinf=0.0, neginf=0.0)
        super().clip_and_accumulate()

    def add_noise(self) -> None:
        """Set each `p.grad` to the clipped sum plus N(0, (noise_multiplier · max_grad_norm)²)."""
        std = self.noise_multiplier * self.max_grad_norm
        drawn = torch.from_numpy(self.noise.gaussian(sum(p.numel() for p in self.params), std))
        for p, part in zip(self.params, drawn.split([p.numel() for p in self.params]), strict=True):
            p.grad = p.summed_grad + part.to(p).reshape(p.shape)


@contextlib.contextmanager
def per_sample_gradients(model: nn.Module, row_shape: Sequence[int]) -> Iterator[GradSampleModule]:
    """The model with Opacus' hooks in place; they are gone at the end.

    Raises
    ------
    JobFileError : a layer that Opacus cannot treat row by row (with its reason), or a model that mixes rows.
    """
    problems: list[Exception] = ModuleValidator.validate(model, strict=False)
    if not problems:
        _check_rows_apart(model, row_shape)
        try:
            wrapped = GradSampleModule(model, loss_reduction="sum")
        except NotImplementedError as error:
            problems = [error]
    if problems:
        reason = "; ".join(str(p).splitlines()[0] for p in problems)
        problem = f"not with privacy.mechanism = 'dp-sgd': {reason}"
        raise JobFileError("model.name", problem, allowed="other layers")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Full backward hook is firing")
            yield wrapped
    finally:
        wrapped.to_standard_module()


def _check_rows_apart(model: nn.Module, row_shape: Sequence[int]) -> None:
    """Refuse a model whose output for a row depends on other rows: clipping a row would bound nothing.

    Looks at two random rows, alone and together, outside training mode; layers that mix rows in training
    only, such as batch norm, Opacus knows by name.
    """
    device = next(model.parameters()).device
    rows = torch.randn(2, *row_shape, generator=torch.Generator().manual_seed(0)).to(device)
    model.eval()
    with torch.no_grad():
        together, alone = model(rows)[:1], model(rows[:1])
    model.train()
    if not torch.allclose(together, alone, rtol=1e-3, atol=1e-5, equal_nan=True):
        problem = "with privacy.mechanism = 'dp-sgd' a row's output must not depend on other rows"
        raise JobFileError("model.name", problem, allowed="a model that treats each row by itself")


def dp_step(
    model: GradSampleModule, optimizer: NoisyOptimizer, x: torch.Tensor, y: torch.Tensor, *, chunk: int
) -> float:
    """One step on the sampled rows, `chunk` rows at a time in memory; returns the sum of their losses.

    Without rows the gradient is noise alone.
    """
    loss_sum = 0.0
    chunks = list(zip(x.split(chunk), y.split(chunk), strict=True))
    optimizer.zero_grad()
    for i, (rows, labels) in enumerate(chunks):
        if len(rows):
            loss = functional.cross_entropy(model(rows), labels, reduction="sum")
            loss.backward()
            loss_sum += loss.item()
            _check_gradients(model)
        else:
            for p in optimizer.params:
                p.grad_sample = p.new_zeros((0, *p.shape))
        optimizer.signal_skip_step(do_skip=i + 1 < len(chunks))
        optimizer.step()
        optimizer.zero_grad()
    return loss_sum


def _check_gradients(model: GradSampleModule) -> None:
    for name, p in model.named_parameters():
        if p.requires_grad and p.grad_sample is None:
            raise JobFileError(
                "model.name",
                f"parameter {name.removeprefix('_module.')!r} has no gradient of its own for each row",
                allowed="with dp-sgd, parameters of layers that the model calls",
            )
