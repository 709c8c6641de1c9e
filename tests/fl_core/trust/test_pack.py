"""Packs that are written are accepted, say what they cannot show, and hold MLflow's values against the ledger."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from fl_core.errors import UsageError
from fl_core.trust import pack as writer
from fl_core.trust.identity import Identity
from fl_core.trust.ledger import Ledger
from fl_core.trust.pack import write_pack
from fl_core.trust.rotation import rotate
from fl_core.trust.verify import NotALedger, verify_ledger, verify_pack
from fl_core.trust.verify import documents as reader
from fl_core.trust.verify import files as pack_files
from fl_core.trust.verify.pack import verify_files
from tests.fl_core.trust.pack_scene import MODEL, Memory, Scene

ROOT = Path(__file__).parents[3]
BOTH = pytest.mark.parametrize("whole", [False, True])


@pytest.fixture
def scene(tmp_path: Path, coordinator: Identity, parties: dict[str, Identity]) -> Any:
    """Two runs, one after the other; the cards are shown in the first."""
    scene = Scene(tmp_path / "ledger.db", coordinator, parties)
    scene.show_cards("first")
    scene.run("first", 1)
    scene.run("run", 3)
    yield scene
    scene.ledger.close()


def packed(scene: Scene, out: Path, run: str = "run", **options: Any) -> Path:
    return write_pack(scene.ledger, run, out, **options).path


def mlflow_changed(scene: Scene, table: str, rows: Any) -> dict[str, Any]:
    values = scene.mlflow("run")
    return values | {table: rows(values[table])}


# ---- what is valid


@BOTH
def test_pack_of_a_witnessed_run_is_valid(scene: Scene, tmp_path: Path, whole: bool) -> None:
    out = packed(scene, tmp_path / "pack", whole=whole, mlflow=scene.mlflow("run"))
    key = scene.coordinator.card.ed25519
    report = verify_pack(out, coordinator_key_hex=key)
    assert (report.status, report.reason, report.run, report.whole) == (0, "valid", "run", whole)
    assert (report.size, report.root) == (scene.ledger.size, scene.ledger.root.hex())
    run = report.runs["run"]
    assert run == verify_ledger(scene.path).runs["run"] and run.state == "witnessed" and run.cosigned == 3
    assert report.entries == (scene.ledger.size if whole else 4 + run.entries)
    assert report.compared == {"metrics": 9, "params": 4, "tags": 6, "artifacts": 2, "status": 1}
    assert not report.differences
    assert set(report.runs) == ({"first", "run"} if whole else {"run"})
    json.dumps(report.to_dict())


def test_pack_of_a_run_shows_nothing_of_other_runs_but_their_cards_and_profiles(scene: Scene, tmp_path: Path) -> None:
    card = scene.parties["bank_a"].card.fingerprint
    said = {"card": card, "roles": ["data-owner"], "contact": "<b>", "certificate": "", "time": 1}
    scene.ledger.commit([scene.say("bank_a", "profile", said, "first"), scene.say("bank_a", "metrics", {}, "first")])
    out = packed(scene, tmp_path / "pack")
    assert verify_pack(out).reason == "valid"
    entries = [json.loads(line) for line in (out / "entries.jsonl").read_bytes().splitlines()]
    assert {(e["run"], e["kind"]) for e in entries if "run" in e and e["run"] != "run"} == {
        ("", "log"),
        ("first", "card"),
        ("first", "profile"),
    }


@pytest.mark.parametrize("cosigners", [0, 2, 3])
@BOTH
def test_run_without_a_quorum_is_4(
    tmp_path: Path, coordinator: Identity, parties: dict[str, Identity], cosigners: int, whole: bool
) -> None:
    scene = Scene(tmp_path / "ledger.db", coordinator, parties)
    scene.show_cards()
    scene.run("run", 2, cosigners=cosigners)
    report = verify_pack(packed(scene, tmp_path / "pack", whole=whole))
    assert report.status == verify_ledger(scene.path).status == (0 if cosigners == 3 else 4)
    assert report.status == 0 or "run" in report.reason
    scene.ledger.close()


@BOTH
def test_quorum_of_an_earlier_checkpoint_counts_when_the_newest_has_none(
    scene: Scene, tmp_path: Path, whole: bool
) -> None:
    scene.ledger.commit([scene.say("coordinator", "job", {"job": "x", "view": {}}, "third")])
    report = verify_pack(packed(scene, tmp_path / "pack", whole=whole))
    assert (report.status, report.runs["run"].cosigned) == (0, 3)


def test_only_the_run_that_the_pack_is_about_decides_on_its_status(scene: Scene, tmp_path: Path) -> None:
    scene.open_run("open")
    scene.ledger.checkpoint()
    assert verify_ledger(scene.path).status == 4
    report = verify_pack(packed(scene, tmp_path / "pack", whole=True))
    assert report.status == 0 and any("open" in words for words in report.unchecked)
    assert verify_pack(packed(scene, tmp_path / "open", "open")).status == 4


def test_entries_beyond_the_newest_checkpoint_are_counted_and_left_out(scene: Scene, tmp_path: Path) -> None:
    size = scene.ledger.size
    scene.ledger.append([scene.say("bank_a", "metrics", {"round": 9}, "run")])
    done = write_pack(scene.ledger, "run", tmp_path / "pack")
    assert (done.size, done.left_out) == (size, 1)
    assert verify_pack(tmp_path / "pack").status == 0


@BOTH
def test_party_that_changed_its_key_between_or_after_runs_is_known_by_each_key_in_its_time(
    scene: Scene, tmp_path: Path, whole: bool
) -> None:
    new = Identity.create("bank_b")
    scene.ledger.commit([rotate(scene.parties["bank_b"], new, log=scene.ledger.log)])
    scene.parties = scene.parties | {"bank_b": new}
    scene.run("later", 1)
    for run in ("run", "later"):
        out = packed(scene, tmp_path / run, run, whole=whole)
        assert verify_pack(out).status == 0
        assert json.loads((out / "policy.json").read_bytes())["keys"]["bank_b"] == new.card.ed25519


# ---- what a pack cannot show is said


def test_gaps_within_the_run_are_named_where_only_its_entries_are_there(
    tmp_path: Path, coordinator: Identity, parties: dict[str, Identity]
) -> None:
    scene = Scene(tmp_path / "ledger.db", coordinator, parties)
    scene.show_cards()
    scene.open_run("run")
    scene.round("run", 1)
    start = scene.ledger.size
    scene.run("other", 1)
    end = scene.ledger.size - 1
    scene.round("run", 2)
    scene.end_run("run")
    report = verify_pack(packed(scene, tmp_path / "pack"))
    assert report.status == 0
    assert any(f"{end - start + 1} places" in words and f"{start}-{end}" in words for words in report.unchecked)
    whole = verify_pack(packed(scene, tmp_path / "whole", whole=True))
    assert whole.status == 0 and not any("places" in words for words in whole.unchecked)
    scene.ledger.close()


def test_an_entry_left_out_with_its_proof_is_a_named_gap_and_one_that_a_sum_needs_is_broken(
    scene: Scene, tmp_path: Path
) -> None:
    memory = Memory.read(packed(scene, tmp_path / "pack"))
    lines = memory.files["entries.jsonl"].splitlines(True)
    proofs = memory.files["proofs.jsonl"].splitlines(True)
    outcomes = {}
    for at, line in enumerate(lines):
        entry = json.loads(line)
        if entry.get("run") != "run":
            continue
        policy = json.loads(memory.files["policy.json"])
        policy["entries"] -= 1
        files = memory.changed(
            entries_jsonl=b"".join(lines[:at] + lines[at + 1 :]),
            proofs_jsonl=b"".join(proofs[:at] + proofs[at + 1 :]),
            policy_json=json.dumps(policy, separators=(",", ":"), sort_keys=True).encode() + b"\n",
        )
        report = verify_files(files)
        outcomes.setdefault(entry["kind"], set()).add(report.status)
        if report.status == 0:
            told = f"before its first one here ({entry['seq'] + 1})" if entry["kind"] == "job" else f": {entry['seq']}"
            assert any(told in words for words in report.unchecked), entry["kind"]
    assert outcomes["update"] == {1} and outcomes["roster"] == {1}
    assert outcomes["end"] == {4}
    assert outcomes["round"] == outcomes["close"] == {0}


def test_report_names_what_was_not_checked(scene: Scene, tmp_path: Path) -> None:
    bare = " ".join(verify_pack(packed(scene, tmp_path / "bare")).unchecked)
    for word in ("MLflow", "artifacts", "issued anew", "after its last", "keys"):
        assert word in bare
    values = scene.mlflow("run")
    values["tags"].append(["my.tag", "\x1b[31m\u202e"])
    full = " ".join(verify_pack(packed(scene, tmp_path / "full", mlflow=values)).unchecked)
    assert '"my.tag"' in full and '"audit/report.html"' in full and "model.pt" not in full


# ---- kept checkpoints


@BOTH
def test_log_that_continues_a_kept_checkpoint_is_valid(scene: Scene, tmp_path: Path, whole: bool) -> None:
    for size in scene.ledger.checkpoint_sizes():
        note = scene.ledger.checkpoint_at(size)
        out = packed(scene, tmp_path / f"pack{size}", whole=whole, since=note)
        assert verify_pack(out, since=note).status == 0


def test_pack_that_does_not_reach_the_kept_checkpoint_is_not_accepted(scene: Scene, tmp_path: Path) -> None:
    out = packed(scene, tmp_path / "pack")
    sizes = scene.ledger.checkpoint_sizes()
    report = verify_pack(out, since=scene.ledger.checkpoint_at(sizes[2]))
    assert report.status == 1 and "--since" in report.reason
    scene.run("later", 1)
    report = verify_pack(out, since=scene.ledger.checkpoint())
    assert report.status == 1 and "tail is cut" in report.reason


# ---- MLflow and artifacts


@BOTH
@pytest.mark.parametrize(
    ("table", "change", "words"),
    [
        ("metrics", lambda rows: [*rows[:-1], [*rows[-1][:2], "0.31"]], 'metric "loss" at step 3'),
        ("metrics", lambda rows: rows[1:], 'metric "accuracy" at step 1: MLflow has nothing'),
        ("metrics", lambda rows: [*rows, ["auc", "1", "0.9"]], "the ledger nothing"),
        ("metrics", lambda rows: [*rows, ["loss", "1", "0.3"]], 'metric "loss" at step 1'),
        ("metrics", lambda rows: [*rows, ["loss", "-1", "0.3"]], "step -1"),
        ("metrics", lambda rows: [[n, s, v.replace("nan", "inf")] for n, s, v in rows], '"inf"'),
        ("params", lambda rows: [*rows[:-1], [rows[-1][0], "4"]], 'param "train.rounds"'),
        ("params", lambda rows: rows[1:], 'param "kind": MLflow has nothing'),
        ("params", lambda rows: [*rows, ["x", ""]], 'param "x"'),
        ("tags", lambda rows: [[n, "0" if n == "fedseal.job" else v] for n, v in rows], 'tag "fedseal.job"'),
        ("tags", lambda rows: [[n, "0" if n == "mlflow.runName" else v] for n, v in rows], 'tag "mlflow.runName"'),
        ("tags", lambda rows: [[n, "00" * 32 if n == "model.digest" else v] for n, v in rows], 'tag "model.digest"'),
        ("tags", lambda rows: [r for r in rows if r[0] != "model.digest"], 'tag "model.digest": MLflow has nothing'),
        ("tags", lambda rows: [[n, "9" if n == "ledger.size" else v] for n, v in rows], "ledger.size"),
        ("tags", lambda rows: [[n, "9" * 15 if n == "ledger.size" else v] for n, v in rows], "ledger.size"),
        ("tags", lambda rows: [[n, "00" * 32 if n == "ledger.root" else v] for n, v in rows], "ledger.root"),
        ("tags", lambda rows: [r for r in rows if not r[0].startswith("ledger.")], "ledger.size"),
        ("status", lambda _: "FAILED", 'MLflow has "FAILED", the ledger "FINISHED"'),
    ],
)
def test_edited_mlflow_is_named(scene: Scene, tmp_path: Path, table: str, change: Any, words: str, whole: bool) -> None:
    out = packed(scene, tmp_path / "pack", whole=whole, mlflow=mlflow_changed(scene, table, change))
    report = verify_pack(out)
    assert report.status == 1 and report.first_bad is None and report.sound == scene.ledger.size
    assert report.differing >= 1 and any(words in told for told in report.differences), report.differences
    assert report.reason.endswith(report.differences[0])


def test_head_that_mlflow_names_is_proven_at_sizes_without_a_checkpoint(scene: Scene, tmp_path: Path) -> None:
    sizes = set(scene.ledger.checkpoint_sizes())
    for size in range(1, scene.ledger.size + 1):
        if size in sizes and size % 3:
            continue
        for whole in (False, True):
            out = packed(scene, tmp_path / f"{size}{whole}", whole=whole, mlflow=scene.mlflow("run", size=size))
            assert verify_pack(out).status == 0, size


def test_every_difference_is_counted_and_a_hundred_are_named(scene: Scene, tmp_path: Path) -> None:
    rows = [[f"m{n}", "1", "1.0"] for n in range(500)]
    values = mlflow_changed(scene, "metrics", lambda old: [*old, *rows])
    report = verify_pack(packed(scene, tmp_path / "pack", mlflow=values))
    assert (report.differing, len(report.differences)) == (500, 100)


def test_texts_of_a_difference_cannot_move_the_cursor(scene: Scene, tmp_path: Path) -> None:
    values = mlflow_changed(scene, "metrics", lambda old: [*old, ["\x1b[2J\u202e\n" + "x" * 500, "1", "1.0"]])
    (told,) = verify_pack(packed(scene, tmp_path / "pack", mlflow=values)).differences
    assert told.isascii() and told.isprintable() and len(told) < 300


def test_failed_run_is_failed_in_mlflow(scene: Scene, tmp_path: Path) -> None:
    scene.open_run("bad")
    scene.ledger.commit([scene.say("coordinator", "failure", {"code": "x", "status": "stopped"}, "bad")])
    values = scene.mlflow("bad", 0) | {"status": "KILLED"}
    values["tags"] = [row for row in values["tags"] if row[0].startswith(("fedseal.", "mlflow."))]
    assert verify_pack(packed(scene, tmp_path / "pack", "bad", mlflow=values)).status == 0
    report = verify_pack(packed(scene, tmp_path / "wrong", "bad", mlflow=values | {"status": "FINISHED"}))
    assert report.status == 1 and '"KILLED"' in report.reason


def test_artifact_is_bound_to_the_first_entry_that_holds_its_digest(scene: Scene, tmp_path: Path) -> None:
    out = packed(scene, tmp_path / "pack", mlflow=scene.mlflow("run"))
    files = json.loads((out / "artifacts.json").read_bytes())["files"]
    first = next(e.seq for e in scene.ledger.entries(run="run") if MODEL in json.dumps(e.body))
    assert [file.get("entry") for file in files] == [None, first]
    memory = Memory.read(out)
    for old, new in ((f'"entry":{first},', ""), (f'"entry":{first}', f'"entry":{first + 1}'), (MODEL, "00" * 32)):
        data = memory.files["artifacts.json"].replace(old.encode(), new.encode())
        report = verify_files(memory.changed(artifacts_json=data))
        assert report.status == 1 and "model.pt" in report.reason


# ---- the folder


def test_existing_folder_is_not_written_into_and_a_failure_leaves_nothing(scene: Scene, tmp_path: Path) -> None:
    out = packed(scene, tmp_path / "pack")
    before = Memory.read(out)
    with pytest.raises(UsageError, match="holds something"):
        packed(scene, out)
    assert Memory.read(out) == before
    for run, since, words in (("gone", None, "no entry"), ("run", "x\n", "note")):
        with pytest.raises(Exception, match=words):
            packed(scene, tmp_path / "new", run, since=since)
    values = scene.mlflow("run") | {"tags": [["long", "x" * (17 << 20)]]}
    with pytest.raises(UsageError, match="a pack allows"):
        packed(scene, tmp_path / "new", mlflow=values)
    assert sorted(p.name for p in tmp_path.iterdir() if "new" in p.name) == []
    (tmp_path / "empty").mkdir()
    assert verify_pack(packed(scene, tmp_path / "empty")).status == 0


def test_links_devices_folders_and_strange_files_are_refused(scene: Scene, tmp_path: Path) -> None:
    out = packed(scene, tmp_path / "pack", mlflow=scene.mlflow("run"))
    for name in sorted(os.listdir(out)):
        kept = tmp_path / "aside"
        (out / name).rename(kept)
        for make in (
            lambda p, kept=kept: p.symlink_to(kept),
            lambda p: p.symlink_to("/dev/zero"),
            lambda p: p.mkdir(),
            lambda p: os.mkfifo(p),
        ):
            make(out / name)
            report = verify_pack(out)
            assert report.status == 1 and "not a regular file" in report.reason, name
            (out / name).rmdir() if (out / name).is_dir() and not (out / name).is_symlink() else (out / name).unlink()
        assert verify_pack(out).status == 1, f"without {name}"
        kept.rename(out / name)
    for n in range(3):
        (out / f"more{n}").write_text("x")
        assert "that no pack has" in verify_pack(out).reason
    with pytest.raises(NotALedger):
        verify_pack(tmp_path)
    with pytest.raises(OSError):
        verify_pack(tmp_path / "nothing")


def test_names_inside_a_pack_are_never_opened(scene: Scene, tmp_path: Path) -> None:
    """No document of a pack can name a file: the manifest's names are those of the folder, or it is refused."""
    memory = Memory.read(packed(scene, tmp_path / "pack", mlflow=scene.mlflow("run")))
    for name in ("../../etc/passwd", "/etc/passwd", "mlflow.json/../x"):
        data = memory.files["manifest.json"].replace(b'"mlflow.json"', json.dumps(name).encode())
        assert "manifest.json" in verify_files(Memory({**memory.files, "manifest.json": data})).reason
        values = scene.mlflow("run")
        values["artifacts"] = [{"name": name, "sha256": "00" * 32, "size": 1}]
        assert verify_pack(packed(scene, tmp_path / name.replace("/", "_"), mlflow=values)).status == 0


