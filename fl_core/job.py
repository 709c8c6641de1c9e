"""A job in frozen dataclasses: `Job` is what the person wrote, `Job.public()` is what travels.

A party's data path, its columns and its own limit never leave it: the public view holds names and shared settings
only, and its digest names the job everywhere (ledger, messages, `--resume`).  `fl_core.config` reads job files.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fl_core.errors import JobFileError
from fl_core.schema import plain, setting

KINDS = ("horizontal", "vertical", "predict", "psi")
#: The tables that a kind of job reads, beside the parties; another one in its file is an error.
TABLES = {
    "horizontal": ("dataset", "model", "train", "encryption", "privacy", "evaluate"),
    "vertical": ("dataset", "psi", "vertical", "privacy", "evaluate", "session"),
    "predict": ("predict", "psi", "session"),
    "psi": ("psi", "session"),
}
GIVEN = "given"  # stands for a file that one party alone reads
MODELS = ("logistic", "mlp", "cnn")
DATASETS = ("digits", "breast_cancer", "mnist10k", "pneumoniamnist")
RUNTIMES = ("local", "simulation", "deployment")
MIN_TREES = 20  # below it an exact score of boosted trees shows which way a row went
NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")


@dataclasses.dataclass(frozen=True)
class Party:
    """One data owner, as this machine knows it."""

    name: str = setting(doc="a name of its own")
    data: str | None = setting(None, doc="csv, csv.gz, parquet or npz, relative to the job file, or a SQLAlchemy URL")
    query: str | None = setting(None, doc="with a URL: the SELECT that gives the rows")
    id: tuple[str, ...] = setting((), doc="column or columns that name a row; not used as features")
    label: str | None = setting(None, doc="the column to learn")
    columns: tuple[str, ...] = setting((), doc="the columns to use; default: all but ids and label")
    categorical: tuple[str, ...] = setting((), doc="columns of numbers that are categories, such as codes")
    max_epsilon: float | None = setting(None, above=0.0, doc="the owner's own limit for this dataset over all jobs")
    key: str | None = setting(None, doc="pins the party's card: its fingerprint, 64 hex characters")
    psi_protocol: str = setting("any", choices=("any", "ecdh"), doc="the owner's demand on psi jobs")


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A dataset of the registry, split among made-up parties for an experiment."""

    name: str = setting(doc='digits, breast_cancer, mnist10k, pneumoniamnist or "package.module:function"')
    parties: int | None = setting(None, low=1, high=10_000)
    partition: str | None = setting(None, choices=("iid", "dirichlet", "columns"), doc="rows (iid), or columns")
    alpha: float = setting(0.5, above=0.0, doc="dirichlet: small is uneven")


@dataclasses.dataclass(frozen=True)
class Model:
    """What is trained."""

    name: str = setting("mlp", doc='logistic, mlp, cnn or "package.module:function"')
    hidden: tuple[int, ...] = setting((64,), low=1)
    activation: str = setting("relu", choices=("relu", "tanh"))
    init: str | None = setting(None, doc="a model.pt to start from, relative to the job file")
    classes: tuple[str, ...] = setting((), doc="all classes, when some party lacks one")


@dataclasses.dataclass(frozen=True)
class Train:
    """How it is trained."""

    strategy: str = setting("fedavg", choices=("fedavg", "fedprox", "fedavgm", "fedadam"))
    rounds: int = setting(5, low=0, high=100_000)
    local_epochs: int = setting(1, low=1)
    batch_size: int = setting(32, low=1)
    learning_rate: float = setting(0.1, above=0.0)
    optimizer: str = setting("sgd", choices=("sgd", "adam"))
    momentum: float = setting(0.0, low=0.0, high=0.999)
    weight_decay: float = setting(0.0, low=0.0)
    proximal_mu: float = setting(0.01, low=0.0, doc="fedprox: the pull towards the global model")
    server_learning_rate: float | None = setting(None, above=0.0, doc="fedavgm (1.0), fedadam (0.01)")
    server_momentum: float = setting(0.9, low=0.0, high=0.999, doc="fedavgm; beta_1 of fedadam")
    device: str = setting("auto", choices=("cpu", "cuda", "auto"))
    min_parties: int | None = setting(None, low=1)
    round_timeout: float = setting(600.0, above=0.0, doc="seconds a round waits for its parties")
    standardize: str = setting(
        "auto", choices=("auto", "pooled", "none"), doc="auto: pooled for table files without DP"
    )
    receivers: tuple[str, ...] = setting((), doc="parties without data that get the model too")
    publish: bool = setting(False)


