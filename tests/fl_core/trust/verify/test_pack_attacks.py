"""Audit packs against whoever carries, keeps or forges them: what is altered is named, or lies in a listed field.

The forger here is as strong as the carrier of a pack can be: after each change it writes the manifest anew, so only
signatures, the tree and the cross-checks stand in its way.
"""

from __future__ import annotations

import functools
import hashlib
import json
import random
from pathlib import Path
from typing import Any

import pytest

from fl_core.trust.checkpoint import Checkpoint, cosign, sign_checkpoint
from fl_core.trust.entry import Entry
from fl_core.trust.identity import Identity
from fl_core.trust.ledger import Ledger
from fl_core.trust.merkle import Frontier
from fl_core.trust.pack import write_pack
from fl_core.trust.verify import NotALedger, verify_evidence, verify_ledger, verify_pack
from fl_core.trust.verify import claims as claims_module
from fl_core.trust.verify import excerpt as excerpt_module
from fl_core.trust.verify import format as format_module
from fl_core.trust.verify import ledger as ledger_module
from fl_core.trust.verify import pack as pack_module
from fl_core.trust.verify import signatures as signatures_module
from fl_core.trust.verify import stream as stream_module
from fl_core.trust.verify.__main__ import judge, main
from fl_core.trust.verify.evidence import write_evidence
from fl_core.trust.verify.pack import verify_files
from tests.fl_core.trust.pack_scene import Memory, Scene, sealed

BOTH = pytest.mark.parametrize("whole", [False, True])
# what follows from no entry: (file, place in it), named in the report as unchecked
OUTSIDE = {
    ("mlflow.json", "run_id"),
    ("mlflow.json", "tags fedseal.spool"),
    ("artifacts.json", "audit/report.html name"),
    ("artifacts.json", "audit/report.html sha256"),
    ("artifacts.json", "audit/report.html size"),
    ("artifacts.json", "model/model.pt name"),
    ("artifacts.json", "model/model.pt size"),
}


@pytest.fixture(scope="module")
def identities() -> tuple[Identity, dict[str, Identity]]:
    return Identity.create("coordinator"), {name: Identity.create(name) for name in ("bank_a", "bank_b", "bank_c")}


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory, identities: tuple[Identity, dict[str, Identity]]) -> Any:
    """One run of 50 entries with the cards and what else a pack of it holds."""
    scene = Scene(tmp_path_factory.mktemp("log") / "ledger.db", *identities)
    scene.show_cards()
    scene.run("run", 8)
    assert scene.ledger.size == 50
    for name, place in (("notary", -1), ("chamber", -1), ("registry", -2)):
        scene.witness_outside(Identity.create(name), scene.ledger.checkpoint_sizes()[place])
    yield scene
    scene.ledger.close()


@pytest.fixture(scope="module")
def packs(scene: Scene, tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Memory]:
    base = tmp_path_factory.mktemp("packs")
    return {
        whole: Memory.read(
            write_pack(scene.ledger, "run", base / str(whole), whole=whole, mlflow=scene.mlflow("run", 8)).path
        )
        for whole in (False, True)
    }


