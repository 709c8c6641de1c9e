"""Vertical models of scikit-learn's breast_cancer, a half of the columns at each party, and a service of one party."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pandas as pd
import pyarrow as pa
from google.protobuf.message_factory import GetMessageClass
from sklearn.datasets import load_breast_cancer

from clients.model_folder import write_part
from clients.predict.vertical import VerticalClient
from clients.predict.vertical_table import load_part, read_served
from fl_core.config import load_job
from fl_core.crypto.marked_sum import Asker
from fl_core.learning.columns import Column, Columns
from fl_core.learning.tree_parts import joint_scores
from fl_core.messages import COORDINATOR
from fl_core.protocols.prediction.online import NO_KEY, make_block
from fl_core.protocols.psi.ids import hash_ids
from fl_core.protocols.vertical import plan as vertical
from fl_core.protocols.vertical import program as training
from fl_core.protocols.vertical.logistic import probabilities
from fl_core.protocols.vertical.meaning import linear_probabilities
from fl_core.serving import digest, make_request
from fl_core.trust import certificates
from fl_core.trust.entry import Statement
from fl_core.trust.identity import Identity
from fl_core.trust.ledger import Ledger
from fl_core.wire.vertical_predict_pb2 import Ciphertexts, ContextRequest, ScoreRequest
from server.predict import Server
from server.serving.accounts import Accounts, Quota
from server.serving.door import Client, Counts, Door
from server.serving.receipts import Receipts
from server.serving.vertical import SERVICE, VerticalPrediction, handler
from server.serving.vertical_model import ServedPart, serve_part
from tests.fl_core.protocols.parties import converse, hashed
from tests.fl_core.protocols.vertical.test_program import MemorySite

KEY = b"k" * 32
ACTIVE, PASSIVE = "hospital", "lab"
SETTINGS: dict[str, dict[str, Any]] = {
    "logistic": {"algorithm": "logistic", "epochs": 3},
    "bins": {"algorithm": "logistic", "epochs": 3, "bins": 6},
    "trees": {"algorithm": "gbdt", "trees": 30, "depth": 3, "learning_rate": 0.3, "bins": 16},
    "kinds": {"algorithm": "gbdt", "trees": 20, "depth": 2, "bins": 8},  # of three classes
    "few": {"algorithm": "gbdt", "trees": 4, "depth": 2, "bins": 8},
}
ROWS = 569
TEST = np.arange(ROWS) % 5 == 0
GONE = np.arange(ROWS) % 50 == 10  # rows of the test that the lab does not have


@dataclass(frozen=True, eq=False)
class World:
    """A trained model's parts, and both parties' tables of all rows."""

    folder: Path
    which: str

    @property
    def active(self) -> Path:
        """The part of the party with the labels."""
        return self.folder / self.which / ACTIVE / "model"

    @property
    def passive(self) -> Path:
        return self.folder / self.which / PASSIVE / "model"

    def data(self, party: str) -> Path:
        return self.folder / f"{party}.csv"

    def served(self, name: str = "cancer", **more: Any) -> ServedPart:
        held = read_served(self.passive, self.data(PASSIVE), ["id"])
        return serve_part(name, held, version_key=KEY, **more)

    def plain(self, rows: np.ndarray) -> np.ndarray:
        """Predictions with both parts and all columns in one place."""
        active, passive = load_part(self.active, active=True)[0], load_part(self.passive, active=False)[0]
        one, two = (columns(part, rows, list(p.kinds)) for part, p in ((ACTIVE, active), (PASSIVE, passive)))
        if self.which in ("logistic", "bins"):
            z = active.partial(one) + passive.partial(two)
        else:
            z = joint_scores(active.trees, active.codes(one), [(passive.trees, passive.codes(two))])
        if self.which == "bins":
            return linear_probabilities(z)[:, 0]
        p = probabilities(z)
        return p[:, 0] if p.shape[1] == 1 else p / p.sum(axis=1, keepdims=True)


def identifier(row: int) -> str:
    return f"patient {row:04d} é"


@cache
def table() -> tuple[pd.DataFrame, np.ndarray]:
    x, y = load_breast_cancer(return_X_y=True, as_frame=True)
    return x, y.to_numpy()


def columns(party: str, rows: np.ndarray, names: list[str] | None = None) -> Columns:
    x, _ = table()
    names = names or list(x.columns[:15] if party == ACTIVE else x.columns[15:])
    return Columns(tuple(Column(name, numbers=x[name].to_numpy()[rows]) for name in names), len(rows))


def own_rows(rows: np.ndarray) -> dict[str, np.ndarray]:
    """As an application has the active party's values."""
    x, _ = table()
    return {name: x[name].to_numpy()[rows] for name in x.columns[:15]}


