"""The algorithms of a vertical job, each as one party does it: its features, its part of the model, its scores."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fl_core.channel import Channel
from fl_core.crypto.noise import NoiseStream, OsStream, SeededStream
from fl_core.crypto.ring import Floats
from fl_core.errors import DataError
from fl_core.learning.binning import BinnedFeatures, one_hot
from fl_core.learning.columns import Columns, LinearFeatures
from fl_core.learning.seeds import derive_seed
from fl_core.messages import COORDINATOR
from fl_core.protocols.vertical.course import Course, Rows, Split
from fl_core.protocols.vertical.dealer import DEAL, PHASE
from fl_core.protocols.vertical.meaning import predictions
from fl_core.protocols.vertical.plan import GBDT_BINS, Plan, Task
from fl_core.protocols.vertical.scoring import score_receiver, score_sender

UNION_TREES, EVALUATE = b"union trees", b"evaluate"
Arrays = dict[str, NDArray[Any]]
Kind = Literal["one-hot", "ordinal"]


@dataclass(eq=False)
class Own:
    """What a party brings, in the common order of rows.

    columns : its features; a row that it does not have is one of its others. block : (n, …) float32, or None.
    member : (n,) which rows it has. labels : at the active party, (n,) classes from 0 or numbers; where it has no row,
    whatever is valid. where : how messages begin.
    """

    columns: Columns
    block: NDArray[np.float32] | None
    member: NDArray[np.bool_]
    labels: NDArray[Any] | None
    where: str
    notes: list[str] = field(default_factory=list)

    def own_rows(self, rows: Rows) -> Rows:
        """Those of `rows` that it has."""
        return rows[self.member[rows]]


class Method(ABC):
    """One algorithm at one party, from features to scores.

    Parameters
    ----------
    task : what is learned. split : rows for training, validation and testing.
    """

    def __init__(self, channel: Channel, plan: Plan, own: Own, task: Task, split: Split) -> None:
        self.channel, self.plan, self.own, self.task, self.split = channel, plan, own, task, split
        self.active = channel.me == plan.active
        self.notes: list[str] = []
        self.prepare()

    @abstractmethod
    def prepare(self) -> None:
        """Make the features, fitted on this party's training rows.  Raises `DataError`."""

    @abstractmethod
    def train(self, course: Course) -> None:
        """This party's part of the training."""

    @abstractmethod
    def scores(self, rows: Rows) -> Floats | None:
        """Logits or predicted values (rows, outputs) at the active party; None at the others, which take part."""

    @abstractmethod
    def union_part(self, rows: Rows) -> Floats:
        """What this party adds to the scores (rows, outputs) of rows that may be none of its own."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """This party's part of the model but its arrays, JSON-able; it names this party's own columns only."""

    @abstractmethod
    def arrays(self) -> Arrays:
        """Its arrays."""

    def importance(self) -> dict[str, float]:
        """How much each of this party's features counts, by name; empty where the method does not tell."""
        return {}

    def predictions(self, scores: Floats) -> Floats:
        """What scores mean: probabilities, (rows,) of the second class or (rows, classes), or values (rows,)."""
        return predictions(scores, self.task.objective)

    def dealing(self, word: bytes = DEAL) -> None:
        """Have the coordinator deal from here on; the active party's word."""
        if self.active:
            self.channel.send(COORDINATOR, word, step=PHASE)


