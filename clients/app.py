"""The ClientApp: Flower messages in, signed packets out.

It never raises.  A failure becomes a signed, typed reply (code, step, round, party); its text stays in the party's own
log, because Flower would store it at the SuperLink.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from flwr.app import Array, ArrayRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from clients.part import Line, NodeConfig
from clients.participant import Participant
from clients.policy import Policy
from fl_core import messages
from fl_core.errors import BadMessage, FedsealError, RefusedError
from fl_core.messages import Packet

app = ClientApp()
_participants: dict[tuple[str, str], Participant] = {}
_last: Account | None = None
_policy: Callable[[], Policy] | None = None
_line: Line | None = None


@dataclass(frozen=True)
class Account:
    """One answered message for the people at this machine; `problem` is empty when it went well."""

    run: str
    step: str
    round: int
    job: str
    kind: str
    problem: str = ""
    refused: bool = False


def last_failure() -> str:
    """The text of the last message's failure; empty when it went well."""
    return _last.problem if _last else ""


def last_account() -> Account | None:
    """What was answered last."""
    return _last


def forget() -> None:
    """Keep no party in memory: whoever answers for it next, here or in another process, reads its folder."""
    _participants.clear()


def at_node(settings: Callable[[], Policy], line: Line) -> None:
    """Serve a node of a deployment: `settings` gives its owner's policy, asked anew for each message."""
    global _policy, _line
    _policy, _line = settings, line


def _participant(context: Context) -> Participant:
    config = {name: str(value) for name, value in context.node_config.items()}
    key = (config["home"], config["run"])
    if key not in _participants:
        for old in [k for k in _participants if k[0] == config["home"]]:
            del _participants[old]  # one run at a time stays in memory for a party
        _participants[key] = Participant(
            NodeConfig(
                party=config["party"],
                home=Path(config["home"]),
                out=Path(config["out"]),
                base=Path(config["base"]),
                run=config["run"],
                own=json.loads(config["own"]),
                strict=config.get("strict") == "1",
            )
        )
    participant = _participants[key]
    if _policy is not None:
        participant.config = replace(participant.config, policy=_policy(), line=_line)
    return participant


def _answer(message: Message, context: Context) -> Message:
    global _last
    _last = None
    step = message.metadata.message_type
    participant = _participant(context)
    problem, refused = "", False
    try:
        packet = participant.answer(step, _open(message))
    except Exception as error:  # whatever happened, the reply is typed and the text stays here
        known, refused = isinstance(error, FedsealError), isinstance(error, RefusedError)
        participant.log.error("%s failed: %s", step, error, exc_info=not known)
        problem = str(error) if known else f"{type(error).__name__}: {error}"
        packet = participant.failure(step, kind="refusal" if refused else "failure", error=error)
    job, kind = participant.job
    _last = Account(participant.config.run, step, participant.number, job, kind, problem, refused)
    arrays = packet.to_arrays()
    record = ArrayRecord({k: Array("uint8", (len(v),), messages.STYPE, v) for k, v in arrays.items()})
    return Message(RecordDict({messages.PACKET: record}), reply_to=message)


def _open(message: Message) -> Packet:
    record = message.content[messages.PACKET]  # .array_records makes a cycle that keeps the blobs
    if not isinstance(record, ArrayRecord):
        raise BadMessage("a request that is not a packet")
    return Packet.from_arrays({name: array.data for name, array in record.items()})


for _step in messages.STEPS:
    _category, _, _action = _step.partition(".")
    getattr(app, _category)(_action)(_answer)
