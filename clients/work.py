"""What a party computes in a round: pooled statistics, local training, evaluation, and the vector it contributes.

The vector is `weight · Δ` followed by a tail of sums, `weight` being the party's training rows in units of a scale that
only the parties know: means over all rows come out of sums without anybody telling a count.  With differential privacy
the loss over the training rows is not reported: the noise does not cover it.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clients.guard import Admission
from clients.store import PartyStore, RunState
from fl_core import messages
from fl_core.crypto.noise import NoiseStream, OsStream, SeededStream
from fl_core.job import Job, Party
from fl_core.learning import models, optimizers, privacy, standardize, training
from fl_core.learning.seeds import derive_seed
from fl_core.messages import CORRECT, TAIL, TEST_LOSS, TESTED, TRAIN_LOSS, TRAINED
from fl_core.records import decimal

Vector = NDArray[np.float64]
MIN_SCALE = 1024
FIRST_CLIP, CLIP_MARGIN = 1.0, 8.0


class Work:
    """A trainer's data and model within one run."""

    def __init__(self, job: Job, party: Party, admission: Admission, store: PartyStore, run: str) -> None:
        assert admission.data is not None
        self.job, self.party, self.store, self.run = job, party, store, run
        self.data, self.plan, self.dataset = admission.data, admission.plan, admission.name
        self.commitment = admission.commitment
        self.model = models.build_model(
            job.model,
            input_shape=self.data.input_shape,
            image_shape=self.data.image_shape,
            num_classes=len(self.data.classes),
            seed=job.seed,
        )
        self._ready: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None

    # ---- before the first round

    def start(self) -> RunState:
        """The state before round one: the common initial weights, from the seed or from `model.init`."""
        arrays: dict[str, NDArray[np.float64]] = {}
        if self.job.model.init:
            saved = models.load_model(self.job.base / self.job.model.init)
            models.check_fits(saved, self.job.model, self.data)
            weights = saved.vector
            if saved.meta.mean is not None and saved.meta.std is not None:
                arrays = {"mean": saved.meta.mean, "std": saved.meta.std}
        else:
            weights = models.get_vector(self.model)
        state = optimizers.init(self.job.train.strategy, len(weights))
        return RunState(-1 if self.limbs else 0, weights, arrays | _optimizer_arrays(state), {"clip": repr(FIRST_CLIP)})

    @property
    def limbs(self) -> int:
        """Length of the pooled-statistics vector; 0 when this job pools none."""
        return standardize.num_limbs(self.data.x_train.shape[1]) if self._pools else 0

    @property
    def _pools(self) -> bool:
        return self.job.standardize and self.data.x_train.ndim == 2 and not self.job.model.init

    @property
    def schedule(self) -> dict[int, str]:
        """What each round of this job does."""
        return dict(messages.schedule(self.job.train.rounds, standardize=bool(self.limbs)))

    def scale(self) -> int:
        """The unit of weights: this party's rows rounded up to a power of two.  Only the parties learn it."""
        rows = max(len(self.data.y_train), len(self.data.y_test), MIN_SCALE)
        return 1 << (rows - 1).bit_length()

    # ---- a round

    def contribution(self, act: str, number: int, state: RunState, *, scale: int) -> tuple[Vector, Vector]:
        """The vector and the tail this party adds in round `number`."""
        if act == messages.STANDARDIZE:
            return standardize.to_limbs(self.data.x_train), np.zeros(TAIL)
        tail = np.zeros(TAIL)
        models.set_vector(self.model, state.weights)
        (x_train, x_test), rows = self._inputs(state), len(self.data.y_train)
        result = training.evaluate(self.model, x_test, self.data.y_test)
        tail[TESTED], tail[CORRECT], tail[TEST_LOSS] = (
            result.num_examples / scale,
            result.correct / scale,
            result.loss_sum / scale,
        )
        if act == messages.EVALUATE:
            return np.zeros(0), tail
        update, loss = self._train(number, state, x_train)
        tail[TRAINED] = rows / scale
        tail[TRAIN_LOSS] = 0.0 if self.plan else loss * rows / scale
        return update * tail[TRAINED], tail

    def _train(self, number: int, state: RunState, x_train: NDArray[np.float32]) -> tuple[Vector, float]:
        mechanism = self.job.privacy.mechanism if self.plan else "none"
        seed, train = derive_seed(self.job.seed, self.party.name, number), self.job.train
        y_train = self.data.y_train
        if mechanism == "dp-sgd":
            assert self.plan is not None
            result = training.local_train_dp(
                self.model, x_train, y_train, train,
                plan=self.plan, max_grad_norm=self.job.privacy.max_grad_norm, noise=self._noise(number),
                global_vector=state.weights, seed=seed,
            )  # fmt: skip
            return result.delta, result.loss
        result = training.local_train(self.model, x_train, y_train, train, seed=seed, global_vector=state.weights)
        if mechanism == "client-dp":
            assert self.plan is not None
            private = training.client_dp(
                result.delta,
                clipping_norm=self.job.privacy.clipping_norm,
                noise_multiplier=self.plan.noise_multiplier,
                noise=self._noise(number),
            )
            return private, result.loss
        return result.delta, result.loss

    def _noise(self, number: int) -> NoiseStream:
        if self.job.privacy.noise == "seeded":
            seed = derive_seed(self.job.seed, "noise", self.party.name, number)
            return SeededStream(seed=seed.to_bytes(8, "big"))
        return OsStream()

    def commit_privacy(self, act: str, number: int) -> str | None:
        """Record what a training round spent, durably; returns the job's ε so far, rounded up, or None without DP."""
        if self.plan is None:
            return None
        if act == messages.TRAIN:
            self.store.budget.commit(self.run, self.dataset, number, self.plan.steps_per_round)
        rounds = min(number, self.job.train.rounds)
        return privacy.round_up(privacy.epsilon([self.plan.spend(rounds)], self.job.privacy.target_delta))

    def clip(self, act: str, state: RunState) -> float:
        """The range an exact (BFV) profile quantises a round's vector in; the same at every party."""
        return float(standardize.LIMB_BOUND) if act == messages.STANDARDIZE else float(state.facts["clip"])

    # ---- after a round

    def apply(self, act: str, vector: Vector, tail: Vector, state: RunState) -> dict[str, str] | None:
        """Take a decrypted sum into the state; returns what it pools over all parties, as decimal texts."""
        if act == messages.STANDARDIZE:
            _, state.arrays["mean"], state.arrays["std"] = standardize.from_limbs(vector, self.data.x_train.shape[1])
            return None
        if act == messages.TRAIN:
            mean = vector / tail[TRAINED]
            before = optimizers.OptState(**{k[4:]: v for k, v in state.arrays.items() if k.startswith("opt.")})
            state.weights, after = optimizers.apply(self.job.train, before, state.weights, mean)
            state.arrays |= _optimizer_arrays(after)
            state.facts["clip"] = repr(_next_clip(vector))
        pooled = {}
        if tail[TESTED] > 0:
            pooled = {
                "accuracy": decimal(tail[CORRECT] / tail[TESTED]),
                "loss": decimal(tail[TEST_LOSS] / tail[TESTED]),
            }
        if act == messages.TRAIN and self.plan is None:
            pooled["train_loss"] = decimal(tail[TRAIN_LOSS] / tail[TRAINED])
        return pooled

    def _inputs(self, state: RunState) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        if self._ready is None:
            x_train, x_test = self.data.x_train, self.data.x_test
            if "mean" in state.arrays:
                mean, std = state.arrays["mean"], state.arrays["std"]
                x_train = standardize.apply_standardization(x_train, mean, std)
                x_test = standardize.apply_standardization(x_test, mean, std)
            self._ready = x_train, x_test
        return self._ready

    def save_model(self, path: Path, state: RunState) -> str:
        """Write the final `model.pt`; returns the SHA-256 of its float32 weights."""
        models.set_vector(self.model, state.weights)
        meta = models.Meta(
            input_shape=self.data.input_shape,
            image_shape=self.data.image_shape,
            classes=self.data.classes,
            feature_names=self.data.feature_names,
            mean=state.arrays.get("mean"),
            std=state.arrays.get("std"),
        )
        models.save_model(path, self.model, self.job.model, meta)
        return hashlib.sha256(state.weights.astype("<f4").tobytes()).hexdigest()


def _optimizer_arrays(state: optimizers.OptState) -> dict[str, NDArray[np.float64]]:
    return {f"opt.{name}": np.asarray(value) for name, value in asdict(state).items()}


def _next_clip(vector: Vector) -> float:
    """The quantiser's range of the next round, from the sum all parties share: a power of two with a margin."""
    largest = float(np.max(np.abs(vector), initial=0.0))
    return float(2.0 ** np.ceil(np.log2(max(largest * CLIP_MARGIN, 2.0**-12))))