@dataclasses.dataclass(frozen=True)
class Encryption:
    """How updates are protected on their way."""

    scheme: str = setting("ckks", choices=("ckks", "none"))
    profile: str = setting("CKKS_2048")


@dataclasses.dataclass(frozen=True)
class Privacy:
    """What the model may tell about a row (dp-sgd), about a party's update (client-dp), or what a split network's
    embeddings may tell about a passive party's row (cut-layer)."""

    mechanism: str = setting("none", choices=("dp-sgd", "client-dp", "cut-layer", "none"))
    target_epsilon: float = setting(3.0, above=0.0)
    target_delta: float = setting(1e-5, above=0.0, high=0.1)
    max_grad_norm: float = setting(1.0, above=0.0, doc="dp-sgd: L2 bound of one sample's gradient")
    clipping_norm: float = setting(1.0, above=0.0, doc="L2 bound of a party's update, or of an embedding")
    noise: str = setting("os", choices=("os", "seeded"), doc="seeded: repeatable, protects nothing")


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Which rows are held out: at each party, or of a vertical job's common rows."""

    test_fraction: float = setting(0.2, low=0.0, high=0.9)
    test_ids: str | None = setting(None, doc="vertical: a file of the active party with the ids to hold out")


@dataclasses.dataclass(frozen=True)
class Psi:
    """Private set intersection of the parties' ids."""

    protocol: str = setting("auto", choices=("auto", "cm20", "ecdh"))
    output: str = setting("receivers", choices=("receivers", "cardinality", "union"))
    receivers: tuple[str, ...] = setting((), doc="who learns the result; default: all parties")
    duplicates: str = setting(
        "error", choices=("error", "first"), doc="first: rows with an id seen before are left out"
    )
    pad_to: int | None = setting(None, low=1, high=1 << 26, doc="hides set sizes below this bound")


@dataclasses.dataclass(frozen=True)
class Vertical:
    """What parties with different columns of the same rows train together; unset keys depend on the algorithm."""

    algorithm: str = setting("gbdt", choices=("logistic", "gbdt", "split-nn"))
    protocol: str = setting("shared", choices=("shared", "ckks"), doc="ckks: logistic only, no dealer")
    mode: str = setting("auto", choices=("auto", "open", "strict"), doc="logistic: who may see training logits")
    active: str | None = setting(None, doc="the party with the label; default: the one that has one")
    objective: str = setting("auto", choices=("auto", "binary", "multiclass", "regression"))
    epochs: int | None = setting(None, low=1, high=100_000)
    batch_size: int | None = setting(None, low=1)
    learning_rate: float | None = setting(None, above=0.0)
    momentum: float = setting(0.9, low=0.0, high=0.999)
    l2: float | None = setting(None, low=0.0)
    class_weight: str = setting("none", choices=("none", "balanced"))
    early_stopping: int = setting(0, low=0, doc="epochs or trees without improvement; 0: never")
    categories: str = setting("auto", choices=("auto", "one-hot", "ordinal"))
    min_frequency: int = setting(50, low=1, doc="rarer categories are one")
    bins: int | None = setting(None, low=2, high=255, doc="gbdt: 32; logistic: standardised columns without it")
    encoding: str = setting("one-hot", choices=("one-hot", "woe"), doc="logistic on bins")
    trees: int = setting(30, low=1, high=10_000)
    depth: int = setting(3, low=1, high=8)
    subsample: float = setting(1.0, above=0.0, high=1.0)
    min_child_weight: float = setting(1.0, low=0.0)
    min_rows_open: int = setting(50, low=1, doc="no histogram of fewer rows is opened")
    optimizer: str = setting("adam", choices=("adam", "sgd"), doc="split-nn")
    hidden: tuple[int, ...] = setting((64,), low=1, doc="split-nn: of a bottom model for tables")
    embedding: int = setting(64, low=1, high=4096)
    top_hidden: tuple[int, ...] = setting((64,), low=1)
    gradient: str = setting("max-norm", choices=("none", "max-norm", "marvell"), doc="split-nn: of what is sent back")

    @property
    def strict(self) -> bool:
        """Whether a logistic regression hides its logits: as said, or where columns are binned one-hot."""
        binned = self.bins is not None and self.encoding == "one-hot"
        return self.mode == "strict" or (self.mode == "auto" and binned and self.protocol == "shared")

    @property
    def deals(self) -> bool:
        """Whether the coordinator deals randomness."""
        return self.protocol == "shared" and self.algorithm != "split-nn"


