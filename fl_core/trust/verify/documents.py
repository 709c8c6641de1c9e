"""The small documents of an audit pack, read strictly: each has one spelling, and every field is checked."""

from __future__ import annotations

import re
from typing import Any

from .files import ARTIFACTS, LIMITS, MANIFEST, MLFLOW, POLICY, PROOFS, WITNESSES
from .format import Broken, Note, decode, read_note, unhex
from .stream import StoredCheckpoint

PACK = "fedseal audit pack v1"
MLFLOW_VALUES = "fedseal mlflow values v1"
ARTIFACT_LIST = "fedseal artifacts v1"
OUTSIDE_LINES = "fedseal outside co-signatures v1"
README_TEXT = (
    "Evidence of one fedseal run. Check it offline: `fedseal audit verify FOLDER`, or copy fl_core/trust/verify of "
    "fedseal (it needs Python and the package cryptography) and run `python -m verify FOLDER`.\n"
    "Exit status: 0 valid, 1 broken, 2 usage, 4 valid but short of quorum. Compare the keys in policy.json with those "
    "that the parties themselves gave you.\n"
)
MAX_PROOF_LINE = 8192

_RUN = re.compile(r"[\x21-\x7e]{1,128}")
_STEP = re.compile(r"0|-?[1-9][0-9]{0,18}")


def read_proof(line: bytes) -> tuple[bytes, ...]:
    """Return the hashes of a line of `proofs.jsonl`."""
    hashes = _document(line, MAX_PROOF_LINE, PROOFS, {"proof"})["proof"]
    if not isinstance(hashes, list) or len(hashes) > 64:
        raise Broken(f"{PROOFS}: not a list of at most 64 hashes")
    return tuple(unhex(item, 32) for item in hashes)


def read_checkpoint(data: bytes) -> tuple[StoredCheckpoint, Note]:
    """Take the file `checkpoint` apart: a note with the log's signature, then co-signatures sorted by name."""
    try:
        text, separator, lines = data.decode("utf-8").rpartition("\n\n")
    except UnicodeDecodeError:
        raise Broken("checkpoint: not UTF-8") from None
    if not separator or not lines.endswith("\n"):
        raise Broken("checkpoint: not a note with signature lines")
    first, *others = lines[:-1].split("\n")
    note = f"{text}\n\n{first}\n"
    cosignatures = {line.split(" ")[1] if line.count(" ") == 2 else "": line for line in others}
    if list(cosignatures) != sorted(set(cosignatures)) or len(cosignatures) < len(others) or "" in cosignatures:
        raise Broken("checkpoint: co-signature lines that are malformed, out of order or there twice")
    return StoredCheckpoint(None, note, cosignatures, ()), read_note(note)


def read_manifest(data: bytes, names: set[str]) -> dict[str, Any]:
    """Return the files that the manifest names, which must be `names`."""
    files = _document(_line(data, MANIFEST), LIMITS[MANIFEST], MANIFEST, {"type", "files"}, PACK)["files"]
    if not isinstance(files, dict) or set(files) != names:
        raise Broken(f"{MANIFEST} does not name exactly the files that are here")
    return files


def read_policy(data: bytes) -> dict[str, Any]:
    """Return the policy; what it says is compared with the entries later."""
    names = {"type", "run", "whole", "log", "coordinator", "roster", "quorum", "keys", "cosigned"}
    policy = _document(_line(data, POLICY), LIMITS[POLICY], POLICY, names | {"entries", "checkpoints"}, PACK)
    if not isinstance(policy["run"], str) or not _RUN.fullmatch(policy["run"]) or type(policy["whole"]) is not bool:
        raise Broken("policy.json: no run, or not whether the log is whole")
    if any(type(policy[name]) is not int for name in ("quorum", "entries", "checkpoints")):
        raise Broken("policy.json: quorum, entries and checkpoints are integers")
    return policy


