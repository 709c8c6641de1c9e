"""Job files: TOML in, frozen dataclasses out.  `Job` is what the person wrote; `Job.public()` is what travels.

A party's data path, its columns and its own limit never leave it: the public view holds names and shared settings
only, and its digest names the job everywhere (ledger, messages, `--resume`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import tomllib
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fl_core.crypto.profiles import get_profile
from fl_core.errors import JobFileError, UsageError
from fl_core.schema import plain, read, setting

KINDS = ("horizontal", "psi")
#: The tables that a kind of job reads, beside the parties; another one in its file is an error.
TABLES = {
    "horizontal": ("dataset", "model", "train", "encryption", "privacy", "evaluate"),
    "psi": ("psi", "session"),
}
MODELS = ("logistic", "mlp", "cnn")
DATASETS = ("digits", "breast_cancer", "mnist10k", "pneumoniamnist")
RUNTIMES = ("local", "simulation", "deployment")
_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")


@dataclasses.dataclass(frozen=True)
class Party:
    """One data owner, as this machine knows it."""

    name: str = setting(doc="a name of its own")
    data: str | None = setting(None, doc="csv, csv.gz, parquet or npz, relative to the job file, or a SQLAlchemy URL")
    query: str | None = setting(None, doc="with a URL: the SELECT that gives the rows")
    id: tuple[str, ...] = setting((), doc="column or columns that name a row; not used as features")
    label: str | None = setting(None, doc="the column to learn")
    max_epsilon: float | None = setting(None, above=0.0, doc="the owner's own limit for this dataset over all jobs")
    key: str | None = setting(None, doc="pins the party's card: its fingerprint, 64 hex characters")
    psi_protocol: str = setting("any", choices=("any", "ecdh"), doc="the owner's demand on psi jobs")


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A dataset of the registry, split among made-up parties for an experiment."""

    name: str = setting(doc='digits, breast_cancer, mnist10k, pneumoniamnist or "package.module:function"')
    parties: int | None = setting(None, low=1, high=10_000)
    partition: str = setting("iid", choices=("iid", "dirichlet"))
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
    """What the model may tell about a row (dp-sgd) or about a party's update (client-dp)."""

    mechanism: str = setting("none", choices=("dp-sgd", "client-dp", "none"))
    target_epsilon: float = setting(3.0, above=0.0)
    target_delta: float = setting(1e-5, above=0.0, high=0.1)
    max_grad_norm: float = setting(1.0, above=0.0, doc="dp-sgd: L2 bound of one sample's gradient")
    clipping_norm: float = setting(1.0, above=0.0, doc="client-dp: L2 bound of one party's update")
    noise: str = setting("os", choices=("os", "seeded"), doc="seeded: repeatable, protects nothing")


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Which rows are held out at each party."""

    test_fraction: float = setting(0.2, low=0.0, high=0.9)


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
    session: Session = setting(Session())
    base: Path = dataclasses.field(default=Path(), metadata={"key": "\0base"})

    def public(self) -> dict[str, Any]:
        """The part every party sees: no path, no column, no owner's limit; integers and strings only."""
        view = plain(dataclasses.replace(self, parties=(), base=None))  # type: ignore[arg-type]
        for name in _other_tables(self.kind):
            view.pop(name, None)
        view["party"] = [{"name": p.name} | ({"key": p.key} if p.key else {}) for p in self.parties]
        if self.model.init:
            view["model"]["init"] = file_digest(self.base / self.model.init)
        return dict(view)

    def table(self) -> dict[str, Any]:
        """The job file's table again, whole."""
        table = dict(plain(dataclasses.replace(self, base=None), text=False))  # type: ignore[arg-type]
        return {name: held for name, held in table.items() if name not in _other_tables(self.kind)}

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
        return own | ({"init": self.model.init} if self.model.init else {})

    @property
    def min_parties(self) -> int:
        """Contributions a round needs: as set, or all but one, at least three, always more than half."""
        n = len(self.parties)
        if self.kind != "horizontal":
            return n
        return self.train.min_parties or min(n, max(3, n - 1, n // 2 + 1))

    @property
    def is_session(self) -> bool:
        """Whether the parties of this kind of job talk to each other."""
        return "session" in TABLES[self.kind]

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


def _other_tables(kind: str) -> set[str]:
    """Tables that a job of this kind does not read."""
    return {name for names in TABLES.values() for name in names} - set(TABLES[kind])


def _unsafe_psi(job: Job) -> list[str]:
    everybody = {p.name for p in job.parties}
    if job.psi.output == "receivers" and set(job.psi.receivers or everybody) == everybody:
        return ["every party learns which of its ids the others have"]
    return []


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


def job_from_public(view: Mapping[str, Any]) -> Job:
    """The job as a party sees it: shared settings and the parties' names.

    What holds between keys is checked here too: who sends a job need not have read it from a file.
    """
    if not isinstance(view, Mapping):
        raise JobFileError("job", "is not a table")
    _only_its_tables(view)
    return _check_shared(read(Job, _numbers(Job, dict(view))))


def _numbers(cls: type, table: dict[str, Any]) -> dict[str, Any]:
    """Turn the decimal texts of `plain` back into floats, by the declared type."""
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        key = str(field.metadata.get("key") or field.name)
        if key not in table:
            continue
        kinds = typing.get_args(hints[field.name]) or (hints[field.name],)
        nested = next((k for k in kinds if dataclasses.is_dataclass(k)), None)
        if nested and isinstance(table[key], dict):
            table[key] = _numbers(typing.cast(type, nested), dict(table[key]))
        elif float in kinds and isinstance(table[key], str):
            table[key] = float(table[key])
    return table


def load_job(source: Path | str | Mapping[str, Any], overrides: Sequence[str] | Mapping[str, Any] = ()) -> Job:
    """Read and check a job file (or a table of the same shape).

    Parameters
    ----------
    source : a path, or the parsed table.
    overrides : `["train.rounds=10", …]` as on the command line, or `{"train.rounds": 10}`.

    Raises
    ------
    JobFileError : one line naming the key, the value and what is allowed.
    """
    if isinstance(source, Mapping):
        table, base = json.loads(json.dumps(source)), Path.cwd()
    else:
        table, base = _parse(Path(source)), Path(source).resolve().parent
    pairs = overrides.items() if isinstance(overrides, Mapping) else map(_split_override, overrides)
    for key, value in pairs:
        _override(table, key, value)
    _one_id_is_a_list(table)
    _only_its_tables(table)
    job = dataclasses.replace(read(Job, table), base=base)
    return _check(_with_parties(job))


def _parse(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path}: not TOML: {error}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path}: not UTF-8 text") from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from None


def _split_override(text: str) -> tuple[str, Any]:
    key, found, value = text.partition("=")
    if not found or not key:
        raise UsageError(f"--set {text!r}: not KEY=VALUE; allowed: for example train.rounds=10")
    try:
        return key, tomllib.loads(f"v = {value}")["v"]
    except tomllib.TOMLDecodeError:
        return key, value  # a bare word is text


def _override(table: dict[str, Any], key: str, value: Any) -> None:
    at: Any = table
    *parents, last = key.split(".")
    for part in parents:
        if isinstance(at, list):
            if not part.isdigit() or int(part) >= len(at):
                raise JobFileError(key, f"no entry {part!r}", allowed=f"0 to {len(at) - 1}")
            at = at[int(part)]
        else:
            at = at.setdefault(part, {})
        if not isinstance(at, (dict, list)):
            raise JobFileError(key, f"{part!r} is not a table")
    if not isinstance(at, dict):
        raise JobFileError(key, "names a whole table; name a key in it")
    at[last] = value


def _one_id_is_a_list(table: dict[str, Any]) -> None:
    for entry in table.get("party", []) if isinstance(table.get("party"), list) else []:
        if isinstance(entry, dict) and isinstance(entry.get("id"), str):
            entry["id"] = [entry["id"]]


def _only_its_tables(table: Mapping[str, Any]) -> None:
    """A table of another kind of job is a mistake, not a setting without effect."""
    kind = str(table.get("kind"))
    for name in _other_tables(kind) if kind in TABLES else ():
        if name in table:
            raise JobFileError(name, f"is not read by a {kind} job", allowed=", ".join(TABLES[kind]))


def _with_parties(job: Job) -> Job:
    """An experiment's parties get names; real ones must name their data."""
    if job.dataset is None:
        if not job.parties:
            allowed = "[[party]] tables, or a [dataset]" if job.kind == "horizontal" else "[[party]] tables"
            raise JobFileError("party", "no parties", allowed=allowed)
        needed = ("data", "label") if job.kind == "horizontal" else ("data", "id")
        for i, p in enumerate(job.parties):
            for key in needed:
                if not getattr(p, key):
                    raise JobFileError(f"party[{i}].{key}", f"missing for party {p.name!r}", allowed="text")
        return job
    count = job.dataset.parties
    if job.parties:
        if count not in (None, len(job.parties)):
            raise JobFileError("dataset.parties", f"{count} is not the number of [[party]] tables ({len(job.parties)})")
        parties = job.parties
        for i, p in enumerate(parties):
            if p.data is not None:
                raise JobFileError(f"party[{i}].data", "goes with real parties, not with [dataset]")
    else:
        parties = tuple(Party(name=f"party_{i + 1}") for i in range(count or 4))
    return dataclasses.replace(job, parties=parties, dataset=dataclasses.replace(job.dataset, parties=len(parties)))


def _known(key: str, name: str, known: tuple[str, ...]) -> None:
    if name not in known and ":" not in name:
        raise JobFileError(key, f"{name!r}", allowed=", ".join(known) + ' or "package.module:function"')


def _check(job: Job) -> Job:
    """What holds between keys, and the files that are named."""
    _check_shared(job)
    if job.runtime == "deployment":
        _check_deployment(job)
    else:
        _check_files(job)
    return job


def _check_shared(job: Job) -> Job:
    """What holds between keys that every party sees."""
    seen: set[str] = set()
    for i, name in enumerate([*(p.name for p in job.parties), *job.train.receivers]):
        if not _NAME.fullmatch(name) or name == "coordinator":
            raise JobFileError(f"party[{i}].name", f"{name!r}", allowed="a-z 0-9 _ . -, at most 64, not 'coordinator'")
        if name in seen:
            raise JobFileError(f"party[{i}].name", f"{name!r} is there twice", allowed="names that differ")
        seen.add(name)
    {"horizontal": _check_horizontal, "psi": _check_psi}[job.kind](job)
    return job


def _check_psi(job: Job) -> None:
    names, psi = [p.name for p in job.parties], job.psi
    if len(names) < 2:
        raise JobFileError("party", f"{len(names)} party", allowed="two or more")
    for name in psi.receivers:
        if name not in names:
            raise JobFileError("psi.receivers", f"{name!r}", allowed=", ".join(names))
    if psi.protocol == "cm20" and (len(names) > 2 or psi.output != "receivers"):
        raise JobFileError(
            "psi.protocol", f"'cm20' with {len(names)} parties and output {psi.output!r}", allowed="ecdh, auto"
        )


def _check_horizontal(job: Job) -> None:
    names = [p.name for p in job.parties]
    _known("model.name", job.model.name, MODELS)
    if job.dataset is not None:
        _known("dataset.name", job.dataset.name, DATASETS)
    if job.encryption.scheme == "ckks":
        get_profile(job.encryption.profile).check_parties(len(names))
    n, least = len(names), job.min_parties
    if least > n:
        raise JobFileError("train.min_parties", f"{least} of {n} parties", allowed=f"2 to {n}")
    if n < 3 and job.train.min_parties != 2:
        raise JobFileError(
            "train.min_parties",
            f"{n} parties: with two, each learns the other's update",
            allowed="three parties or more, or min_parties = 2 to accept it" if n == 2 else "three parties or more",
        )
    if least < 2 or 2 * least <= n:
        raise JobFileError(
            "train.min_parties", f"{least} of {n} parties", allowed=f"more than half, {n // 2 + 1} to {n}"
        )
    if job.standardize and job.privacy.mechanism != "none":
        raise JobFileError(
            "train.standardize",
            "'pooled' would tell the parties exact means that DP does not cover",
            allowed="none, with features brought to about -1 … 1 beforehand",
        )


def _check_files(job: Job) -> None:
    """Files that the job file names must be there."""
    for i, party in enumerate(job.parties):
        if is_url(party.data) != (party.query is not None):
            raise JobFileError(f"party[{i}].query", "goes with a URL as data, and with nothing else", allowed="both")
    data = [(f"party[{i}].data", p.data) for i, p in enumerate(job.parties) if not is_url(p.data)]
    for key, path in [("model.init", job.model.init), *data]:
        if path is not None and not (job.base / path).is_file():
            raise JobFileError(key, f"no file {job.base / path}", allowed="a file, relative to the job file")


def is_url(data: str | None) -> bool:
    """Whether a party's data is a SQLAlchemy URL rather than a file."""
    return data is not None and "://" in data


def _check_deployment(job: Job) -> None:
    """What a node decides is not in the job file: where its data lie, and how much privacy it gives."""
    for i, party in enumerate(job.parties):
        if party.data is not None and not _NAME.fullmatch(party.data):
            allowed = "the name under which the node bound it (fedseal node init --data NAME=PATH-or-URL)"
            problem = "a URL" if is_url(party.data) else repr(party.data)  # which may hold a password
            raise JobFileError(f"party[{i}].data", f"{problem} in a deployment", allowed=allowed)
        for key in ("max_epsilon", "query"):
            if getattr(party, key) is not None:
                raise JobFileError(f"party[{i}].{key}", "is set at the party's node", allowed="nothing in a deployment")
    if job.model.init is not None:
        raise JobFileError("model.init", "a file that the nodes do not have", allowed="nothing in a deployment")