@pytest.fixture
def cached(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pure functions are computed once for all mutants of a pack.

    Sound: the key of each cache is everything that the function reads, and no caller changes what it returns. Where
    that is a parsed value it is known by being the very same object, which the cache keeps alive.
    """
    real = format_module.check_signature

    @functools.cache
    def verify(raw: bytes, signature: bytes, data: bytes) -> bool:
        card = format_module.Card("x", raw, format_module.Ed25519PublicKey.from_public_bytes(raw), {})
        try:
            real(card, signature, data, "")
        except format_module.Broken:
            return False
        return True

    def check(card: Any, signature: bytes, data: bytes, reason: str) -> None:
        if not verify(card.raw, signature, data):
            raise format_module.Broken(f"{card.name}: {reason}")

    def once(function: Any) -> Any:
        known: dict[int, tuple[Any, Any]] = {}

        def call(value: Any) -> Any:
            if id(value) not in known:
                known[id(value)] = (value, function(value))
            return known[id(value)][1]

        return call

    bytewise = functools.lru_cache(maxsize=None)
    for module in (format_module, signatures_module):
        monkeypatch.setattr(module, "check_signature", check)
    decode = bytewise(format_module.decode)
    for module in (ledger_module, stream_module):
        monkeypatch.setattr(module, "decode", decode)
    for name in ("read_note", "leaf_hash"):
        monkeypatch.setattr(ledger_module, name, bytewise(getattr(ledger_module, name)))
    monkeypatch.setattr(ledger_module, "signed_of", bytewise(ledger_module.signed_of))
    monkeypatch.setattr(ledger_module, "read_card", once(ledger_module.read_card))
    monkeypatch.setattr(excerpt_module, "check_inclusion", bytewise(excerpt_module.check_inclusion))
    for name in (
        "read_proof",
        "read_policy",
        "read_mlflow",
        "read_artifacts",
        "read_checkpoint",
        "read_witnesses",
        "read_note",
    ):
        monkeypatch.setattr(pack_module, name, bytewise(getattr(pack_module, name)))
    texts = claims_module.texts
    monkeypatch.setattr(claims_module, "texts", once(lambda body: tuple(texts(body))))


def fields(name: str, data: bytes) -> dict[str, Any]:
    """The places of a document as this test names them."""
    document = json.loads(data)
    if name == "artifacts.json":
        return {f"{file['name']} {key}": file[key] for file in document["files"] for key in file}
    flat = {key: document[key] for key in ("type", "run_id", "status")}
    flat |= {f"tags {key}": value for key, value in document["tags"]}
    return flat | {f"params {key}": value for key, value in document["params"]} | {"metrics": document["metrics"]}


def is_outside(name: str, before: bytes, after: bytes) -> bool:
    """Whether two documents differ in listed places only; a renamed one counts as the place that it was."""
    old, new = fields(name, before), fields(name, after)
    if name == "artifacts.json":  # by order: names are outside themselves
        names = [file["name"] for file in json.loads(before)["files"]]
        files = json.loads(after)["files"]
        if len(files) != len(names):
            return False
        new = {f"{was} {key}": file[key] for was, file in zip(names, files, strict=True) for key in file}
    differing = {place for place in set(old) | set(new) if old.get(place) != new.get(place)}
    return all((name, place) in OUTSIDE or _renamed_spool(place, old, new) for place in differing)


def _renamed_spool(place: str, old: dict[str, Any], new: dict[str, Any]) -> bool:
    """A tag of which no entry speaks may have another name of which none speaks either."""
    free = [p for p in new if p.startswith("tags ") and p not in old]
    return place in free and "tags fedseal.spool" not in new and len(free) == 1


def mutants(data: bytes, places: Any, rng: random.Random, ways: int) -> Any:
    for place in places:
        changes = [1, 0x20, rng.randrange(1, 256)][:ways]
        for change in changes:
            yield place, data[:place] + bytes([data[place] ^ change]) + data[place + 1 :]


def accepted_outside(memory: Memory, step: int, ways: int) -> tuple[int, dict[str, int]]:
    """Verify mutants; return how many, and how many of each file lie in listed fields.  No other is accepted."""
    rng, tried, outside = random.Random(7), 0, {}
    hashes = {n: {"sha256": hashlib.sha256(d).hexdigest(), "size": len(d)} for n, d in memory.files.items()}
    for name, data in memory.files.items():
        for place, changed in mutants(data, range(tried % step, len(data), step), rng, ways):
            files = {**memory.files, name: changed}
            if name != "manifest.json":
                listed = {n: h for n, h in hashes.items() if n != "manifest.json"}
                listed[name] = {"sha256": hashlib.sha256(changed).hexdigest(), "size": len(changed)}
                table = {"files": listed, "type": "fedseal audit pack v1"}
                files["manifest.json"] = json.dumps(table, separators=(",", ":"), sort_keys=True).encode() + b"\n"
            report = verify_files(Memory(files))
            tried += 1
            if report.status == 1:
                continue
            assert report.status == 0 and name in ("mlflow.json", "artifacts.json"), (name, place, report.reason)
            assert is_outside(name, data, changed), (name, place)
            outside[name] = outside.get(name, 0) + 1
    return tried, outside


# ---- single bytes


@BOTH
def test_changed_bytes_of_any_file_are_found_or_lie_in_listed_fields(
    packs: dict[bool, Memory], cached: None, whole: bool
) -> None:
    """Some bytes here; each of them in the slow test below."""
    assert verify_files(packs[whole]).status == 0
    tried, outside = accepted_outside(packs[whole], 53, 1)
    assert tried > 300 and sum(outside.values()) < 10


@pytest.mark.slow
@BOTH
def test_every_changed_byte_of_every_file_is_found_or_lies_in_a_listed_field(
    packs: dict[bool, Memory], cached: None, whole: bool
) -> None:
    tried, outside = accepted_outside(packs[whole], 1, 1)
    assert tried == sum(len(data) for data in packs[whole].files.values())
    assert 0 < sum(outside.values()) < 400, "the listed fields are some hundred bytes, and found to be so"


@BOTH
def test_damage_of_any_byte_is_found_where_the_manifest_is_kept(
    packs: dict[bool, Memory], cached: None, whole: bool
) -> None:
    """Then nothing at all is outside: this is damage, not forgery."""
    memory, rng = packs[whole], random.Random(3)
    for name, data in memory.files.items():
        for place, changed in mutants(data, range(rng.randrange(31), len(data), 31), rng, 1):
            assert verify_files(Memory({**memory.files, name: changed})).status == 1, (name, place)


# ---- lines: cut, swapped, doubled, removed, moved between packs


@BOTH
def test_every_cut_is_found(packs: dict[bool, Memory], cached: None, whole: bool) -> None:
    memory, rng = packs[whole], random.Random(5)
    for name, data in memory.files.items():
        ends = [i + 1 for i, byte in enumerate(data[:-1]) if byte == 10]
        for place in {0, *ends, *(e - 1 for e in ends), len(data) - 1, *rng.sample(range(len(data)), 30)}:
            cut = {**memory.files, name: data[:place]}
            assert verify_files(Memory(cut)).status == 1
            assert verify_files(sealed(cut)).status == 1 or name == "manifest.json", (name, place)


@BOTH
@pytest.mark.parametrize("name", ["entries.jsonl", "proofs.jsonl", "checkpoint", "witnesses.json"])
def test_every_swap_doubling_and_removal_of_lines_is_found(
    packs: dict[bool, Memory], cached: None, whole: bool, name: str
) -> None:
    memory = packs[whole]
    if name not in memory.files:
        return
    lines = memory.files[name].splitlines(True)
    for at in range(len(lines)):
        altered = [lines[:at] + lines[at + 1 :], [*lines[:at], lines[at], *lines[at:]]]
        if at and lines[at] != lines[at - 1]:
            altered.append([*lines[: at - 1], lines[at], lines[at - 1], *lines[at + 1 :]])
        for changed in altered:
            report = verify_files(sealed({**memory.files, name: b"".join(changed)}))
            assert report.status == 1, (name, at)


def test_entries_and_proofs_changed_together_are_found(packs: dict[bool, Memory], cached: None) -> None:
    """Swaps and doublings as the forger would do them: in both files alike, and in the policy's counts."""
    memory = packs[False]
    lines = memory.files["entries.jsonl"].splitlines(True)
    proofs = memory.files["proofs.jsonl"].splitlines(True)
    policy = json.loads(memory.files["policy.json"])
    for at in range(1, len(lines)):
        for order in (
            [*range(at - 1), at, at - 1, *range(at + 1, len(lines))],
            [*range(at), at - 1, *range(at, len(lines))],
        ):
            table = policy | {"entries": policy["entries"] + len(order) - len(lines)}
            files = {
                **memory.files,
                "entries.jsonl": b"".join(lines[i] for i in order),
                "proofs.jsonl": b"".join(proofs[i] for i in order) + b"".join(proofs[len(lines) :]),
                "policy.json": json.dumps(table, separators=(",", ":"), sort_keys=True).encode() + b"\n",
            }
            assert verify_files(sealed(files)).status == 1, at


def test_doubled_keys_and_other_spellings_are_refused(packs: dict[bool, Memory], cached: None) -> None:
    memory = packs[False]
    for name in ("policy.json", "mlflow.json", "artifacts.json", "manifest.json"):
        data = memory.files[name]
        key = data[1 : data.index(b":") + 1]
        for changed in (
            b"{" + key + b"0," + data[1:],
            data.replace(b",", b", ", 1),
            b" " + data,
            data + b"\n",
            b"\xef\xbb\xbf" + data,
        ):
            assert verify_files(sealed({**memory.files, name: changed}) if name != "manifest.json"
                                else Memory({**memory.files, name: changed})).status == 1  # fmt: skip


# ---- statements and logs of the coordinator's making


def reissued(scene: Scene, path: Path, change: Any) -> Scene:
    """The log written anew by its coordinator, with its own key: statements as `change` makes them of the old ones."""
    other = Scene.__new__(Scene)
    other.path, other.coordinator, other.parties = path, scene.coordinator, scene.parties
    other.ledger = Ledger.open(path, scene.coordinator)
    for entry in list(scene.ledger.entries())[1:]:
        for statement in change(entry):
            other.ledger.append([statement])
        if scene.ledger.checkpoint_at(entry.seq + 1):
            other.ledger.checkpoint()
    return other


@BOTH
def test_log_issued_anew_is_caught_with_a_remembered_checkpoint(scene: Scene, tmp_path: Path, whole: bool) -> None:
    forged = reissued(scene, tmp_path / "forged.db", lambda entry: [entry.statement])  # other times, other roots
    names = list(scene.parties)
    for size in forged.ledger.checkpoint_sizes()[1:]:  # and even all its parties play along
        note = forged.ledger.checkpoint_at(size)
        forged.ledger.add_cosignatures(size, {n: cosign(scene.parties[n], note) for n in names if size > 4})
    kept = [scene.ledger.checkpoint_at(size) for size in scene.ledger.checkpoint_sizes()]
    out = write_pack(forged.ledger, "run", tmp_path / "pack", whole=whole).path
    assert verify_pack(out).status == 0, "consistent in itself"
    for note in kept[1:]:
        report = verify_pack(out, since=note)
        assert report.status == 1
        assert whole is False or "rewritten" in report.reason
    forged.ledger.close()


@BOTH
def test_replayed_statements_are_refused_even_where_the_coordinator_orders_them(
    scene: Scene, tmp_path: Path, whole: bool
) -> None:
    """The same signed update twice: validly signed, chained and in the tree, and found all the same."""
    done = []

    def twice(entry: Entry) -> list[Any]:
        again = entry.kind == "update" and not done
        done.extend([1] * again)
        return [entry.statement] * (1 + again)

    forged = reissued(scene, tmp_path / "forged.db", twice)
    forged.ledger.checkpoint()
    report = verify_pack(write_pack(forged.ledger, "run", tmp_path / "pack", whole=whole).path)
    assert report.status == 1 and "replayed" in report.reason and report.first_bad is not None
    forged.ledger.close()


@BOTH
def test_statement_of_another_run_or_log_put_in_is_refused(
    scene: Scene, packs: dict[bool, Memory], tmp_path: Path, whole: bool
) -> None:
    """A genuine statement of the same party from another run, or another log, in the place of one of this run."""
    lines = packs[whole].files["entries.jsonl"].splitlines(True)
    elsewhere = Scene(tmp_path / "elsewhere.db", scene.coordinator, scene.parties)
    stranger = Scene(tmp_path / "stranger.db", Identity.create("coordinator"), scene.parties)
    for source, run in ((elsewhere, "other"), (stranger, "run")):
        for at, line in enumerate(lines):
            entry = json.loads(line)
            if entry.get("kind") not in ("update", "close"):
                continue
            statement = source.say(entry["by"], entry["kind"], entry["body"], run).to_dict()
            if source is stranger:
                assert statement["log"] != entry["log"]
            put = {**statement, "seq": entry["seq"], "prev": entry["prev"], "t": entry["t"]}
            data = json.dumps(put, separators=(",", ":"), sort_keys=True).encode() + b"\n"
            files = {**packs[whole].files, "entries.jsonl": b"".join([*lines[:at], data, *lines[at + 1 :]])}
            report = verify_files(sealed(files))
            assert (report.status, report.first_bad) == (1, entry["seq"])
    elsewhere.ledger.close()
    stranger.ledger.close()


def test_entries_of_another_run_are_refused_in_a_pack_of_one(
    tmp_path: Path, identities: tuple[Identity, dict[str, Identity]]
) -> None:
    """Where a coordinator would fill a gap of one run with proven entries of another."""
    scene = Scene(tmp_path / "ledger.db", *identities)
    scene.show_cards()
    scene.run("first", 1)
    scene.run("second", 1)
    first = Memory.read(write_pack(scene.ledger, "first", tmp_path / "first").path)
    second = Memory.read(write_pack(scene.ledger, "second", tmp_path / "second").path)
    own = first.files["entries.jsonl"].splitlines(True), first.files["proofs.jsonl"].splitlines(True)
    other = second.files["entries.jsonl"].splitlines(True), second.files["proofs.jsonl"].splitlines(True)
    files = {
        **first.files,
        "entries.jsonl": b"".join([*own[0], *other[0][4:]]),
        "proofs.jsonl": b"".join([*own[1], *other[1][4:]]),
    }
    report = verify_files(sealed(files))
    assert report.status == 1 and "another run" in report.reason
    scene.ledger.close()


def test_pack_cannot_name_another_run_roster_quorum_or_key(packs: dict[bool, Memory], cached: None) -> None:
    policy = json.loads(packs[True].files["policy.json"])
    stranger = Identity.create("bank_a").card.ed25519
    for changes in (
        {"run": "other"}, {"roster": ["bank_a"]}, {"quorum": 1}, {"keys": policy["keys"] | {"bank_a": stranger}},
        {"log": "fedseal/" + "0" * 16}, {"whole": False}, {"entries": 49}, {"checkpoints": 1}, {"type": "v2"},
        {"coordinator": policy["coordinator"] | {"name": "x"}}, {"quorum": True}, {"more": 1},
    ):  # fmt: skip
        data = json.dumps(policy | changes, separators=(",", ":"), sort_keys=True).encode() + b"\n"
        report = verify_files(sealed({**packs[True].files, "policy.json": data}))
        assert report.status == 1, changes


def test_cosignature_of_a_stranger_or_of_another_checkpoint_is_refused(
    scene: Scene, packs: dict[bool, Memory], cached: None
) -> None:
    lines = packs[False].files["checkpoint"].decode().splitlines(True)
    sizes = scene.ledger.checkpoint_sizes()
    older = scene.ledger.checkpoint_at(sizes[-2])
    note = scene.ledger.checkpoint_at(sizes[-1])
    for line in (
        cosign(Identity.create("bank_a"), note),
        cosign(scene.parties["bank_a"], older),
        cosign(scene.parties["bank_b"], note).replace("bank_b", "bank_a"),
        cosign(Identity.create("stranger"), note),
    ):
        files = packs[False].files
        at = next(i for i, text in enumerate(lines) if text.startswith("— bank_a "))
        data = "".join(sorted([*lines[:at], f"{line}\n", *lines[at + 1 :]][5:])).encode()
        assert verify_files(sealed({**files, "checkpoint": "".join(lines[:5]).encode() + data})).status == 1


# ---- forks


@pytest.fixture
def forked(scene: Scene, tmp_path: Path) -> Any:
    """Two histories of one log of the same sizes, each signed by the coordinator and shown to another auditor."""
    forged = reissued(scene, tmp_path / "forged.db", lambda entry: [entry.statement])
    yield forged
    forged.ledger.close()


def test_fork_becomes_evidence_that_anybody_can_verify(scene: Scene, forked: Scene, tmp_path: Path) -> None:
    mine = write_pack(scene.ledger, "run", tmp_path / "mine").path
    whole = write_pack(scene.ledger, "run", tmp_path / "whole", whole=True).path
    theirs = write_pack(forked.ledger, "run", tmp_path / "theirs", whole=True).path
    note = tmp_path / "kept.checkpoint"
    note.write_text(forked.ledger.checkpoint())
    for path, against in ((mine, theirs), (whole, theirs), (mine, forked.path), (whole, note), (scene.path, theirs)):
        judged = judge(path, against=against)
        assert judged.report.status == 1 and "fork" in judged.report.reason, (path, against)
        assert judged.evidence is not None and judged.evidence.parent == path.parent
        report = verify_evidence(json.loads(judged.evidence.read_bytes()))
        assert report.status == 0 and report.reason.startswith("valid evidence")
        assert report.coordinator == scene.coordinator.card.ed25519
        assert main([str(judged.evidence)]) == 0
        assert main([str(judged.evidence), "--key", "00" * 32]) == 1
        judged.evidence.unlink()


def test_histories_that_agree_give_no_evidence(scene: Scene, tmp_path: Path) -> None:
    mine = write_pack(scene.ledger, "run", tmp_path / "mine").path
    for against in (scene.path, mine):
        judged = judge(mine, against=against)
        assert (judged.report.status, judged.evidence) == (0, None)
    older = tmp_path / "older.checkpoint"
    older.write_text(scene.ledger.checkpoint_at(scene.ledger.checkpoint_sizes()[3]))
    assert judge(mine, against=older).evidence is None
    foreign = Scene(tmp_path / "foreign.db", Identity.create("coordinator"), scene.parties)
    with pytest.raises(NotALedger, match="signed"):
        judge(mine, against=foreign.path)
    with pytest.raises((NotALedger, OSError)):
        judge(mine, against=tmp_path / "nothing")
    foreign.ledger.close()


def evidence_of(scene: Scene, forked: Scene) -> dict[str, Any]:
    notes = [scene.ledger.checkpoint(), forked.ledger.checkpoint()]
    return {"type": "fedseal fork evidence v1", "card": scene.coordinator.card.to_dict(), "notes": notes}


def test_what_is_no_evidence_is_said(scene: Scene, forked: Scene) -> None:
    good = evidence_of(scene, forked)
    assert verify_evidence(good).status == 0
    first, second = good["notes"]
    other = forked.ledger.checkpoint_at(forked.ledger.checkpoint_sizes()[-2])
    stranger = Identity.create("coordinator")
    faked = sign_checkpoint(
        stranger,
        Checkpoint(f"fedseal/{hashlib.sha256(bytes.fromhex(stranger.card.ed25519)).hexdigest()[:16]}", 50, bytes(32)),
    )
    for notes, words in (
        ([first, other], "do not contradict"), ([first, first], "say the same"), ([first], "not two"),
        ([first, faked], "another log"), ([first, second.replace("\n50\n", "\n51\n")], "not signed"),
        ([first, 7], "not a checkpoint"), ("ab", "not two"), ([first, second, second], "not two"),
    ):  # fmt: skip
        report = verify_evidence(good | {"notes": notes})
        assert report.status == 1 and report.reason.startswith("no evidence") and words in report.reason
    for changes in ({"card": stranger.card.to_dict()}, {"type": "x"}, {"more": 1}, {"card": 3}):
        assert verify_evidence(good | changes).status == 1
    for document in (None, [], {}, "x"):
        assert verify_evidence(document).status == 1


def test_every_changed_byte_of_evidence_is_found_or_in_a_line_that_nobody_reads(
    scene: Scene, forked: Scene, tmp_path: Path
) -> None:
    data = json.dumps(evidence_of(scene, forked), ensure_ascii=False).encode()
    for place, changed in mutants(data, range(len(data)), random.Random(1), 1):
        try:
            document = json.loads(changed)
        except ValueError:
            continue
        assert verify_evidence(document).status == 1, place


def test_evidence_is_never_written_over(scene: Scene, forked: Scene, tmp_path: Path) -> None:
    document = evidence_of(scene, forked)
    path = write_evidence(tmp_path, document)
    assert path.name == "evidence-50.json" and write_evidence(tmp_path, document) == path
    before = path.read_bytes()
    assert write_evidence(tmp_path, document | {"notes": document["notes"][::-1]}).name == "evidence-50-2.json"
    assert path.read_bytes() == before


def test_a_forged_root_that_nobody_signed_is_no_fork(scene: Scene, tmp_path: Path) -> None:
    """Else anybody could make a log look forked."""
    pack = write_pack(scene.ledger, "run", tmp_path / "pack").path
    frontier = Frontier()
    frontier.append(b"\1" * 32)
    note = scene.ledger.checkpoint().split("\n")
    fake = tmp_path / "fake.checkpoint"
    fake.write_text("\n".join([note[0], note[1], "A" * 43 + "=", *note[3:]]))
    with pytest.raises(NotALedger):
        judge(pack, against=fake)
    assert verify_ledger(scene.path).status == 0
