"""Committed messages are what the compiler makes of the `.proto` files beside them: nobody edits one without the other."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorSet
from google.protobuf.message import DecodeError

from fl_core.wire import door_pb2

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "fl_core" / "wire"
PROTOS = sorted(FOLDER.rglob("*.proto"))
# The compiler writes its version into the code twice; nothing else in these lines.
_HEADER = re.compile(r"^# Protobuf Python Version: (\d+)\.(\d+)\.(\d+)$", re.MULTILINE)
_CHECKED = re.compile(r"^    (\d+),\n    (\d+),\n    (\d+),\n    '',$", re.MULTILINE)


def compiled(proto: Path, out: Path, *options: str) -> Path:
    """Run the compiler as a developer does, from the root."""
    pytest.importorskip("grpc_tools.protoc", reason="grpc_tools is not installed: committed messages are not compared")
    name = str(proto.relative_to(ROOT))
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I.", *options, name]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out / name


def forget_json_names(messages: Iterable[DescriptorProto]) -> None:
    """The compiler writes them into descriptor sets only."""
    for message in messages:
        for field in message.field:
            field.ClearField("json_name")
        forget_json_names(message.nested_type)


def version(code: str) -> tuple[int, ...]:
    found = _HEADER.search(code)
    assert found is not None, "no version of the compiler in the code"
    return tuple(map(int, found.groups()))


def without_version(code: str) -> str:
    return _CHECKED.sub("", _HEADER.sub("", code))


def test_there_is_a_proto_file_for_every_committed_message_file():
    stems = {proto.with_name(proto.stem + "_pb2") for proto in PROTOS}
    assert stems, f"no .proto in {FOLDER}"
    assert {code.with_suffix("") for code in FOLDER.rglob("*_pb2.py")} == stems
    assert {code.with_suffix("") for code in FOLDER.rglob("*_pb2.pyi")} == stems


@pytest.mark.parametrize("proto", PROTOS, ids=lambda p: p.name)
def test_committed_code_is_what_the_compiler_makes(proto, tmp_path):
    """Byte for byte; where another version compiles, all but the lines that name the version."""
    made = compiled(proto, tmp_path, f"--python_out={tmp_path}", f"--pyi_out={tmp_path}")
    for suffix in (".py", ".pyi"):
        name = proto.stem + "_pb2" + suffix
        ours, theirs = proto.with_name(name).read_bytes(), made.with_name(name).read_bytes()
        if suffix == ".py" and version(ours.decode()) != version(theirs.decode()):
            ours, theirs = (without_version(code.decode()).encode() for code in (ours, theirs))
        assert ours == theirs, (
            f"{name}: python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. {proto.relative_to(ROOT)}"
        )


@pytest.mark.parametrize("proto", PROTOS, ids=lambda p: p.name)
def test_committed_messages_mean_what_the_proto_file_says(proto, tmp_path):
    """The descriptor alone, whatever compiler version made the code around it."""
    compiled(proto, tmp_path, f"--descriptor_set_out={tmp_path / 'set'}")
    (described,) = FileDescriptorSet.FromString((tmp_path / "set").read_bytes()).file
    module = importlib.import_module(".".join(proto.relative_to(ROOT).with_name(proto.stem + "_pb2").parts))
    forget_json_names(described.message_type)
    assert module.DESCRIPTOR.serialized_pb == described.SerializeToString()


@pytest.mark.parametrize("proto", PROTOS, ids=lambda p: p.name)
def test_the_oldest_allowed_protobuf_takes_the_committed_code(proto):
    """A runtime refuses code that a newer compiler made, at import: in every process of a deployment."""
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    (line,) = [line for line in wanted if line.startswith("protobuf")]
    oldest = tuple(map(int, re.search(r">=([\d.]+)", line)[1].split(".")))
    code = proto.with_name(proto.stem + "_pb2.py").read_text()
    assert version(code) <= oldest
    assert tuple(map(int, _CHECKED.search(code).groups())) == version(code)


def test_a_message_survives_the_wire_and_a_cut_one_is_refused():
    sent = door_pb2.SubmitRequest(version="0.1.0", job='{"name": "ü"}', resume=True)
    data = sent.SerializeToString()
    assert door_pb2.SubmitRequest.FromString(data) == sent
    with pytest.raises(DecodeError):
        door_pb2.SubmitRequest.FromString(data[:10])


def test_the_door_tells_who_may_call_nothing_in_its_messages():
    """Name and roles come from the certificate: a field for them would be believed one day."""
    messages = door_pb2.DESCRIPTOR.message_types_by_name.items()
    fields = {field.name for name, message in messages if name.endswith("Request") for field in message.fields}
    assert "job" in fields
    assert not fields & {"caller", "user", "name", "role", "roles", "token", "password"}