def read_mlflow(data: bytes) -> dict[str, Any]:
    """Return MLflow's values: metrics (name, step, text), params and tags (name, text), sorted."""
    names = {"type", "run_id", "status", "metrics", "params", "tags"}
    values = _document(_line(data, MLFLOW), LIMITS[MLFLOW], MLFLOW, names, MLFLOW_VALUES)
    for name, width in (("metrics", 3), ("params", 2), ("tags", 2)):
        rows = values[name]
        if not isinstance(rows, list) or not all(_is_row(row, width) for row in rows) or rows != sorted(rows):
            raise Broken(f"mlflow.json: {name} are not sorted rows of {width} texts")
        if width == 2 and len({row[0] for row in rows}) < len(rows):
            raise Broken(f"mlflow.json: one of {name} twice")
    if not all(_STEP.fullmatch(step) for _, step, _ in values["metrics"]):
        raise Broken("mlflow.json: a step that is no integer")
    if not all(isinstance(values[name], str) for name in ("run_id", "status")):
        raise Broken("mlflow.json: run_id and status are texts")
    return values


def _is_row(row: Any, width: int) -> bool:
    return isinstance(row, list) and len(row) == width and all(isinstance(item, str) for item in row)


def read_artifacts(data: bytes) -> list[dict[str, Any]]:
    """Return the artifacts: name, sha256, size, and the entry that commits to it, sorted by name."""
    files = _document(_line(data, ARTIFACTS), LIMITS[ARTIFACTS], ARTIFACTS, {"type", "files"}, ARTIFACT_LIST)["files"]
    if not isinstance(files, list):
        raise Broken("artifacts.json: not a list of files")
    before: str | None = None
    for file in files:
        if not isinstance(file, dict) or set(file) - {"entry"} != {"name", "sha256", "size"}:
            raise Broken("artifacts.json: a file of another shape")
        unhex(file["sha256"], 32)
        numbers = [file["size"], *([file["entry"]] if "entry" in file else [])]
        if not isinstance(file["name"], str) or any(type(n) is not int or n < 0 for n in numbers):
            raise Broken("artifacts.json: a file of another shape")
        if before is not None and file["name"] <= before:
            raise Broken("artifacts.json: files out of order, or one twice")
        before = file["name"]
    return files


def read_witnesses(data: bytes) -> dict[int, tuple[tuple[str, str], ...]]:
    """Return the co-signatures from outside by checkpoint: each line after its key, sorted."""
    names = {"type", "checkpoints"}
    table = _document(_line(data, WITNESSES), LIMITS[WITNESSES], WITNESSES, names, OUTSIDE_LINES)["checkpoints"]
    found: dict[int, tuple[tuple[str, str], ...]] = {}
    for item in table if isinstance(table, list) and table else [None]:
        if not isinstance(item, dict) or set(item) != {"size", "lines"} or type(item["size"]) is not int:
            raise Broken(f"{WITNESSES}: not checkpoints with a size and lines")
        lines = item["lines"]
        if not isinstance(lines, list) or not lines or not all(_is_row(row, 2) for row in lines):
            raise Broken(f"{WITNESSES}: lines that are not pairs of a key and a co-signature")
        keys = [key for key, _ in lines]
        if keys != sorted(set(keys)) or item["size"] <= max(found, default=-1):
            raise Broken(f"{WITNESSES}: checkpoints or keys out of order, or one twice")
        found[item["size"]] = tuple((key, line) for key, line in lines)
    return found


def _line(data: bytes, name: str) -> bytes:
    if data[-1:] != b"\n":
        raise Broken(f"{name}: the last line is cut")
    return data[:-1]


def _document(data: bytes, limit: int, where: str, names: set[str], kind: str | None = None) -> dict[str, Any]:
    try:
        document = decode(data, limit)
    except Broken as error:
        raise Broken(f"{where}: {error.reason}") from None
    if set(document) != names or (kind is not None and document["type"] != kind):
        raise Broken(f"{where}: not {kind or 'what it should be'}")
    return document
