"""Co-signatures from outside: only those of the policy's keys over this log count, and enough of them must."""

from __future__ import annotations

import json
import shutil
import sqlite3
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fl_core.errors import UsageError
from fl_core.trust.checkpoint import cosign
from fl_core.trust.identity import Identity
from fl_core.trust.ledger import Ledger
from fl_core.trust.outside import WITNESS_KEY, Policy, VerifierKey
from fl_core.trust.pack import write_pack
from fl_core.trust.verify import NotALedger, verify_ledger, verify_pack
from fl_core.trust.verify.__main__ import main
from fl_core.trust.verify.format import Broken
from fl_core.trust.verify.outside import Policy as Wanted
from fl_core.trust.verify.outside import read_key, read_policy
from fl_core.trust.verify.pack import verify_files
from tests.fl_core.trust.pack_scene import Memory, Scene, sealed

BOTH = pytest.mark.parametrize("whole", [False, True])
NAMES = ("notary", "chamber", "registry")


@pytest.fixture(scope="module")
def outsiders() -> dict[str, Identity]:
    return {name: Identity.create(name) for name in NAMES}


@pytest.fixture
def scene(tmp_path: Path, coordinator: Identity, parties: dict[str, Identity]) -> Any:
    """One witnessed run; nobody from outside has signed yet."""
    scene = Scene(tmp_path / "ledger.db", coordinator, parties)
    scene.show_cards()
    scene.run("run", 1)
    yield scene
    scene.ledger.close()


def key(identity: Identity) -> str:
    return VerifierKey.of(identity, algorithm=WITNESS_KEY).text


def wanted(outsiders: dict[str, Identity], quorum: int = 2) -> Wanted:
    return Wanted(quorum, tuple(key(outsiders[name]) for name in NAMES))


def every_way(scene: Scene, path: Path, policy: Wanted | None, run: str = "run") -> list[Any]:
    """The reports on the ledger, and on a run's packs of both kinds."""
    reports = [verify_ledger(scene.path, witnesses=policy)]
    for whole in (False, True):
        out = path / f"pack{whole}{len(list(path.iterdir()))}"
        reports.append(verify_pack(write_pack(scene.ledger, run, out, whole=whole).path, witnesses=policy))
    return reports


# ---- what counts


@pytest.mark.parametrize("signers", [0, 1, 2, 3])
def test_too_few_witnesses_are_4_and_enough_are_told_with_their_times(
    scene: Scene, outsiders: dict[str, Identity], tmp_path: Path, signers: int
) -> None:
    for n, name in enumerate(NAMES[:signers]):
        scene.witness_outside(outsiders[name], seconds=1000 + n)
    size = scene.ledger.size
    for report in every_way(scene, tmp_path, wanted(outsiders)):
        told = report.outside
        assert (told.quorum, told.witnesses, told.due) == (2, 3, size)
        assert told.missing == list(NAMES[signers:])
        if signers < 2:
            assert (report.status, told.covered, told.signed) == (4, 0, {})
            assert f"{signers} of 3 co-signed the first {size} entries, the policy asks for 2" in report.reason
        else:
            assert (report.status, report.reason, told.covered) == (0, "valid", size)
            assert told.signed == {name: 1000 + n for n, name in enumerate(NAMES[:signers])}
    for report in every_way(scene, tmp_path, None):
        assert (report.status, report.outside) == (0, None)


def test_older_checkpoint_with_enough_is_found_and_does_not_cover_the_end(
    scene: Scene, outsiders: dict[str, Identity], tmp_path: Path
) -> None:
    """Also where the newest has some, and where one of them signed neither of the two."""
    scene.open_run("next")
    older = scene.ledger.size
    for name in ("notary", "registry"):
        scene.witness_outside(outsiders[name])
    scene.round("next", 1)
    scene.end_run("next")
    for report in every_way(scene, tmp_path, wanted(outsiders), "next"):
        assert report.status == 4 and report.outside.covered == older
        assert f"0 of 3 co-signed the first {scene.ledger.size}" in report.reason
        assert report.reason.endswith(f"so many did the first {older}")
    scene.witness_outside(outsiders["notary"])
    for report in every_way(scene, tmp_path, wanted(outsiders), "next"):
        assert (report.status, report.outside.covered) == (4, older)
        assert set(report.outside.signed) == {"notary", "registry"}
        assert report.outside.missing == ["chamber", "registry"]
    assert verify_ledger(scene.path, witnesses=wanted(outsiders, 1)).outside.covered == scene.ledger.size


