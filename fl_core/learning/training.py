"""One party's share of a round: local training, with or without DP, and evaluation.

What leaves is `delta`, the change of the weights; what is drawn at random is drawn from the seed of (job,
party, round) alone, so that a round repeats bit for bit. DP noise and DP sampling come from `noise`, in
production the operating system.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any, Union

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from fl_core.crypto.noise import NoiseStream
from fl_core.errors import TrainingDiverged
from fl_core.job import Train
from fl_core.learning.models import get_vector, set_vector
from fl_core.learning.privacy import Plan

Vector = NDArray[np.float64]
Array = Union[NDArray[Any], torch.Tensor]  # noqa: UP007
_EVALUATION_ROWS = 1024
_SAMPLE_GRADIENT_FLOATS = 1 << 26  # per-sample gradients held at a time: 256 MB


@dataclasses.dataclass(frozen=True, eq=False)
class TrainResult:
    """delta: (P,) float64, trained weights minus global ones; loss: mean over the rows seen, of the last
    epoch."""

    delta: Vector
    num_examples: int
    loss: float


@dataclasses.dataclass(frozen=True)
class EvalResult:
    """Sums over the rows, so that parties can be pooled: correct predictions and cross-entropy (nats)."""

    num_examples: int
    correct: int
    loss_sum: float


@contextlib.contextmanager
def _repeatable(seed: int) -> Iterator[None]:
    """One thread (sums in one order) and torch's random state of this seed; both are put back."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(threads)


def _device(name: str) -> torch.device:
    return torch.device("cuda" if name == "auto" and torch.cuda.is_available() else name.replace("auto", "cpu"))


def _tensors(x: Array, y: Array, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    return (
        torch.as_tensor(x, dtype=torch.float32, device=device),
        torch.as_tensor(y, dtype=torch.int64, device=device),
    )


def _optimizer(model: nn.Module, train: Train) -> torch.optim.Optimizer:
    parameters = [p for p in model.parameters() if p.requires_grad]
    if train.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=train.learning_rate, weight_decay=train.weight_decay)
    return torch.optim.SGD(parameters, lr=train.learning_rate, momentum=train.momentum, weight_decay=train.weight_decay)


def local_train(model: nn.Module, x: Array, y: Array, train: Train, *, seed: int, global_vector: Vector) -> TrainResult:
    """Train from the global weights on a party's rows; the optimiser starts fresh.

    Parameters
    ----------
    x, y : (n, *input_shape) float32 and (n,) int64. With n = 0 the update is zero.
    train : epochs, batch size, optimiser; `fedprox` adds proximal_mu/2 · ||w - w_global||² to the loss.
    seed : `derive_seed(job.seed, party, round)`; decides shuffling and dropout.
    global_vector : (P,) float64, the weights the round starts from; what `model` held before does not matter.

    Raises
    ------
    TrainingDiverged : the weights or the loss are no longer finite.
    """
    if len(y) == 0:
        return TrainResult(np.zeros_like(global_vector), 0, 0.0)
    device = _device(train.device)
    with _repeatable(seed):
        set_vector(model, global_vector)
        model.to(device).train()
        rows, labels = _tensors(x, y, device)
        anchors = [p.detach().clone() for p in model.parameters()] if train.strategy == "fedprox" else []
        optimizer = _optimizer(model, train)
        order = torch.Generator().manual_seed(seed)
        parameters = list(model.parameters())
        loss_sum = 0.0
        for _ in range(train.local_epochs):
            loss_sum = 0.0
            for batch in torch.randperm(len(labels), generator=order).to(device).split(train.batch_size):
                optimizer.zero_grad()
                batch_loss = functional.cross_entropy(model(rows[batch]), labels[batch])
                loss_sum += batch_loss.item() * len(batch)
                batch_loss.backward()
                if anchors:
                    _pull(parameters, anchors, train.proximal_mu)
                optimizer.step()
        model.to("cpu")
    loss = loss_sum / len(labels)
    return TrainResult(_finite(get_vector(model) - global_vector, loss, train), len(labels), loss)


def _pull(parameters: list[nn.Parameter], anchors: list[torch.Tensor], mu: float) -> None:
    """FedProx: add the gradient of mu/2 · ||w - anchors||²."""
    for p, anchor in zip(parameters, anchors, strict=True):
        if p.grad is not None:
            p.grad += mu * (p.detach() - anchor)


def _finite(delta: Vector, loss: float, train: Train) -> Vector:
    if not (np.isfinite(delta).all() and np.isfinite(loss)):
        raise TrainingDiverged(
            f"the update is not finite after local training with learning_rate {train.learning_rate:g}; "
            "try a smaller one"
        )
    return delta


