"""A run as the coordinator's program would leave it on a ledger, and what MLflow would show of it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fl_core.trust.checkpoint import cosign
from fl_core.trust.entry import Statement
from fl_core.trust.identity import Identity
from fl_core.trust.ledger import Ledger
from fl_core.trust.outside import WITNESS_KEY, VerifierKey
from fl_core.trust.verify.files import LIMITS

VIEW = {
    "kind": "horizontal",
    "name": "digits",
    "party": [{"name": "a"}, {"name": "b"}],
    "train": {"rounds": 3},
    "x": "",
}
JOB = "ab" * 32
MODEL = "cd" * 32
REPORT = hashlib.sha256(b"<p>report").hexdigest()


@dataclass
class Memory:
    """A pack's files in memory."""

    files: dict[str, bytes]

    def sizes(self) -> dict[str, int]:
        return {name: len(data) for name, data in self.files.items()}

    def open(self, name: str) -> Any:
        import io

        return io.BytesIO(self.files[name])

    @classmethod
    def read(cls, path: Path) -> Memory:
        return cls({item.name: item.read_bytes() for item in path.iterdir()})

    def write(self, path: Path) -> Path:
        path.mkdir()
        for name, data in self.files.items():
            (path / name).write_bytes(data)
        return path

    def changed(self, **files: bytes | None) -> Memory:
        """Other files under these names (`_` for `.`), or none, and the manifest to match."""
        named = {(name if name in LIMITS else name.replace("_", ".")): data for name, data in files.items()}
        return sealed({n: d for n, d in {**self.files, **named}.items() if d is not None})


def sealed(files: dict[str, bytes]) -> Memory:
    """The files with a manifest that matches: what a forger sends."""
    listed = {
        name: {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
        for name, data in sorted(files.items())
        if name != "manifest.json"
    }
    table = {"files": listed, "type": "fedseal audit pack v1"}
    return Memory({**files, "manifest.json": json.dumps(table, separators=(",", ":"), sort_keys=True).encode() + b"\n"})


@dataclass
class Scene:
    """A ledger with runs on it."""

    path: Path
    coordinator: Identity
    parties: dict[str, Identity]
    ledger: Ledger = field(init=False)

    def __post_init__(self) -> None:
        self.ledger = Ledger.open(self.path, self.coordinator)

    def say(self, by: str, kind: str, body: dict[str, Any], run: str) -> Statement:
        identity = self.coordinator if by == "coordinator" else self.parties[by]
        return Statement.make(identity, log=self.ledger.log, kind=kind, run=run, body=body)

    def show_cards(self, run: str = "") -> None:
        self.ledger.commit([self.say(n, "card", {"card": p.card.to_dict()}, run) for n, p in self.parties.items()])

    def open_run(self, run: str) -> None:
        names = list(self.parties)
        job = {"job": JOB, "view": VIEW, "unsafe": []}
        roster = {"parties": names, "min_parties": 2}
        self.ledger.commit([self.say("coordinator", "job", job, run), self.say("coordinator", "roster", roster, run)])

    def round(self, run: str, number: int) -> None:
        names = list(self.parties)
        updates = [self.say(n, "update", {"round": number, "blob": f"{number}{n}"}, run) for n in names]
        total = self.say("coordinator", "aggregate", {"round": number, "parties": names, "missing": []}, run)
        self.ledger.commit([*updates, total])
        self.witness()
        record = {"round": number, "metrics": metrics(number), "parties": names, "missing": []}
        self.ledger.append([self.say("coordinator", "round", record, run)])

    def end_run(self, run: str, *, cosigners: int | None = None) -> None:
        names = list(self.parties)
        closing = [self.say(n, "close", {"round": 9, "blobs": {"model": MODEL}, "model": MODEL}, run) for n in names]
        self.ledger.commit([*closing, self.say("coordinator", "end", {"status": "done", "model": MODEL}, run)])
        self.witness(cosigners)

    def run(self, run: str, rounds: int = 3, *, cosigners: int | None = None) -> None:
        self.open_run(run)
        for number in range(1, rounds + 1):
            self.round(run, number)
        self.end_run(run, cosigners=cosigners)

    def witness(self, cosigners: int | None = None) -> None:
        note, names = self.ledger.checkpoint(), list(self.parties)[:cosigners]
        self.ledger.add_cosignatures(self.ledger.size, {n: cosign(self.parties[n], note, timestamp=7) for n in names})

    def witness_outside(self, witness: Identity, size: int | None = None, *, seconds: int = 1_700_000_000) -> str:
        """Have a witness from outside co-sign the checkpoint over `size` entries; return its verifier key."""
        key, size = VerifierKey.of(witness, algorithm=WITNESS_KEY), self.ledger.size if size is None else size
        self.ledger.add_outside(size, key, cosign(witness, self.ledger.checkpoint_at(size) or "", timestamp=seconds))
        return key.text

    def mlflow(self, run: str, rounds: int = 3, *, size: int | None = None) -> dict[str, Any]:
        """What MLflow shows of a finished run, in the form of `server.reconcile.reading`."""
        size = self.ledger.size if size is None else size
        from fl_core.trust.merkle import Frontier

        tree = Frontier()
        for entry in self.ledger.entries(0, size):
            tree.append(entry.leaf_hash)
        tags = {
            "fedseal.run": run, "fedseal.job": JOB, "fedseal.kind": "horizontal", "mlflow.runName": "digits",
            "model.digest": MODEL, "ledger.size": str(size), "ledger.root": tree.root().hex(), "fedseal.spool": "s",
        }  # fmt: skip
        table = [[k, str(n), repr(float(v))] for n in range(1, rounds + 1) for k, v in metrics(n).items()]
        return {
            "run_id": "f" * 32,
            "status": "FINISHED",
            "metrics": table,
            "params": [["kind", "horizontal"], ["name", "digits"], ["party", "a, b"], ["train.rounds", "3"]],
            "tags": [list(pair) for pair in tags.items()],
            "artifacts": [
                {"name": "audit/report.html", "sha256": REPORT, "size": 9},
                {"name": "model/model.pt", "sha256": MODEL, "size": 5},
            ],
        }


def metrics(number: int) -> dict[str, str]:
    """A round's texts: also one that no float holds exactly, an exponent and a value that is no number."""
    return {"accuracy": f"{0.1 * number:.6g}", "bytes": "2.83876e+06", "loss": "nan" if number == 2 else "0.3"}
