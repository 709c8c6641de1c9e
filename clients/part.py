"""A party's own part of a job: what all parties see, filled in with what only this one knows.

In the runtimes of one machine that part stands in the job file.  At a node of a deployment the coordinator tells it to
this party alone (the name of its data, its columns), and the owner's policy says what the name means and allows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cryptography.hazmat.primitives import serialization

from clients.policy import Policy
from fl_core import messages
from fl_core.config import is_url, job_from_public
from fl_core.errors import BadMessage, DataError, RefusedError
from fl_core.job import Job, Party, file_digest
from fl_core.messages import Packet
from fl_core.trust import canonical

if TYPE_CHECKING:
    from clients.sql_source import SqlSource


@dataclass(frozen=True)
class Line:
    """How a node of a deployment reaches the exchange: on the coordinator's host, with the key that it registered.

    Parameters
    ----------
    host : the coordinator's, as the node dials it.
    authority : PEM of the pinned authority.
    key : file of the node's Flower key.
    """

    host: str
    authority: bytes
    key: Path

    def key_pem(self) -> bytes:
        """The key as TLS takes it."""
        key = serialization.load_ssh_private_key(self.key.read_bytes(), None)
        form = serialization.PrivateFormat.PKCS8
        return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())


@dataclass(frozen=True)
class NodeConfig:
    """What this machine knows of the party: its folder, where its outputs go, and its own part of the job file.

    At a node of a deployment the owner's `policy` stands here, and the party's part of the job comes with the job.
    Elsewhere a job makes its own grants, unless it is `strict`.
    """

    party: str
    home: Path
    out: Path
    base: Path
    run: str
    own: dict[str, Any]
    policy: Policy | None = None
    line: Line | None = None
    strict: bool = False


def own_part(config: NodeConfig, packet: Packet) -> dict[str, Any]:
    """This party's part, from the job file at hand or from the authenticated request to join."""
    if config.policy is None:
        return dict(config.own)
    told = canonical.decode(packet.blobs.get("own", b"{}"), max_bytes=messages.MAX_HEAD)
    if not isinstance(told, dict):
        raise BadMessage("this party's part of the job is not a table")
    return told


def bind(config: NodeConfig, view: Any, own: dict[str, Any], *, begun: bool) -> tuple[Job, Party | None]:
    """The job with this party's part filled in; None for a receiver without data.

    Raises `RefusedError` where the owner's policy does not allow it; `begun`: this party takes part already.
    """
    job = job_from_public(view)
    if config.policy is not None:
        if job.model.init is not None:
            raise RefusedError("model.init: a node starts from no file that a coordinator names")
        config.policy.check(job, begun=begun)
    else:
        job, own = _with_files(config, job, own)
    if config.party not in [p.name for p in job.parties]:
        if config.party not in job.train.receivers:
            raise BadMessage("the job does not name this party")
        return job, None
    own = dict(own)
    if (test_ids := own.pop("test_ids", None)) is not None:
        job = replace(job, evaluate=replace(job.evaluate, test_ids=str(test_ids)))
    if config.policy is not None:
        return job, config.policy.fill(job.party(config.party), own, job)
    lists = {key: tuple(own.get(key, ())) for key in ("id", "columns", "categorical")}
    return job, Party(**{**own, **lists, "name": config.party})


def _with_files(config: NodeConfig, job: Job, own: dict[str, Any]) -> tuple[Job, dict[str, Any]]:
    """The job with the folder of its file, and with the model it starts from."""
    own = dict(own)
    own.pop("model", None)  # where its part of a model lies, which the program asks for itself
    init = own.pop("init", None)
    if init is not None and file_digest(config.base / init) != job.model.init:
        raise DataError("model.init", f"{init} is not the file the job names", allowed=f"SHA-256 {job.model.init}")
    return replace(job, base=config.base, model=replace(job.model, init=init) if init else job.model), own


def source_of(job: Job, party: Party, policy: Policy | None) -> Path | SqlSource:
    """Where the party's rows come from: as bound at its node, or as the job file says."""
    if policy is not None:
        return policy.source(party)
    if is_url(party.data):
        from clients.sql_source import SqlSource

        return SqlSource(party.data or "", party.query or "")
    return job.base / (party.data or "")