class Linear(Method):
    """Logistic regression, in all its protocols."""

    weights: Floats
    names: tuple[str, ...]
    _features: LinearFeatures | BinnedFeatures

    def prepare(self) -> None:
        """As `Method.prepare`: standardised columns and one-hot categories, or bins."""
        v, own = self.plan.vertical, self.own
        rows, self.iv = own.own_rows(self.split.train), np.zeros(0)
        self.woe: list[Floats] = []  # of each feature's bins
        if own.block is not None:
            raise DataError(own.where, "pictures", allowed="algorithm split-nn, or a table")
        if v.encoding == "woe":
            if self.task.outputs > 1:
                raise DataError(own.where, f"{self.task.outputs} classes with encoding woe", allowed="two classes")
            self._weigh_others()
        if not own.columns.names:
            self.x, self.names = np.zeros((len(own.member), 0)), ()
            return
        if v.bins is None:
            self._features = LinearFeatures.fit(own.columns, rows, min_frequency=v.min_frequency, where=own.where)
            self.x, self.names = self._features.transform(own.columns), self._features.names
        else:
            kind: Kind = "one-hot" if v.categories == "one-hot" else "ordinal"
            self._features = BinnedFeatures.fit(
                own.columns, rows, bins=v.bins, categories=kind, min_frequency=v.min_frequency, where=own.where
            )
            codes, sizes = self._features.transform(own.columns), self._features.sizes
            if v.encoding == "woe":
                self.x, self.names = self._weigh(codes, sizes), self._features.names
            else:
                self.x, self.names = one_hot(codes, sizes).astype(np.float64), self._features.code_names()
        self.notes += self._features.notes
        self.x[~own.member] = 0.0

    def _weigh(self, codes: NDArray[np.uint8], sizes: NDArray[np.int64]) -> Floats:
        """Each bin's weight of evidence in place of its number."""
        from fl_core.protocols.vertical import woe

        plan, least, train = self.plan, self.plan.vertical.min_rows_open, self.split.train
        if self.active:
            found = woe.plain_woe(codes, sizes, self._labels(), train, least)
        else:
            found = woe.woe_passive(self.channel, COORDINATOR, plan.active, codes, sizes, train, min_rows_open=least)
        self.iv, self.woe = found.iv, found.values
        columns = [values[codes[:, j]] for j, values in enumerate(found.values)]
        return np.stack(columns, axis=1) if columns else np.zeros((len(codes), 0))

    def _weigh_others(self) -> None:
        """The active party's part in the weights of the others' bins."""
        from fl_core.protocols.vertical import woe

        self.dealing()
        if self.active:
            woe.woe_active(
                self.channel, COORDINATOR, self.plan.passives, self._labels(), self.split.train,
                min_rows_open=self.plan.vertical.min_rows_open,
            )  # fmt: skip

    def train(self, course: Course) -> None:
        """As `Method.train`."""
        if self.plan.vertical.protocol == "ckks":
            self._train_ckks(course)
        elif self.plan.vertical.strict or self.plan.union:
            self._train_strict(course)
        else:
            self._train_open(course)

    def _train_open(self, course: Course) -> None:
        from fl_core.protocols.vertical import logistic_open

        self.dealing()
        channel, plan, outputs = self.channel, self.plan, self.task.outputs
        settings = plan.logistic(self.task, len(self.split.train))
        if self.active:
            self.weights = logistic_open.train_active(
                channel, COORDINATOR, plan.passives, self.x, self._labels(), outputs, self.split, settings,
                course=course,
            )  # fmt: skip
        else:
            self.weights = logistic_open.train_passive(
                channel, COORDINATOR, plan.active, self.x, outputs, self.split, settings, course=course
            )

    def _train_strict(self, course: Course) -> None:
        from fl_core.protocols.vertical.logistic_strict import Setup, Strict

        self.dealing()
        settings = self.plan.logistic(self.task, len(self.split.train))
        member = self.own.member if self.plan.union else None
        labels = self._labels() if self.active else None
        setup = Setup(self.x, self.task.outputs, self.split, settings, member, labels)
        self.weights = Strict(self.channel, COORDINATOR, self.plan.parties, setup, course).run()

    def _train_ckks(self, course: Course) -> None:
        from fl_core.protocols.vertical import logistic_ckks

        v, plan = self.plan.vertical, self.plan
        settings = logistic_ckks.CkksSettings(
            epochs=plan.epochs, batch_size=v.batch_size or 2048, learning_rate=v.learning_rate or 0.3,
            l2=v.l2 or 0.0, class_weight=self.task.class_weight, early_stopping=v.early_stopping, seed=plan.job.seed,
        )  # fmt: skip
        if self.active:
            self.weights = logistic_ckks.train_active(
                self.channel, plan.passives, self.x, self._labels(), self.task.outputs, self.split, settings,
                course=course,
            )  # fmt: skip
        else:
            self.weights = logistic_ckks.train_passive(
                self.channel, plan.active, self.x, self.split, settings, course=course
            )

    def _labels(self) -> NDArray[np.int64]:
        assert self.own.labels is not None
        return self.own.labels.astype(np.int64)

    def union_part(self, rows: Rows) -> Floats:
        """As `Method.union_part`; over common rows it is the same."""
        if self.active:
            return np.asarray(self.x[rows] @ self.weights[:-1] + self.weights[-1])
        return np.asarray(self.x[rows] @ self.weights)

    def scores(self, rows: Rows) -> Floats | None:
        """As `Method.scores`."""
        if self.active:
            return score_receiver(self.channel, self.plan.passives, self.union_part(rows))
        score_sender(self.channel, self.plan.active, self.plan.passives, self.union_part(rows))
        return None

    def predictions(self, scores: Floats) -> Floats:
        """As `Method.predictions`; a strict model's probability is linear in the score."""
        return predictions(scores, self.task.objective, self._link)

    @property
    def _link(self) -> str:
        return "linear" if self.plan.vertical.strict or self.plan.union else "logistic"

    def describe(self) -> dict[str, Any]:
        """As `Method.describe`."""
        v = self.plan.vertical
        encoding = "standardised" if v.bins is None else v.encoding
        told: dict[str, Any] = {"link": self._link, "encoding": encoding, "names": list(self.names)}
        if self.names:
            told["features"] = self._features.to_dict()
        if len(self.iv):
            told["information_value"] = self.iv.tolist()
        return told

    def arrays(self) -> Arrays:
        """As `Method.arrays`."""
        return {"weights": self.weights} | ({"woe": np.concatenate(self.woe)} if self.woe else {})

    def importance(self) -> dict[str, float]:
        """As `Method.importance`: the deviation of each feature's contribution to the score over training rows."""
        rows = self.own.own_rows(self.split.train)
        spread = self.x[rows].std(axis=0) if len(rows) else np.zeros(self.x.shape[1])
        size = np.abs(self.weights[: len(self.names)]).mean(axis=1) * spread
        return dict(zip(self.names, size.tolist(), strict=True))