def make_world(folder: Path, which: str, run: str = "0123456789abcdef") -> World:
    """Train on the rows that are not of the test, in memory, and write what the parties keep."""
    (x, y), kept = table(), np.flatnonzero(~TEST)
    classes = ("bad", "good")
    if which == "kinds":
        y, classes = np.where(y == 1, 2, x["mean radius"].to_numpy() > 17), ("a", "b", "c")
    (folder / "x.csv").write_text("id\n1\n")
    named = [{"name": n, "data": str(folder / "x.csv"), "id": "id"} for n in (ACTIVE, PASSIVE)]
    named[0]["label"] = "y"
    job = load_job({"kind": "vertical", "seed": 4, "party": named, "vertical": SETTINGS[which]})
    ids, objective = np.array([f"{i:05d}" for i in kept]), "binary" if len(classes) == 2 else "multiclass"
    more = {ACTIVE: {"labels": y[kept], "classes": classes, "objective": objective}, PASSIVE: {}}
    tables = {n: training.Table(hashed(kept.tolist()), ids, columns(n, kept), None, n, **more[n]) for n in more}
    plan = vertical.plan_of(job)
    programs: dict[str, Any] = {
        n: lambda c: training.run(c, plan, tables[c.me], MemorySite(), threads=1) for n in tables
    }
    if plan.coordinator is not None:
        programs[COORDINATOR] = lambda c: training.coordinate(c, plan)
    done = converse(programs)
    for name in tables:
        kept_part = done.result(name)
        about = {
            "party": name, "parties": list(plan.parties), "algorithm": job.vertical.algorithm, "job": "ab" * 32,
            "run": run, "objective": kept_part.task.objective, "outputs": kept_part.task.outputs,
            "classes": list(tables[name].classes), **kept_part.method.describe(),
        }  # fmt: skip
        write_part(folder / which / name / "model", json.loads(json.dumps(about)), kept_part.method.arrays())
    every, named_rows = np.arange(ROWS), [identifier(row) for row in range(ROWS)]
    for name in tables:
        frame = pd.DataFrame({c.name: c.numbers for c in columns(name, every)})
        frame.insert(0, "id", named_rows)
        (frame[~GONE].sample(frac=1, random_state=1) if name == PASSIVE else frame).to_csv(
            folder / f"{name}.csv", index=False
        )
    return World(folder, which)


class Place:
    """A service of the lab in a folder, and the hospital's client of it."""

    def __init__(self, path: Path, models: dict[str, ServedPart], quota=Quota(10**6, 1000.0), capacity=8) -> None:
        self.path, self.models, self.quota, self.capacity = path, models, quota, capacity
        self.identity = Identity.load_or_create(path / "owner", PASSIVE)
        self.asker = Identity.load_or_create(path / "asker", ACTIVE)
        authority = certificates.make_authority("test")
        self.authority = authority.certificate
        self.pair = certificates.issue_server(authority, ["localhost", "127.0.0.1"])
        self.start()

    def start(self) -> None:
        self.accounts = Accounts(self.path / "accounts.db")
        self.ledger = Ledger.open(self.path / "ledger.db", self.identity)
        self.counts = Counts()
        self.door = Door(
            self.identity, self.ledger, self.accounts, {ACTIVE: Client(self.asker.card)}, self.quota,
            capacity=self.capacity, watcher=self.counts,
        )  # fmt: skip
        self.service = VerticalPrediction(self.door, self.models)
        self.server = Server(handler(self.service), "127.0.0.1:0", self.pair, capacity=self.capacity)
        self.receipts = Receipts(self.ledger, self.accounts, seconds=30.0)
        self.address = f"localhost:{self.server.port}"

    def stop(self) -> None:
        self.server.stop(1.0)
        self.receipts.close()
        self.ledger.close()
        self.accounts.close()

    def client(self, model: Path, identity=None, folder="state", **more) -> VerticalClient:
        return VerticalClient(
            self.address, authority=self.authority, identity=identity or self.asker, folder=self.path / folder,
            model=model, **more,
        )  # fmt: skip

    def raw(self, name, request):
        """A request as it is, past the client's own code."""
        method = SERVICE.methods_by_name[name]
        options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
        with grpc.secure_channel(self.address, grpc.ssl_channel_credentials(self.authority), options) as channel:
            kind = channel.stream_unary if method.client_streaming else channel.unary_unary
            encode, decode = (GetMessageClass(t) for t in (method.input_type, method.output_type))
            call = kind(
                f"/{SERVICE.full_name}/{name}",
                request_serializer=encode.SerializeToString,
                response_deserializer=decode.FromString,
            )
            return call(iter(request) if method.client_streaming else request, timeout=20)

    def refused(self, name, request) -> tuple[str, str]:
        """The code and the words."""
        try:
            self.raw(name, request)
        except grpc.RpcError as error:
            return error.code().name, error.details()
        raise AssertionError("not refused")

    def signed(self, method, identity=None, **body) -> Statement:
        return make_request(identity or self.asker, method, self.identity.card.fingerprint, **body)

    def context(self, public, identity=None, name=None) -> list[ContextRequest]:
        signed = self.signed("OpenVertical", identity, key=name or digest([public]))
        return [ContextRequest(statement=signed.encode()), ContextRequest(part=public)]

    def opened(self) -> tuple[Asker, str]:
        """A key whose public half is at the server."""
        key = Asker()
        self.raw("OpenVertical", self.context(key.public))
        return key, digest([key.public])

    def block(self, ids, asked=(), identity=None, **changes) -> list[ScoreRequest]:
        """A request for a block, which is made of hashes or is bytes."""
        data = ids if isinstance(ids, bytes) else make_block(ids)
        rows = (len(data) - 16) // 32
        flat = [one for question in asked for one in question]
        body = {
            "model": "cancer", "version": self.models["cancer"].offer.version, "form": "ids", "key": NO_KEY,
            "rows": rows, "sent": digest([data, *flat]),
        }  # fmt: skip
        statement = self.signed("Score", identity, **{**body, **changes})
        questions = [ScoreRequest(asked=Ciphertexts(ciphertexts=question)) for question in asked]
        return [ScoreRequest(statement=statement.encode()), ScoreRequest(ids=data), *questions]


def hashes_of(*ids: str) -> np.ndarray:
    return hash_ids([pa.array(list(ids))], ["id"], where="test").hashes