def local_train_dp(
    model: nn.Module,
    x: Array,
    y: Array,
    train: Train,
    *,
    plan: Plan,
    max_grad_norm: float,
    noise: NoiseStream,
    global_vector: Vector,
    seed: int = 0,
) -> TrainResult:
    """Train with DP-SGD (Abadi et al. 2016, arXiv 1607.00133; per-sample gradients by Opacus).

    Every step draws a Poisson sample of rate q, clips **each row's gradient over all parameters together** to
    L2 norm `max_grad_norm`, sums, adds N(0, (σ·max_grad_norm)²) to each coordinate, divides by the *expected*
    batch size q·n, and takes an optimiser step. An empty sample is a step as well: it adds noise.

    The guarantee: the updates of all planned rounds together are (target_epsilon, target_delta)-DP for adding
    or removing one row of this party, against anyone who sees every update in the clear. It holds when
    `noise` is secret and unpredictable (the operating system's), every step is committed to the accountant,
    and one update a round leaves. It does not cover n, the loss, evaluation results, or standardisation by
    exact pooled sums; a person with k rows has the guarantee of a group of k.

    Parameters
    ----------
    x, y, train, seed, global_vector : as for `local_train`; `batch_size` is in `plan` already. `seed` decides
        dropout only, and with fedprox the pull is added after the noise: it is a function of released
        weights.
    plan : `plan_dp_sgd(train, privacy, n)`.
    max_grad_norm : L2 bound of one row's gradient.

    Returns
    -------
    TrainResult : `loss` is the mean over all sampled rows, 0 if none was drawn; it may be infinite or NaN.

    Raises
    ------
    JobFileError : Opacus cannot treat a layer row by row. TrainingDiverged : the weights are no longer
        finite.
    """
    from fl_core.learning.dp_optimizer import NoisyOptimizer, dp_step, per_sample_gradients

    device = _device(train.device)
    with _repeatable(seed):
        set_vector(model, global_vector)
        model.to(device).train()
        rows, labels = _tensors(x, y, device)
        optimizer = NoisyOptimizer(
            _optimizer(model, train),
            noise_multiplier=plan.noise_multiplier,
            max_grad_norm=max_grad_norm,
            expected_batch_size=plan.sample_rate * len(labels),
            noise=noise,
        )
        if train.strategy == "fedprox":
            anchors = [p.detach().clone() for p in optimizer.params]
            optimizer.attach_step_hook(lambda o: _pull(o.params, anchors, train.proximal_mu))
        chunk = max(1, _SAMPLE_GRADIENT_FLOATS // len(global_vector))
        loss_sum, seen = 0.0, 0
        with per_sample_gradients(model, x.shape[1:]) as wrapped:
            for _ in range(plan.steps_per_round):
                mask = noise.bernoulli_mask(len(labels), plan.sample_rate)
                sample = torch.from_numpy(np.flatnonzero(mask)).to(device)
                loss_sum += dp_step(wrapped, optimizer, rows[sample], labels[sample], chunk=chunk)
                seen += len(sample)
        model.to("cpu")
    # Only the weights, which are covered, decide whether the run goes on.
    delta = _finite(get_vector(model) - global_vector, 0.0, train)
    return TrainResult(delta, len(labels), loss_sum / max(1, seen))


def client_dp(delta: Vector, *, clipping_norm: float, noise_multiplier: float, noise: NoiseStream) -> Vector:
    """Clip a party's whole update and add Gaussian noise (McMahan et al. 2018, arXiv 1710.06963, noise at the
    party).

    The norm is L2 over all parameters of one update; noise is N(0, (noise_multiplier · clipping_norm)²) on
    each coordinate. The guarantee is for the party's update as a whole against its absence (a zero update),
    with one release a round, rate 1; for one update exchanged for another, the noise multiplier counts half.
    It holds against anyone who sees this update alone, under the conditions of `local_train_dp` on `noise`.

    Parameters
    ----------
    delta : (P,) float64, finite.

    Raises
    ------
    TrainingDiverged : `delta` is not finite.
    """
    norm = float(np.linalg.norm(delta))
    if not np.isfinite(norm):
        raise TrainingDiverged("the update to be clipped is not finite")
    clipped = delta * min(1.0, clipping_norm / norm) if norm > 0 else delta
    return np.asarray(clipped + noise.gaussian(len(delta), noise_multiplier * clipping_norm))


def evaluate(model: nn.Module, x: Array, y: Array) -> EvalResult:
    """Count correct predictions and sum the loss over the rows, on the CPU; no rows give zeros.

    Raises
    ------
    TrainingDiverged : the loss is not finite.
    """
    was_training = model.training
    model.eval()
    correct, loss_sum = 0, 0.0
    with _repeatable(0), torch.no_grad():
        rows, labels = _tensors(x, y, torch.device("cpu"))
        for batch, expected in zip(rows.split(_EVALUATION_ROWS), labels.split(_EVALUATION_ROWS), strict=True):
            if len(batch):
                logits = model(batch)
                correct += int((logits.argmax(dim=1) == expected).sum())
                loss_sum += float(functional.cross_entropy(logits.double(), expected, reduction="sum"))
    model.train(was_training)
    if not np.isfinite(loss_sum):
        raise TrainingDiverged("the loss on the held-out rows is not finite")
    return EvalResult(len(labels), correct, loss_sum)