class Trees(Method):
    """Gradient-boosted trees."""

    def prepare(self) -> None:
        """As `Method.prepare`: bins."""
        v, own = self.plan.vertical, self.own
        if own.block is not None:
            raise DataError(own.where, "pictures", allowed="algorithm split-nn, or a table")
        self._features: BinnedFeatures | None = None
        self.codes, self.sizes = np.zeros((len(own.member), 0), np.uint8), np.zeros(0, np.int64)
        if own.columns.names:
            kind: Kind = "one-hot" if v.categories == "one-hot" else "ordinal"
            self._features = BinnedFeatures.fit(
                own.columns, own.own_rows(self.split.train), bins=v.bins or GBDT_BINS, categories=kind,
                min_frequency=v.min_frequency, where=own.where,
            )  # fmt: skip
            self.codes, self.sizes = self._features.transform(own.columns), self._features.sizes
            self.notes += self._features.notes

    def train(self, course: Course) -> None:
        """As `Method.train`."""
        from fl_core.protocols.vertical import trees

        channel, plan, settings = self.channel, self.plan, self.plan.trees(self.task)
        self.model: Any
        if plan.union:
            self._train_union(course)
            return
        self.dealing()
        if self.active:
            assert self.own.labels is not None
            self.model = trees.train_active(
                channel, COORDINATOR, plan.passives, self.codes, self.sizes, self.own.labels, self.task.objective,
                self.task.outputs, self.split, settings, course=course,
            )  # fmt: skip
        else:
            self.model = trees.train_passive(
                channel, COORDINATOR, plan.active, self.codes, self.sizes, self.split, settings, course=course
            )

    def _train_union(self, course: Course) -> None:
        from fl_core.protocols.vertical import union_trees

        self.dealing(UNION_TREES + self.task.encode())
        plan, settings, own = self.plan, self.plan.trees(self.task), self.own
        if self.active:
            assert own.labels is not None
            self.model = union_trees.train_union_active(
                self.channel, COORDINATOR, plan.passives[0], self.codes, self.sizes, own.labels, self.task.objective,
                self.task.outputs, self.split, settings, member=own.member, course=course,
            )  # fmt: skip
        else:
            self.model = union_trees.train_union_passive(
                self.channel, COORDINATOR, plan.active, self.codes, self.sizes, self.split, settings,
                member=own.member, course=course,
            )  # fmt: skip

    def scores(self, rows: Rows) -> Floats | None:
        """As `Method.scores`."""
        from fl_core.protocols.vertical import tree_scoring

        if self.active:
            return tree_scoring.score_active(self.channel, self.plan.passives, self.model, self.codes[rows])
        tree_scoring.score_passive(self.channel, self.plan.active, self.model, self.codes[rows])
        return None

    def union_part(self, rows: Rows) -> Floats:
        """As `Method.union_part`: the active party knows a row's leaves, whoever has the row."""
        z = self.scores(rows)
        return np.zeros((len(rows), self.task.outputs)) if z is None else z

    def describe(self) -> dict[str, Any]:
        """As `Method.describe`."""
        return {"features": None if self._features is None else self._features.to_dict()}

    def arrays(self) -> Arrays:
        """As `Method.arrays`."""
        return dict(self.model.to_arrays())

    def importance(self) -> dict[str, float]:
        """As `Method.importance`: the gains of this party's splits."""
        names = () if self._features is None else self._features.names
        return dict(zip(names, self.model.importance.tolist(), strict=True))


