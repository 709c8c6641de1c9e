"""Job files: TOML in, a checked `Job` out; every mistake is one line that names the key, the value, what is allowed."""

from __future__ import annotations

import dataclasses
import json
import tomllib
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fl_core.crypto.profiles import get_profile
from fl_core.errors import JobFileError, UsageError
from fl_core.job import DATASETS, MODELS, NAME, TABLES, Job, Party, check_predict_protocol, other_tables
from fl_core.schema import read


def job_from_public(view: Mapping[str, Any]) -> Job:
    """The job as a party sees it: shared settings and the parties' names.

    What holds between keys is checked here too: who sends a job need not have read it from a file.
    """
    if not isinstance(view, Mapping):
        raise JobFileError("job", "is not a table")
    _only_its_tables(view)
    return check_shared(read(Job, _numbers(Job, dict(view))))


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
    for name in other_tables(kind) if kind in TABLES else ():
        if name in table:
            raise JobFileError(name, f"is not read by a {kind} job", allowed=", ".join(TABLES[kind]))


def _with_parties(job: Job) -> Job:
    """An experiment's parties get names; real ones must name their data."""
    if job.dataset is None:
        if not job.parties:
            allowed = "[[party]] tables, or a [dataset]" if "dataset" in TABLES[job.kind] else "[[party]] tables"
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
        parties = tuple(Party(name=f"party_{i + 1}") for i in range(count or (2 if job.kind == "vertical" else 4)))
    partition = job.dataset.partition or ("columns" if job.kind == "vertical" else "iid")
    if (partition == "columns") != (job.kind == "vertical"):
        allowed = "columns" if job.kind == "vertical" else "iid | dirichlet"
        raise JobFileError("dataset.partition", f"{partition!r} in a {job.kind} job", allowed=allowed)
    dataset = dataclasses.replace(job.dataset, parties=len(parties), partition=partition)
    return dataclasses.replace(job, parties=parties, dataset=dataset)


def _known(key: str, name: str, known: tuple[str, ...]) -> None:
    if name not in known and ":" not in name:
        raise JobFileError(key, f"{name!r}", allowed=", ".join(known) + ' or "package.module:function"')


def _check(job: Job) -> Job:
    """What holds between keys, and the files that are named."""
    check_shared(job)
    if job.runtime == "deployment":
        _check_deployment(job)
    else:
        _check_files(job)
    return job


def check_shared(job: Job) -> Job:
    """What holds between keys that every party sees."""
    seen: set[str] = set()
    for i, name in enumerate([*(p.name for p in job.parties), *job.train.receivers]):
        if not NAME.fullmatch(name) or name == "coordinator":
            raise JobFileError(f"party[{i}].name", f"{name!r}", allowed="a-z 0-9 _ . -, at most 64, not 'coordinator'")
        if name in seen:
            raise JobFileError(f"party[{i}].name", f"{name!r} is there twice", allowed="names that differ")
        seen.add(name)
    checks = {
        "horizontal": _check_horizontal,
        "vertical": _check_vertical,
        "predict": _check_predict,
        "psi": _check_psi,
    }
    checks[job.kind](job)
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


def _check_predict(job: Job) -> None:
    names, predict, psi = [p.name for p in job.parties], job.predict, job.psi
    if len(names) < 2:
        raise JobFileError("party", f"{len(names)} party", allowed="two or more")
    if not predict.model:
        raise JobFileError("predict.model", "missing", allowed="the --out folder of a vertical training, or its run")
    for i, party in enumerate(job.parties):
        for key in ("label", "columns", "categorical"):
            if getattr(party, key):
                raise JobFileError(f"party[{i}].{key}", "in a prediction", allowed="nothing; the model has its columns")
    for name in predict.receivers:
        if name not in names or predict.receivers.count(name) > 1:
            raise JobFileError("predict.receivers", f"{name!r}", allowed=", ".join(names) + ", each once")
    if predict.active not in (None, *names):
        raise JobFileError("predict.active", f"{predict.active!r}", allowed=", ".join(names))
    if predict.algorithm == "split-nn" and set(predict.receivers) - {predict.active}:
        problem, allowed = f"{', '.join(predict.receivers)} with split-nn", f"{predict.active}, which has the top model"
        raise JobFileError("predict.receivers", problem, allowed=allowed)
    if psi.receivers or psi.output != "receivers":
        key = "receivers" if psi.receivers else "output"
        raise JobFileError(f"psi.{key}", "all parties of a prediction are aligned", allowed="output = receivers")
    if psi.protocol == "cm20" and len(names) > 2:
        raise JobFileError("psi.protocol", f"'cm20' with {len(names)} parties", allowed="ecdh, auto")
    check_predict_protocol(job)