@pytest.mark.parametrize("name", ["checkpoint", "policy.json", "mlflow.json", "README.txt", "artifacts.json"])
def test_oversized_files_are_refused_before_they_are_read(scene: Scene, tmp_path: Path, name: str) -> None:
    out = packed(scene, tmp_path / "pack", mlflow=scene.mlflow("run"))
    os.truncate(out / name, pack_files.LIMITS[name] + 1)
    started = time.monotonic()
    report = verify_pack(out)
    assert report.status == 1 and "allowed" in report.reason and time.monotonic() - started < 1


@pytest.mark.parametrize("name", ["entries.jsonl", "proofs.jsonl"])
def test_a_line_without_end_is_refused_in_bounded_memory(scene: Scene, tmp_path: Path, name: str) -> None:
    out = packed(scene, tmp_path / "pack")
    os.truncate(out / name, 2 << 30)  # a hole of zeros, that no disk holds
    report = verify_pack(out)
    assert report.status == 1 and name in report.reason
    os.truncate(out / name, pack_files.LIMITS[name] + 1)
    assert "allowed" in verify_pack(out).reason


@pytest.mark.parametrize("name", ["entries.jsonl", "proofs.jsonl", "policy.json", "mlflow.json", "artifacts.json"])
def test_deep_json_is_refused(scene: Scene, tmp_path: Path, name: str) -> None:
    memory = Memory.read(packed(scene, tmp_path / "pack", mlflow=scene.mlflow("run")))
    for depth in (40, 900, 1200, 100_000):
        deep = b'{"x":' + b"[" * depth + b"]" * depth + b"}\n"
        assert verify_files(memory.changed(**{name.replace(".", "_"): deep})).status == 1