class SplitNetwork(Method):
    """Split networks."""

    def prepare(self) -> None:
        """As `Method.prepare`: pictures as they are, standardised columns of tables."""
        own, v = self.own, self.plan.vertical
        self._features: LinearFeatures | None = None
        self.x: NDArray[np.float32] | None = own.block
        if own.block is None and own.columns.names:
            rows = own.own_rows(self.split.train)
            self._features = LinearFeatures.fit(own.columns, rows, min_frequency=v.min_frequency, where=own.where)
            self.x = self._features.transform(own.columns).astype(np.float32)
            self.notes += self._features.notes

    def train(self, course: Course) -> None:
        """As `Method.train`."""
        from fl_core.learning.split_models import SplitSettings
        from fl_core.protocols.vertical import split_nn

        v, plan, privacy = self.plan.vertical, self.plan, self.plan.job.privacy
        settings = SplitSettings(
            epochs=plan.epochs, batch_size=v.batch_size or 64, learning_rate=v.learning_rate or 0.001,
            optimizer=v.optimizer, momentum=v.momentum, hidden=v.hidden, embedding=v.embedding,
            top_hidden=v.top_hidden, gradient=v.gradient, clipping_norm=privacy.clipping_norm,
            noise_multiplier=plan.noise_multiplier, early_stopping=v.early_stopping,
            class_weight=self.task.class_weight, l2=v.l2 or 0.0, seed=plan.job.seed,
        )  # fmt: skip
        if self.active:
            assert self.own.labels is not None
            self.model = split_nn.train_active(
                self.channel, plan.passives, self.x, self.own.labels, self.task.objective, self.task.outputs,
                self.split, settings, course=course, noise=self._noise("gradient", course.begun),
            )  # fmt: skip
        else:
            self.model = split_nn.train_passive(
                self.channel, plan.active, self._x(), self.split, settings, course=course,
                noise=self._noise("embedding", course.begun),
            )  # fmt: skip

    def _noise(self, what: str, begun: int) -> NoiseStream:
        """The operating system's, unless the job says that it is to repeat and protects nothing."""
        if self.plan.job.privacy.noise != "seeded":
            return OsStream()
        seed = derive_seed(self.plan.job.seed, "noise", what, self.channel.me, begun)
        return SeededStream(seed.to_bytes(8, "big"))

    def _x(self) -> NDArray[np.float32]:
        if self.x is None:
            raise DataError(self.own.where, "no features", allowed="columns or pictures")
        return self.x

    def scores(self, rows: Rows) -> Floats | None:
        """As `Method.scores`."""
        from fl_core.protocols.vertical import split_nn

        if self.active:
            z = split_nn.score_active(self.channel, self.plan.passives, self.model, self.x, rows)
            return z.reshape(len(rows), -1)
        noise = self._noise("scores", 0)
        split_nn.score_passive(self.channel, self.plan.active, self.model, self._x(), rows, noise=noise)
        return None

    def union_part(self, rows: Rows) -> Floats:
        """As `Method.union_part`; a union is refused before."""
        raise NotImplementedError

    def describe(self) -> dict[str, Any]:
        """As `Method.describe`."""
        features = None if self._features is None else self._features.to_dict()
        return {"features": features, "network": self.model.describe()}

    def arrays(self) -> Arrays:
        """As `Method.arrays`."""
        return dict(self.model.to_arrays())


METHODS: dict[str, type[Method]] = {"logistic": Linear, "gbdt": Trees, "split-nn": SplitNetwork}


def balanced(labels: NDArray[np.int64], classes: int) -> tuple[float, ...]:
    """Weights that give every class the same sum: n / (classes · n_c), to 4 digits."""
    counts = np.bincount(labels, minlength=classes)
    return tuple(float(f"{len(labels) / (classes * count):.4g}") for count in counts)