def _check_vertical(job: Job) -> None:
    names, vertical, union = [p.name for p in job.parties], job.vertical, job.psi.output == "union"
    if job.dataset is not None:
        _known("dataset.name", job.dataset.name, DATASETS)
    if len(names) < 2:
        raise JobFileError("party", f"{len(names)} party", allowed="two or more")
    labelled = [i for i, p in enumerate(job.parties) if p.label is not None]
    if len(labelled) > 1:
        problem = f"{job.parties[labelled[1]].label!r}: party {names[labelled[0]]} has a label already"
        raise JobFileError(f"party[{labelled[1]}].label", problem, allowed="a label at one party")
    if job.active not in names or (labelled and names[labelled[0]] != job.active):
        key = "vertical.active" if vertical.active else "party"
        problem = f"{vertical.active!r} is not the party with the label" if vertical.active else "no party has a label"
        raise JobFileError(key, problem, allowed="label = COLUMN at one of " + ", ".join(names))
    if job.psi.receivers or job.psi.output == "cardinality":
        key = "receivers" if job.psi.receivers else "output"
        raise JobFileError(f"psi.{key}", "all parties of a vertical job are aligned", allowed="receivers | union")
    if union and (vertical.algorithm == "split-nn" or vertical.protocol != "shared" or len(names) > 2):
        raise JobFileError(
            "psi.output",
            f"'union' with {vertical.algorithm}, protocol {vertical.protocol!r} and {len(names)} parties",
            allowed="logistic or gbdt, protocol shared, two parties",
        )
    if union and vertical.algorithm == "logistic" and vertical.mode == "open":
        raise JobFileError("vertical.mode", "'open' over a union: zeros would show who is absent", allowed="strict")
    if union and vertical.encoding == "woe":
        raise JobFileError("vertical.encoding", "'woe' over a union", allowed="one-hot")
    _check_algorithm(job)


def _check_algorithm(job: Job) -> None:
    """What the keys of one algorithm ask of each other."""
    vertical = job.vertical
    if vertical.protocol == "ckks" and vertical.algorithm != "logistic":
        raise JobFileError("vertical.protocol", f"'ckks' with {vertical.algorithm}", allowed="shared, or logistic")
    if vertical.mode != "auto" and (vertical.algorithm != "logistic" or vertical.protocol != "shared"):
        raise JobFileError("vertical.mode", f"{vertical.mode!r}", allowed="only with logistic and protocol shared")
    if vertical.objective == "regression" and vertical.algorithm == "logistic":
        raise JobFileError("vertical.objective", "'regression' with logistic", allowed="gbdt, split-nn")
    if vertical.encoding == "woe" and (vertical.algorithm != "logistic" or vertical.bins is None):
        raise JobFileError("vertical.encoding", "'woe'", allowed="logistic with bins")
    if vertical.encoding == "woe" and vertical.protocol != "shared":
        raise JobFileError("vertical.encoding", "'woe' with protocol 'ckks'", allowed="protocol shared")
    mechanism = job.privacy.mechanism
    if mechanism not in ("none", "cut-layer"):
        raise JobFileError("privacy.mechanism", f"{mechanism!r} in a vertical job", allowed="cut-layer | none")
    if mechanism == "cut-layer" and vertical.algorithm != "split-nn":
        raise JobFileError("privacy.mechanism", f"'cut-layer' with {vertical.algorithm}", allowed="split-nn")
    if job.psi.output == "union" and vertical.objective == "regression":
        raise JobFileError("vertical.objective", "'regression' over a union", allowed="binary | multiclass")


def _check_horizontal(job: Job) -> None:
    names = [p.name for p in job.parties]
    if job.privacy.mechanism == "cut-layer":
        allowed = "dp-sgd | client-dp | none"
        raise JobFileError("privacy.mechanism", "'cut-layer' in a horizontal job", allowed=allowed)
    if job.evaluate.test_ids is not None:
        raise JobFileError("evaluate.test_ids", "in a horizontal job", allowed="vertical jobs; test_fraction")
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
    test_ids = ("evaluate.test_ids", job.evaluate.test_ids)
    for key, path in [("model.init", job.model.init), test_ids, *data]:
        if path is not None and not (job.base / path).is_file():
            raise JobFileError(key, f"no file {job.base / path}", allowed="a file, relative to the job file")


def is_url(data: str | None) -> bool:
    """Whether a party's data is a SQLAlchemy URL rather than a file."""
    return data is not None and "://" in data


def _check_deployment(job: Job) -> None:
    """What a node decides is not in the job file: where its data lie, and how much privacy it gives."""
    for i, party in enumerate(job.parties):
        if party.data is not None and not NAME.fullmatch(party.data):
            allowed = "the name under which the node bound it (fedseal node init --data NAME=PATH-or-URL)"
            problem = "a URL" if is_url(party.data) else repr(party.data)  # which may hold a password
            raise JobFileError(f"party[{i}].data", f"{problem} in a deployment", allowed=allowed)
        for key in ("max_epsilon", "query"):
            if getattr(party, key) is not None:
                raise JobFileError(f"party[{i}].{key}", "is set at the party's node", allowed="nothing in a deployment")
    if job.evaluate.test_ids is not None and not NAME.fullmatch(job.evaluate.test_ids):
        allowed = "the name under which the active party's node bound the ids"
        raise JobFileError("evaluate.test_ids", f"{job.evaluate.test_ids!r} in a deployment", allowed=allowed)
    if job.model.init is not None:
        raise JobFileError("model.init", "a file that the nodes do not have", allowed="nothing in a deployment")