def test_signers_are_not_gathered_from_several_checkpoints(scene: Scene, outsiders: dict[str, Identity]) -> None:
    scene.witness_outside(outsiders["notary"])
    scene.ledger.commit([scene.say("bank_a", "metrics", {"round": 9}, "run")])
    scene.witness_outside(outsiders["chamber"])
    report = verify_ledger(scene.path, witnesses=wanted(outsiders))
    assert (report.status, report.outside.covered) == (4, 0) and "1 of 3" in report.reason


def test_keys_that_the_policy_does_not_name_count_for_nothing(
    scene: Scene, outsiders: dict[str, Identity], tmp_path: Path
) -> None:
    """Above all one of the same name."""
    scene.witness_outside(outsiders["notary"])
    for name in (*NAMES, "stranger"):
        scene.witness_outside(Identity.create(name))
    notary = outsiders["notary"]
    again: Any = SimpleNamespace(name="notary2", card=notary.card, sign=notary.sign)
    line = cosign(again, scene.ledger.checkpoint())
    scene.ledger.add_outside(scene.ledger.size, VerifierKey.of(notary, name="notary2", algorithm=WITNESS_KEY), line)
    for report in every_way(scene, tmp_path, wanted(outsiders)):
        assert report.status == 4 and "1 of 3" in report.reason


def test_short_of_both_kinds_of_witnesses_is_said_of_both(
    tmp_path: Path, coordinator: Identity, parties: dict[str, Identity], outsiders: dict[str, Identity]
) -> None:
    scene = Scene(tmp_path / "ledger.db", coordinator, parties)
    scene.show_cards()
    scene.run("run", 1, cosigners=1)
    report = verify_ledger(scene.path, witnesses=wanted(outsiders))
    assert report.status == 4
    assert "short of quorum: run" in report.reason and "short of witnesses from outside" in report.reason
    scene.ledger.close()


def test_stopped_run_needs_its_last_entry_co_signed(
    scene: Scene, outsiders: dict[str, Identity], tmp_path: Path
) -> None:
    scene.witness_outside(outsiders["notary"])
    scene.open_run("second")
    scene.round("second", 1)
    scene.ledger.commit([scene.say("coordinator", "failure", {"code": "x", "status": "stopped"}, "second")])
    policy = wanted(outsiders, 1)
    assert verify_ledger(scene.path).status == 0
    assert verify_ledger(scene.path, witnesses=policy).status == 4
    assert verify_pack(write_pack(scene.ledger, "run", tmp_path / "run").path, witnesses=policy).status == 0
    second = write_pack(scene.ledger, "second", tmp_path / "second").path
    assert verify_pack(second, witnesses=policy).status == 4
    scene.witness_outside(outsiders["notary"])
    assert verify_ledger(scene.path, witnesses=policy).status == 0


# ---- forgers


def test_forged_lines_in_a_ledger_never_count(scene: Scene, outsiders: dict[str, Identity], tmp_path: Path) -> None:
    scene.witness_outside(outsiders["notary"])
    size, note = scene.ledger.size, scene.ledger.checkpoint()
    older = scene.ledger.checkpoint_at(scene.ledger.checkpoint_sizes()[-2])
    scene.ledger.close()
    chamber = outsiders["chamber"]
    good = cosign(chamber, note)
    for number, (name, line) in enumerate((
        (key(chamber), cosign(chamber, older)),  # of another checkpoint
        (key(chamber), cosign(Identity.create("chamber"), note)),  # under another key
        (key(chamber), good[:-6] + ("A" if good[-6] != "A" else "B") + good[-5:]),
        (key(chamber)[:-1] + ("A" if key(chamber)[-1] != "A" else "B"), good), ("chamber", good), (7, good), (key(chamber), b"x"), (key(chamber), None),
    )):  # fmt: skip
        path = tmp_path / f"{number}.db"
        shutil.copy(scene.path, path)
        with sqlite3.connect(path) as db:
            db.execute("DROP TABLE outside_cosignatures")
            db.execute("CREATE TABLE outside_cosignatures (size INTEGER, key, line)")
            db.execute("INSERT INTO outside_cosignatures VALUES (?, ?, ?)", (size, name, line))
        db.close()
        assert verify_ledger(path, witnesses=wanted(outsiders, 1)).status == 1, number
        assert verify_ledger(path).status == 1, number
    with sqlite3.connect(path) as db:
        db.execute("UPDATE outside_cosignatures SET size = size + 1, key = ?, line = ?", (key(chamber), good))
    db.close()
    assert "not there" in verify_ledger(path).reason