@dataclasses.dataclass(frozen=True)
class Predict:
    """Scores of new rows by a vertical model, of which every party keeps its part.

    `active` and `algorithm` are filled in from the training; `folder`, which no job file can set, is where on this
    machine the parties' parts lie.
    """

    model: str = setting("", doc="the --out folder of the model's training, or its run: id, MLflow run id or name")
    receivers: tuple[str, ...] = setting((), doc="who gets the scores; default: the party that had the labels")
    protocol: str = setting("shared", choices=("shared", "ckks"), doc="ckks: boosted trees of two parties, no dealer")
    min_trees: int = setting(MIN_TREES, low=1, doc="trees a score; with fewer an exact score shows a row's paths")
    active: str | None = setting(None, doc="the party that had the labels, from the training")
    algorithm: str | None = setting(None, choices=("logistic", "gbdt", "split-nn"), doc="from the training")
    folder: str | None = setting(None, key="\0folder")


@dataclasses.dataclass(frozen=True)
class Session:
    """How long the parties may talk."""

    time_to_live: float = setting(6 * 3600.0, above=0.0, high=12 * 3600.0, doc="seconds")
    timeout: float = setting(600.0, above=0.0, high=3600.0, doc="seconds a party waits for another one's message")


@dataclasses.dataclass(frozen=True)
class Job:
    """One job file after `--set`."""

    kind: str = setting(choices=KINDS)
    name: str = setting("job")
    seed: int = setting(0, low=0, high=2**53 - 1)
    runtime: str = setting("local", choices=RUNTIMES)
    parties: tuple[Party, ...] = setting((), key="party")
    dataset: Dataset | None = setting(None)
    model: Model = setting(Model())
    train: Train = setting(Train())
    encryption: Encryption = setting(Encryption())
    privacy: Privacy = setting(Privacy())
    evaluate: Evaluate = setting(Evaluate())
    psi: Psi = setting(Psi())
    vertical: Vertical = setting(Vertical())
    predict: Predict = setting(Predict())
    session: Session = setting(Session())
    base: Path = dataclasses.field(default=Path(), metadata={"key": "\0base"})

    def public(self) -> dict[str, Any]:
        """The part every party sees: no path, no column, no owner's limit; integers and strings only."""
        view = plain(dataclasses.replace(self, parties=(), base=None))  # type: ignore[arg-type]
        for name in other_tables(self.kind):
            view.pop(name, None)
        view["party"] = [{"name": p.name} | ({"key": p.key} if p.key else {}) for p in self.parties]
        if self.model.init:
            view["model"]["init"] = file_digest(self.base / self.model.init)
        if self.kind == "predict":
            view["predict"].pop("\0folder", None)
        if self.kind == "vertical":
            view["vertical"]["active"] = self.active
            if self.evaluate.test_ids:
                view["evaluate"]["test_ids"] = GIVEN
        return dict(view)

    def table(self) -> dict[str, Any]:
        """The job file's table again, whole."""
        table = dict(plain(dataclasses.replace(self, base=None), text=False))  # type: ignore[arg-type]
        return {name: held for name, held in table.items() if name not in other_tables(self.kind)}

    def digest(self) -> str:
        """SHA-256 of the public view: the job's name in messages, ledger and `--resume`."""
        return public_digest(self.public())

    def party(self, name: str) -> Party:
        """The party of that name."""
        return next(p for p in self.parties if p.name == name)

    def own_part(self, name: str) -> dict[str, Any]:
        """What only that party's node knows of the job: its data, columns and limit; JSON-able."""
        own: dict[str, Any] = {}
        if any(p.name == name for p in self.parties):
            party = self.party(name)
            own = {k: v for k, v in dataclasses.asdict(party).items() if k != "name" and v not in (None, (), "any")}
        if self.evaluate.test_ids and self.kind == "vertical" and name == self.active:
            own["test_ids"] = self.evaluate.test_ids
        if self.kind == "predict" and self.predict.folder:
            own["model"] = str(Path(self.predict.folder) / name / "model")
        return own | ({"init": self.model.init} if self.model.init else {})

    @property
    def active(self) -> str:
        """The party of a vertical job that has the labels; empty where no party has."""
        named = (p.name for p in self.parties if p.label is not None)
        return self.vertical.active or next(named, self.parties[0].name if self.dataset and self.parties else "")

    @property
    def min_parties(self) -> int:
        """Contributions a round needs: as set, or all but one, at least three, always more than half."""
        n = len(self.parties)
        if self.kind != "horizontal":
            return n
        return self.train.min_parties or min(n, max(3, n - 1, n // 2 + 1))

    @property
    def result_receivers(self) -> tuple[str, ...]:
        """All who get a result; `coordinator` where it publishes the model."""
        parties = tuple(party.name for party in self.parties)
        if self.kind == "horizontal":
            return (*parties, *self.train.receivers, *(("coordinator",) if self.train.publish else ()))
        if self.kind == "predict":
            return self.predict.receivers or tuple(name for name in (self.predict.active,) if name)
        return self.psi.receivers or parties

    @property
    def is_session(self) -> bool:
        """Whether the parties of this kind of job talk to each other."""
        return "session" in TABLES[self.kind]

    @property
    def needs_torch(self) -> bool:
        """Whether its parties train networks; others do not wait for torch."""
        return not self.is_session or (self.kind == "vertical" and self.vertical.algorithm == "split-nn")

    @property
    def standardize(self) -> bool:
        """Whether parties first agree on the pooled mean and deviation of each feature."""
        if self.train.standardize == "auto":
            return self.dataset is None and self.privacy.mechanism == "none"
        return self.train.standardize == "pooled"

    @property
    def unsafe(self) -> list[str]:
        """Every choice of this job that takes protection away, in words for the summary and the ledger."""
        if self.kind == "psi":
            return _unsafe_psi(self)
        if self.kind == "vertical":
            return _unsafe_vertical(self)
        if self.kind == "predict":
            return _unsafe_predict(self)
        said = []
        if self.encryption.scheme == "none":
            said.append("encryption is off: the coordinator sees every party's update")
        elif self.encryption.profile == "TEST_ONLY":
            said.append("profile TEST_ONLY protects nothing")
        if self.privacy.mechanism != "none" and self.privacy.noise == "seeded":
            said.append("the DP noise is seeded: it can be subtracted and protects nothing")
        if self.min_parties < 3:
            said.append("fewer than three contributions: each of two parties learns the other's update")
        return said


def other_tables(kind: str) -> set[str]:
    """Tables that a job of this kind does not read."""
    return {name for names in TABLES.values() for name in names} - set(TABLES[kind])


def _unsafe_psi(job: Job) -> list[str]:
    everybody = {p.name for p in job.parties}
    if job.psi.output == "receivers" and set(job.psi.receivers or everybody) == everybody:
        return ["every party learns which of its ids the others have"]
    return []


def _unsafe_vertical(job: Job) -> list[str]:
    said, vertical = [], job.vertical
    if vertical.algorithm == "logistic" and vertical.bins and vertical.encoding == "one-hot" and not vertical.strict:
        said.append("open logits on bins: rows of equal logits show the active party rows of equal bins")
    if vertical.algorithm == "gbdt" and vertical.min_rows_open < 10:
        said.append(f"histograms of {vertical.min_rows_open} rows are opened: single rows show in them")
    if vertical.algorithm == "split-nn":
        if job.privacy.mechanism == "none":
            said.append("embeddings without noise: what they carry of a passive party's rows is not bounded")
        if job.privacy.noise == "seeded":
            said.append("noise on embeddings and gradients is seeded: it can be subtracted and protects nothing")
        if vertical.gradient == "none":
            said.append("gradients without protection: their norms give labels away to passive parties")
    return said


def _unsafe_predict(job: Job) -> list[str]:
    predict = job.predict
    if predict.algorithm == "split-nn":
        return ["a split network: the receiver sees embeddings of new rows, under the noise of the training, if any"]
    if predict.algorithm != "logistic" and predict.min_trees < MIN_TREES:
        few = f"{predict.min_trees} trees" if predict.min_trees > 1 else "a single tree"
        return [f"scores of as few as {few}: an exact one shows the receiver a row's paths at the other parties"]
    return []


def check_predict_protocol(job: Job) -> None:
    """`JobFileError` where a prediction's `protocol = "ckks"` does not go with what is known of the rest."""
    predict, parties = job.predict, len(job.parties)
    if predict.protocol != "ckks":
        return
    wrong = ""
    if parties != 2:
        wrong = f"{parties} parties"
    elif predict.algorithm not in (None, "gbdt"):
        wrong = predict.algorithm
    elif predict.active is not None and predict.receivers not in ((), (predict.active,)):
        wrong = f"receivers {', '.join(predict.receivers)}"
    if wrong:
        allowed = "shared; ckks for boosted trees of two parties, the one that had the labels as the only receiver"
        raise JobFileError("predict.protocol", f"'ckks' with {wrong}", allowed=allowed)


def public_digest(view: Mapping[str, Any]) -> str:
    """SHA-256, hex, of the canonical JSON of a public view."""
    text = json.dumps(view, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256, hex, of a file."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise JobFileError("model.init", f"{path} cannot be read ({error.strerror})", allowed="a model.pt") from None
