"""What all parties of a vertical job know before they meet: roles, the intersection's plan, settings with defaults."""

from __future__ import annotations

from dataclasses import dataclass

from fl_core.errors import JobFileError
from fl_core.job import Job, Vertical
from fl_core.learning.boosting import TreeSettings
from fl_core.messages import COORDINATOR
from fl_core.protocols.psi.program import Plan as PsiPlan
from fl_core.protocols.psi.program import needs_comparer
from fl_core.protocols.vertical.logistic import LogisticSettings
from fl_core.trust import canonical

GBDT_BINS = 32
SMALL_BATCH, LARGE_BATCH, BATCHES = 64, 4096, 6


@dataclass(frozen=True)
class Task:
    """What is learned, as the active party tells it once rows are aligned.

    objective : binary, multiclass or regression. outputs : 1, or as many as classes.
    class_weight : a factor for each class; empty for ones.
    """

    objective: str
    outputs: int
    class_weight: tuple[float, ...] = ()

    def encode(self) -> bytes:
        """To send."""
        weights = [repr(weight) for weight in self.class_weight]
        return canonical.encode({"objective": self.objective, "outputs": self.outputs, "weights": weights})

    @classmethod
    def decode(cls, data: bytes) -> Task:
        """As sent.  Raises `ValueError`."""
        told = canonical.decode(data)
        try:
            task = cls(str(told["objective"]), int(told["outputs"]), tuple(float(w) for w in told["weights"]))
        except (KeyError, TypeError) as error:
            raise ValueError("a task of another shape") from error
        if task.objective not in ("binary", "multiclass", "regression") or not 1 <= task.outputs <= 1000:
            raise ValueError("no such task")
        if not all(0.0 < weight <= 1000.0 for weight in task.class_weight):
            raise ValueError("no such weights")
        return task


@dataclass(frozen=True)
class Plan:
    """See the module.

    parties : the active one first, then the others in the job's order.
    """

    job: Job
    parties: tuple[str, ...]

    @property
    def active(self) -> str:
        """The party with the labels."""
        return self.parties[0]

    @property
    def passives(self) -> tuple[str, ...]:
        """The others."""
        return self.parties[1:]

    @property
    def vertical(self) -> Vertical:
        """The job's settings."""
        return self.job.vertical

    @property
    def union(self) -> bool:
        """Whether membership is hidden."""
        return self.job.psi.output == "union"

    @property
    def coordinator(self) -> str | None:
        """The coordinator's name where it has a part: it compares for the intersection, or deals randomness."""
        return COORDINATOR if self.psi.comparer is not None or self.vertical.deals else None

    @property
    def psi(self) -> PsiPlan:
        """Of the intersection, for all parties."""
        psi, names = self.job.psi, tuple(party.name for party in self.job.parties)
        return PsiPlan(
            parties=names,
            protocol=psi.protocol,
            output=psi.output,
            comparer=COORDINATOR if needs_comparer(names, psi.output) else None,
            pad_to=psi.pad_to,
        )

    @property
    def steps(self) -> int:
        """Epochs or trees that are planned."""
        return self.vertical.trees if self.vertical.algorithm == "gbdt" else self.epochs

    @property
    def unit(self) -> str:
        """What a step is: `epoch` or `tree`."""
        return "tree" if self.vertical.algorithm == "gbdt" else "epoch"

    @property
    def epochs(self) -> int:
        """As set; by default 20 for a logistic regression and 10 for a split network."""
        return self.vertical.epochs or (20 if self.vertical.algorithm == "logistic" else 10)

    def logistic(self, task: Task, rows: int) -> LogisticSettings:
        """For `rows` training rows; by default six batches or more, of at least 64 and at most 4096 rows."""
        v = self.vertical
        size = v.batch_size or max(SMALL_BATCH, min(LARGE_BATCH, rows // BATCHES))
        return LogisticSettings(
            epochs=self.epochs, batch_size=size, learning_rate=v.learning_rate or 0.3, momentum=v.momentum,
            l2=v.l2 or 0.0, early_stopping=v.early_stopping, class_weight=task.class_weight, seed=self.job.seed,
        )  # fmt: skip

    def trees(self, task: Task) -> TreeSettings:
        """Of boosted trees."""
        v = self.vertical
        return TreeSettings(
            trees=v.trees, depth=v.depth, learning_rate=v.learning_rate or 0.3, l2=1.0 if v.l2 is None else v.l2,
            min_child_weight=v.min_child_weight, subsample=v.subsample, min_rows_open=v.min_rows_open,
            early_stopping=v.early_stopping, class_weight=task.class_weight, seed=self.job.seed,
        )  # fmt: skip

    @property
    def releases(self) -> int:
        """How often a row's embedding leaves a passive party, at most: in each epoch, and when it is scored."""
        return self.epochs + 1

    @property
    def noise_multiplier(self) -> float | None:
        """Of the noise at the cut layer; None without it."""
        privacy = self.job.privacy
        if privacy.mechanism != "cut-layer":
            return None
        from fl_core.learning.gradient_protection import plan_cut_layer

        return plan_cut_layer(self.releases, privacy.target_epsilon, privacy.target_delta)


def plan_of(job: Job) -> Plan:
    """The plan of a vertical job."""
    names = [party.name for party in job.parties]
    if job.active not in names:
        raise JobFileError("vertical.active", f"{job.active!r}", allowed=", ".join(names))
    return Plan(job, (job.active, *(name for name in names if name != job.active)))