@BOTH
def test_lines_of_the_real_log_do_not_fit_one_issued_anew(
    scene: Scene, outsiders: dict[str, Identity], tmp_path: Path, whole: bool
) -> None:
    """Coordinator and all parties collude; what the witness signed is of other roots."""
    for name in NAMES:
        scene.witness_outside(outsiders[name])
    forged = Scene.__new__(Scene)
    forged.path, forged.coordinator, forged.parties = tmp_path / "forged.db", scene.coordinator, scene.parties
    forged.ledger = Ledger.open(forged.path, scene.coordinator)
    for entry in list(scene.ledger.entries())[1:]:
        forged.ledger.append([entry.statement])
    forged.witness()
    pack = Memory.read(write_pack(forged.ledger, "run", tmp_path / "forged", whole=whole).path)
    assert verify_files(pack).status == 0, "consistent in itself"
    report = verify_files(pack, witnesses=wanted(outsiders, 1))
    assert report.status == 4 and "0 of 3" in report.reason
    real = Memory.read(write_pack(scene.ledger, "run", tmp_path / "real").path).files["witnesses.json"]
    lent = sealed({**pack.files, "witnesses.json": real})
    assert verify_files(lent, witnesses=wanted(outsiders, 1)).status == 1
    forged.ledger.close()


