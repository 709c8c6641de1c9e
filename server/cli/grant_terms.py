"""What `fedseal grant request` asks for: read from its options, the dataset's card and a job file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from fl_core.errors import UsageError
from server.cli.desk import Desk, now_ms, until_ms

if TYPE_CHECKING:
    from fl_core.trust.catalog import DatasetCard
    from fl_core.trust.grants import Terms

DAYS = 30


def asked_terms(desk: Desk, asked: dict[str, Any], job: Path | None) -> Terms:
    """Return what is asked for, from the options of the command and the job file.  Raises UsageError."""
    from fl_core.trust.catalog import to_micro
    from fl_core.trust.grants import ANY, Signer, Terms

    card = _listed(desk, asked["owner"], asked["dataset"])
    wanted = _of_job(job, asked)
    kinds = tuple(asked["kind"] or wanted.get("kinds", ()))
    if not kinds:
        raise UsageError("grant request: no --kind; allowed: --kind horizontal, say, or --job JOB.toml")
    purpose = asked["purpose"] or (card.purposes[0] if card is not None and len(card.purposes) == 1 else "")
    if not purpose or (card is not None and purpose not in card.purposes):
        allowed = ", ".join(card.purposes) if card is not None else "one of those on the dataset's card"
        raise UsageError(f"--purpose {purpose!r:.80}; allowed: {allowed}")
    if card is None and asked["this_version"]:
        raise UsageError("--this-version: the dataset's card is not known here; allowed: where the board is reached")
    amount = wanted.get("epsilon", 0) if asked["epsilon"] is None else to_micro(asked["epsilon"], up=False)
    uses, now = asked["uses"] or 1, now_ms()
    if asked["epsilon"] is None:
        amount *= uses
    return Terms(
        owner=asked["owner"],
        dataset=asked["dataset"],
        version=card.version if card is not None and asked["this_version"] else "",
        grantee=Signer.of(desk.identity.card),
        kinds=kinds,
        algorithms=tuple(asked["algorithm"] or wanted.get("algorithms", (ANY,))),
        model=wanted.get("model", ""),
        job=wanted.get("job", ""),
        private_only=amount > 0,
        uses=uses,
        epsilon=amount,
        receivers=tuple(asked["receivers"] or wanted.get("receivers", (desk.identity.name,))),
        not_before=now,
        not_after=until_ms(asked["until"]) if asked["until"] else now + DAYS * 86_400_000,
        purpose=purpose,
    )


def _listed(desk: Desk, owner: str, name: str) -> DatasetCard | None:
    """The dataset's card; None where no board can be read."""
    from clients.board import read_catalog

    if desk.board is None:
        return None
    found, _ = read_catalog(desk.board)
    listing = found.get(owner, name)
    if listing is None or listing.withdrawn:
        known = ", ".join(f"{held.card.owner}/{held.card.name}" for held in found.listings()) or "none is published"
        raise UsageError(f"{owner}/{name}: not offered; allowed: {known}"[:400])
    return listing.card


def _of_job(path: Path | None, asked: dict[str, Any]) -> dict[str, Any]:
    """What a job file says of the grant that it needs."""
    if path is None:
        return {}
    from clients.consent.terms import Wanted
    from fl_core.config import load_job

    wanted = Wanted.of(load_job(path, []), owner=asked["owner"], dataset=asked["dataset"])
    return {
        "kinds": (wanted.kind,), "algorithms": (wanted.algorithm,), "model": wanted.model, "job": wanted.job,
        "receivers": wanted.receivers, "epsilon": wanted.epsilon,
    }  # fmt: skip