def test_writer_and_verifier_share_the_format() -> None:
    for name in ("PACK", "MLFLOW_VALUES", "ARTIFACT_LIST", "README_TEXT"):
        assert getattr(writer, name) == getattr(reader, name)
    assert pack_files.LIMITS["mlflow.json"] == writer.MAX_VALUES
    assert {pack_files.LIMITS[n] for n in ("policy.json", "checkpoint", "artifacts.json")} == {writer.MAX_LIST}


# ---- standing alone, and fast enough


def test_verifier_checks_a_pack_alone(scene: Scene, tmp_path: Path) -> None:
    out = packed(scene, tmp_path / "pack", mlflow=scene.mlflow("run"))
    shutil.copytree(ROOT / "fl_core" / "trust" / "verify", tmp_path / "elsewhere" / "verify")
    packages = next(path for path in sys.path if (Path(path) / "cryptography").is_dir())
    script = "import sys; sys.path[:0] = sys.argv[1:3]; from verify.__main__ import main; code = main(sys.argv[3:]); \
        print(sorted({n.split('.')[0] for n in sys.modules} & {'fl_core', 'numpy', 'server'})); sys.exit(code)"
    command = [sys.executable, "-I", "-c", script, str(tmp_path / "elsewhere"), packages, str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().endswith("[]") and '"reason": "valid"' in done.stdout


def test_pack_of_fifty_rounds_and_ten_parties_is_verified_in_two_seconds(tmp_path: Path, coordinator: Identity) -> None:
    ten = {f"party_{n}": Identity.create(f"party_{n}") for n in range(10)}
    scene = Scene(tmp_path / "ledger.db", coordinator, ten)
    scene.show_cards()
    scene.run("run", 50)
    for whole in (False, True):
        out = packed(scene, tmp_path / f"{whole}", whole=whole, mlflow=scene.mlflow("run", 50))
        started = time.process_time()
        report = verify_pack(out)
        assert report.status == 0 and report.signatures > 600
        assert time.process_time() - started < 2.0
    with Ledger.open(scene.path) as again:
        assert again.size == scene.ledger.size
    scene.ledger.close()