@BOTH
def test_lines_left_out_of_a_pack_are_missed_by_the_policy(
    scene: Scene, outsiders: dict[str, Identity], tmp_path: Path, whole: bool
) -> None:
    for name in NAMES:
        scene.witness_outside(outsiders[name])
    pack = Memory.read(write_pack(scene.ledger, "run", tmp_path / "pack", whole=whole).path)
    words = verify_files(pack).unchecked
    assert any("no policy of witnesses was given" in line for line in words)
    assert any("issued anew" in line for line in words)
    report = verify_files(pack, witnesses=wanted(outsiders))
    assert report.status == 0 and not any("issued anew" in line for line in report.unchecked)
    assert verify_files(pack.changed(witnesses_json=None), witnesses=wanted(outsiders)).status == 4
    table = json.loads(pack.files["witnesses.json"])
    del table["checkpoints"][0]["lines"][:2]
    fewer = json.dumps(table, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"
    assert verify_files(pack.changed(witnesses_json=fewer), witnesses=wanted(outsiders)).status == 4


@pytest.mark.parametrize(
    "change",
    [
        lambda table: table | {"checkpoints": []},
        lambda table: table | {"checkpoints": {}},
        lambda table: table | {"more": 1},
        lambda table: table | {"type": "x"},
        lambda table: table | {"checkpoints": table["checkpoints"] * 2},
        lambda table: table | {"checkpoints": [c | {"size": c["size"] + 1} for c in table["checkpoints"]]},
        lambda table: table | {"checkpoints": [c | {"size": True} for c in table["checkpoints"]]},
        lambda table: table | {"checkpoints": [c | {"lines": c["lines"][::-1]} for c in table["checkpoints"]]},
        lambda table: table | {"checkpoints": [c | {"lines": c["lines"][:1] * 2} for c in table["checkpoints"]]},
        lambda table: table | {"checkpoints": [c | {"lines": []} for c in table["checkpoints"]]},
        lambda table: table | {"checkpoints": [c | {"lines": [["x", "y", "z"]]} for c in table["checkpoints"]]},
        lambda table: table | {"checkpoints": ["x"]},
    ],
)
def test_document_of_another_shape_is_broken(
    scene: Scene, outsiders: dict[str, Identity], tmp_path: Path, change: Any
) -> None:
    for name in NAMES[:2]:
        scene.witness_outside(outsiders[name])
    pack = Memory.read(write_pack(scene.ledger, "run", tmp_path / "pack").path)
    table = change(json.loads(pack.files["witnesses.json"]))
    data = json.dumps(table, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"
    assert verify_files(pack.changed(witnesses_json=data)).status == 1


def test_pack_holds_for_any_policy_the_newest_checkpoint_with_enough_and_no_more(
    scene: Scene, outsiders: dict[str, Identity], tmp_path: Path
) -> None:
    sizes = []
    for signers in (("notary",), ("notary", "chamber"), ("registry",), ("notary",), ("notary",)):
        scene.ledger.commit([scene.say("bank_a", "metrics", {"round": len(sizes)}, "run")])
        sizes.append(scene.ledger.size)
        for name in signers:
            scene.witness_outside(outsiders[name])
    out = write_pack(scene.ledger, "run", tmp_path / "pack").path
    held = [item["size"] for item in json.loads((out / "witnesses.json").read_bytes())["checkpoints"]]
    assert held == [sizes[1], sizes[2], sizes[4]]
    for quorum in (1, 2, 3):
        policy = wanted(outsiders, quorum)
        report = verify_pack(out, witnesses=policy)
        assert report.outside == verify_ledger(scene.path, witnesses=policy).outside
        assert report.outside.covered == {1: sizes[4], 2: sizes[1], 3: 0}[quorum]


# ---- the policy


def test_verifier_reads_the_policies_that_the_log_reads(outsiders: dict[str, Identity], tmp_path: Path) -> None:
    path = tmp_path / "witnesses.json"
    entries = [{"key": key(outsiders[name]), "url": "https://notary.example/w"} for name in NAMES]
    table = {"type": "fedseal witness policy v1", "quorum": 2, "witnesses": entries}
    renamed = VerifierKey("other", WITNESS_KEY, outsiders["notary"].card.ed25519).text
    log_key = VerifierKey.of(outsiders["notary"], algorithm=1).text
    good, bad = (
        [table, table | {"quorum": 3}, table | {"quorum": 1, "witnesses": [{"key": entries[0]["key"]}]}],
        [
            [], 7, {}, table | {"quorum": 0}, table | {"quorum": 4}, table | {"quorum": True}, table | {"type": "x"},
            table | {"more": 1}, table | {"witnesses": {}}, table | {"witnesses": []}, table | {"witnesses": [7]},
            table | {"witnesses": [*entries, entries[0]]}, table | {"witnesses": [*entries, {"key": renamed}]},
            *(table | {"witnesses": [*entries[1:], {"key": text}]} for text in (
                "", "x", None, log_key, key(outsiders["notary"])[:-1], key(outsiders["notary"]) + "\n",
                key(outsiders["notary"]).replace("notary", "notarx"), "a+b+c", "a" * 2000,
            )),
            table | {"witnesses": [{"url": "https://x"}]}, table | {"witnesses": [entries[0] | {"url": "file:///x"}]},
            table | {"witnesses": [entries[0] | {"url": 7}]}, table | {"witnesses": [entries[0] | {"x": 7}]},
        ],
    )  # fmt: skip
    for document in good:
        path.write_text(json.dumps(document))
        found, same = read_policy(path), Policy.load(path)
        assert (found.quorum, list(found.keys)) == (same.quorum, [o.key.text for o in same.witnesses])
    for document in bad:
        path.write_text(json.dumps(document))
        with pytest.raises(NotALedger, match="witnesses"):
            read_policy(path)
        with pytest.raises(UsageError):
            Policy.load(path)
    for data in (b"", b"{", b"[" * 100_000, b"\xff", b" " * (1 << 20) + b"{}"):
        path.write_bytes(data)
        with pytest.raises(NotALedger):
            read_policy(path)


def test_each_changed_byte_of_a_key_is_another_key_or_none(outsiders: dict[str, Identity]) -> None:
    text = key(outsiders["notary"])
    assert read_key(text).raw.hex() == outsiders["notary"].card.ed25519
    for place in range(len(text)):
        changed = text[:place] + chr(ord(text[place]) ^ 1) + text[place + 1 :]
        with pytest.raises(Broken):
            read_key(changed)


def test_command_line_tells_policies_from_logs(
    scene: Scene, outsiders: dict[str, Identity], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "p.json"
    table = {"type": "fedseal witness policy v1", "quorum": 1, "witnesses": [{"key": key(outsiders["notary"])}]}
    path.write_text(json.dumps(table))
    words = [str(scene.path), "--witnesses", str(path)]
    assert main(words) == 4
    scene.witness_outside(outsiders["notary"])
    capsys.readouterr()
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)["outside"]["signed"] == {"notary": 1_700_000_000}
    path.write_text("{}")
    assert main(words) == 2
    assert main([*words[:2], str(tmp_path / "none")]) == 2
