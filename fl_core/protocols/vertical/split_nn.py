"""A split network over the parties' columns: bottom models at all, the top model and the labels at one.

Gupta and Raskar 2018 (arXiv 1810.06060).  For each minibatch every passive party sends its rows' embeddings, the active
party computes the loss and returns the gradient with respect to each; all update their own part.  After every epoch
the embeddings of validation and test rows follow, and the active party says whether to go on.

Who learns what
---------------
Active party: every passive party's embedding of every row, once an epoch and each time rows are scored.  They cluster
by label and carry whatever the bottom model passes on of the features; with `noise_multiplier` they are clipped and
noised, and `fl_core.learning.gradient_protection` says what that guarantees and what it does not.  Passive party: the
gradients of its embeddings, a row in every epoch.  Unprotected they give the labels away by norm and direction (Li et
al. 2021, 2102.08504), and so do clusters among its own embeddings (Sun et al. 2022, 2203.01451): a passive party with
a few labels of its own can complete its bottom model to a classifier.  `gradient` makes the first harder, a batch at a
time; nothing here stops the second.  It also learns in which epochs the validation loss fell.  The coordinator and the
exchange: sizes, epochs, nothing of values.

Honest-but-curious parties.  **Values are not protected by cryptography**: what the others see, they see in the clear,
and no bound on what it tells is claimed beyond the noise's.  Passive parties that collude add up what each has seen; an
active party that deviates can choose gradients that make a bottom model pass on more (feature-space hijacking).
Against each other passive parties send nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_core.channel import Channel
from fl_core.crypto.noise import NoiseStream, OsStream
from fl_core.errors import BadFrame, DataError, JobFileError
from fl_core.learning.gradient_protection import GradientProtection
from fl_core.learning.scores import accuracy, auc, rmse
from fl_core.learning.seeds import generator
from fl_core.learning.split_models import (
    OBJECTIVES,
    Arrays,
    Learner,
    SplitPart,
    SplitSettings,
    build_part,
    row_losses,
)
from fl_core.protocols.vertical.course import Course, Rows, Split
from fl_core.protocols.vertical.split_messages import (
    Features,
    diverged,
    embed,
    predict,
    recv_embedding,
    recv_floats,
    send_embedding,
    send_floats,
    send_rows,
)

_EMBEDDING, _GRADIENT, _VERDICT = "split embedding", "split gradient", "split verdict"
_STOP, _BETTER = 1, 2


def train_active(
    channel: Channel,
    passives: Sequence[str],
    x: Features | None,
    y: NDArray[Any],
    objective: str,
    outputs: int,
    split: Split,
    settings: SplitSettings,
    *,
    course: Course,
    noise: NoiseStream | None = None,
) -> SplitPart:
    """The part of the party that has the labels.

    Parameters
    ----------
    passives : the others, in the job's order.
    x : (n, d), (n, h, w) or (n, c, h, w) float32, finite, or None for no features of its own; n are the common rows.
    y : (n,) 0 or 1 for `binary`, whole numbers below `outputs` for `multiclass`, finite numbers for `regression`.
    outputs : classes for `multiclass`, else 1.
    course : is told `loss`, the mean over the training rows (of a regression: of targets standardised), `valid_loss`
        where there is early stopping, and `auc`, `accuracy` or `rmse` of the test rows.
    noise : of the gradient protection; the operating system's unless given.

    Returns
    -------
    SplitPart, with early stopping that of the best epoch at all parties.

    Raises
    ------
    DataError, JobFileError : the data or the settings do not fit. BadFrame : a peer's message is not allowed.
    TrainingDiverged : the loss is no longer finite.
    """
    _check_split(split, len(y), settings)
    _check_target(y, objective, outputs, settings)
    mean, scale = _moments(y[split.train]) if objective == "regression" else (0.0, 1.0)
    shape = None if x is None else _input_shape(x, len(y))
    part = build_part(
        settings,
        shape,
        party=channel.me,
        embeddings=len(passives) + (x is not None),
        objective=objective,
        outputs=outputs,
        mean=mean,
        scale=scale,
    )
    return _Active(channel, passives, x, y, split, part, noise or OsStream()).run(course)


def train_passive(
    channel: Channel,
    active: str,
    x: Features,
    split: Split,
    settings: SplitSettings,
    *,
    course: Course,
    noise: NoiseStream | None = None,
) -> SplitPart:
    """The part of a party that has features only; parameters as for `train_active`.

    noise : on the embeddings; the operating system's unless given.
    """
    _check_split(split, len(x), settings)
    part = build_part(settings, _input_shape(x, len(x)), party=channel.me)
    return _Passive(channel, active, x, split, part, noise or OsStream()).run(course)


def score_active(
    channel: Channel, passives: Sequence[str], part: SplitPart, x: Features | None, rows: Rows
) -> NDArray[np.float64]:
    """Outputs for some rows, at the active party.

    Parameters
    ----------
    passives, x : as in training. rows : positions in the common order, the same at all parties.

    Returns
    -------
    (rows,) logits of the positive class or predicted values, or (rows, outputs) logits.

    Raises
    ------
    DataError : the data do not fit the part. BadFrame : a peer's message is not allowed.
    """
    if (x is None) != (part.bottom is None) or part.embeddings != len(passives) + (x is not None):
        raise DataError("model", "it was trained with other parties or other columns", allowed="the same parties")
    _check_features(part, x, rows)
    outputs = predict(channel, passives, part, x, rows).astype(np.float64) * part.scale + part.mean
    return outputs if part.objective == "multiclass" else outputs[:, 0]


def score_passive(
    channel: Channel, active: str, part: SplitPart, x: Features, rows: Rows, *, noise: NoiseStream | None = None
) -> None:
    """A passive party's part in `score_active`: each row's embedding is released once more."""
    _check_features(part, x, rows)
    send_rows(channel, active, part, x, rows, noise or OsStream())


class _Passive:
    """A passive party in training; `progress` is whether to stop."""

    def __init__(
        self, channel: Channel, active: str, x: Features, split: Split, part: SplitPart, noise: NoiseStream
    ) -> None:
        self._channel, self._active, self._x, self._split, self._noise = channel, active, x, split, noise
        self._part, self._settings, self._learner = part, part.settings, Learner(part)

    def run(self, course: Course) -> SplitPart:
        stopped = False
        if course.begun:
            (stopped,) = map(bool, course.state["progress"])
            self._learner.load(_without_progress(course))
        for epoch in range(course.begun + 1, self._settings.epochs + 1):
            if stopped:
                break
            for rows in _batches(self._settings, self._split, epoch):
                self._step(rows)
            for rows in _evaluated(self._settings, self._split):
                send_rows(self._channel, self._active, self._part, self._x, rows, self._noise)
            verdict = self._channel.recv_exactly(self._active, step=_VERDICT, size=1)[0]
            if verdict & ~(_STOP | _BETTER):
                raise BadFrame(self._active, _VERDICT, f"a verdict of {verdict}")
            if verdict & _BETTER:
                self._learner.keep()
            stopped = bool(verdict & _STOP)
            course.done(epoch, {"progress": np.array([stopped], np.float64), **self._learner.to_arrays()}, {})
        return self._learner.finish()

    def _step(self, rows: Rows) -> None:
        import torch

        part, settings = self._part, self._settings
        sent = embed(part, self._x, rows)
        send_embedding(self._channel, self._active, sent, settings, self._noise, step=_EMBEDDING)
        gradient = recv_floats(self._channel, self._active, len(rows), settings.embedding, step=_GRADIENT)
        sent.backward(torch.from_numpy(gradient).to(self._learner.device))
        self._learner.step()


class _Active:
    """The active party in training; `progress` is the best validation loss, the epochs since, and whether to stop."""

    def __init__(
        self,
        channel: Channel,
        passives: Sequence[str],
        x: Features | None,
        y: NDArray[Any],
        split: Split,
        part: SplitPart,
        noise: NoiseStream,
    ) -> None:
        settings = part.settings
        self._channel, self._passives, self._x, self._y, self._split = channel, passives, x, y, split
        self._part, self._settings, self._learner = part, settings, Learner(part)
        self._protections = [
            GradientProtection(settings.gradient, power=settings.gradient_power, noise=noise) for _ in passives
        ]
        kind = np.int64 if part.objective == "multiclass" else np.float32
        self._target = ((y - part.mean) / part.scale if part.objective == "regression" else y).astype(kind)
        self._weight = np.ones(len(y), np.float32)
        if settings.class_weight:
            self._weight = np.array(settings.class_weight, np.float32)[y.astype(np.int64)]

    def run(self, course: Course) -> SplitPart:
        best, since, stopped = math.inf, 0.0, 0.0
        if course.begun:
            best, since, stopped = (float(v) for v in course.state["progress"])
            self._learner.load(_without_progress(course))
        for epoch in range(course.begun + 1, self._settings.epochs + 1):
            if stopped:
                break
            metrics = {"loss": self._epoch(epoch)}
            outputs = [
                predict(self._channel, self._passives, self._part, self._x, rows)
                for rows in _evaluated(self._settings, self._split)
            ]
            verdict = 0
            if self._settings.early_stopping:
                loss = metrics["valid_loss"] = self._loss(outputs[0], self._split.valid)
                best, since = (loss, 0.0) if loss < best else (best, since + 1)
                stopped = float(since >= self._settings.early_stopping)
                verdict = _STOP * int(stopped) + _BETTER * (since == 0)
            for peer in self._passives:
                self._channel.send(peer, bytes([verdict]), step=_VERDICT)
            if verdict & _BETTER:
                self._learner.keep()
            metrics |= _quality(self._part, outputs[-1], self._y[self._split.test])
            progress = np.array([best, since, stopped])
            course.done(epoch, {"progress": progress, **self._learner.to_arrays()}, metrics)
        return self._learner.finish()

    def _epoch(self, epoch: int) -> float:
        total = weight = 0.0
        for rows in _batches(self._settings, self._split, epoch):
            total += self._step(rows)
            weight += float(self._weight[rows].sum(dtype=np.float64))
        return total / weight

    def _step(self, rows: Rows) -> float:
        """Learn from one batch; its weighted loss, summed."""
        import torch

        device, part = self._learner.device, self._part
        assert part.top is not None
        own = [] if self._x is None else [embed(part, self._x, rows)]
        received = [
            recv_embedding(self._channel, peer, len(rows), self._settings, step=_EMBEDDING) for peer in self._passives
        ]
        theirs = [torch.from_numpy(one).to(device) for one in received]
        leaves = [one.detach().requires_grad_() for one in own + theirs]
        target, weight = (torch.from_numpy(a[rows]).to(device) for a in (self._target, self._weight))
        losses = row_losses(part.objective, part.top(torch.cat(leaves, dim=1)), target) * weight
        total = float(losses.detach().double().sum())
        if not math.isfinite(total):
            raise diverged(self._settings)
        (losses.sum() / weight.sum()).backward()
        gradients = [leaf.grad for leaf in leaves]
        for peer, protection, gradient in zip(self._passives, self._protections, gradients[len(own) :], strict=True):
            assert gradient is not None
            protected = protection.protect(gradient.cpu().numpy(), self._y[rows])
            send_floats(self._channel, peer, protected, step=_GRADIENT)
        for embedding, gradient in zip(own, gradients, strict=False):
            embedding.backward(gradient)
        self._learner.step()
        return total

    def _loss(self, outputs: NDArray[np.float32], rows: Rows) -> float:
        import torch

        target, weight = self._target[rows], self._weight[rows].astype(np.float64)
        losses = row_losses(self._part.objective, torch.from_numpy(outputs), torch.from_numpy(target)).double().numpy()
        loss = float(np.average(losses, weights=weight))
        if not math.isfinite(loss):
            raise diverged(self._settings)
        return loss


def _batches(settings: SplitSettings, split: Split, epoch: int) -> Iterator[Rows]:
    order = generator(settings.seed, "batches", epoch).permutation(split.train)
    for start in range(0, len(order), settings.batch_size):
        yield order[start : start + settings.batch_size]


def _evaluated(settings: SplitSettings, split: Split) -> list[Rows]:
    """Rows whose embeddings follow an epoch."""
    return [split.valid, split.test] if settings.early_stopping else [split.test]


def _quality(part: SplitPart, outputs: NDArray[np.float32], y: NDArray[Any]) -> dict[str, float]:
    """What the course is told of the test rows; nothing without any, or for an AUC without both classes."""
    if part.objective == "multiclass":
        name, value = "accuracy", accuracy(y, outputs.argmax(axis=1))
    elif part.objective == "binary":
        name, value = "auc", auc(y, outputs[:, 0])
    else:
        name, value = "rmse", rmse(y, outputs[:, 0].astype(np.float64) * part.scale + part.mean)
    return {name: value} if math.isfinite(value) else {}


def _without_progress(course: Course) -> Arrays:
    return {name: value for name, value in course.state.items() if name != "progress"}


def _moments(y: NDArray[Any]) -> tuple[float, float]:
    """Mean and standard deviation, 1 for a constant."""
    std = float(y.std(dtype=np.float64))
    return float(y.mean(dtype=np.float64)), std if std > 0.0 else 1.0


def _input_shape(x: Features, n: int) -> tuple[int, ...]:
    if x.dtype != np.float32 or x.ndim < 2 or len(x) != n:
        raise DataError("features", f"{x.dtype} of shape {x.shape}", allowed=f"float32 of shape ({n}, …)")
    if not np.isfinite(x).all():
        raise DataError("features", "a value that is not finite", allowed="finite numbers")
    return x.shape[1:]


def _check_features(part: SplitPart, x: Features | None, rows: Rows) -> None:
    if x is not None and _input_shape(x, len(x)) != part.input_shape:
        raise DataError("features", f"rows of shape {x.shape[1:]}", allowed=f"{part.input_shape}, as in training")
    if x is not None and len(rows) and not (rows.min() >= 0 and rows.max() < len(x)):
        raise DataError("rows", f"positions from {rows.min()} to {rows.max()}", allowed=f"0 to {len(x) - 1}")


def _check_split(split: Split, n: int, settings: SplitSettings) -> None:
    if not len(split.train):
        raise DataError("rows", "none to learn from", allowed="one or more")
    if settings.early_stopping and not len(split.valid):
        raise DataError("rows", "no validation rows for early stopping", allowed="one or more, or early_stopping = 0")
    for rows in (split.train, split.valid, split.test):
        if len(rows) and not (rows.min() >= 0 and rows.max() < n):
            raise DataError("rows", f"positions from {rows.min()} to {rows.max()}", allowed=f"0 to {n - 1}")


def _check_target(y: NDArray[Any], objective: str, outputs: int, settings: SplitSettings) -> None:
    if objective not in OBJECTIVES:
        raise JobFileError("vertical.objective", repr(objective), allowed=" | ".join(OBJECTIVES))
    classes = {"binary": 2, "multiclass": outputs, "regression": 0}[objective]
    if outputs != (classes if objective == "multiclass" else 1) or (objective == "multiclass" and outputs < 2):
        raise JobFileError("vertical.objective", f"{objective} with {outputs} outputs", allowed="1, or a class each")
    if y.ndim != 1 or not np.isfinite(y).all():
        raise DataError("label", "no column of finite numbers", allowed="a finite number a row")
    if classes and not np.isin(y, np.arange(classes)).all():
        raise DataError("label", "a value that is no class", allowed=f"0 to {classes - 1}")
    if settings.class_weight and len(settings.class_weight) != classes:
        problem = f"{len(settings.class_weight)} weights for {classes} classes"
        raise JobFileError("vertical.class_weight", problem, allowed="one a class, or none")
    if settings.gradient == "marvell" and objective != "binary":
        raise JobFileError("vertical.gradient", f"'marvell' with {objective} labels", allowed="none | max-norm")
