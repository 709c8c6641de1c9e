"""The ClientApp: Flower messages in, signed packets out.

It never raises.  A failure becomes a signed, typed reply (code, step, round, party); its text stays in the party's own
log, because Flower would store it at the SuperLink.
"""

from __future__ import annotations

import json
from pathlib import Path

from flwr.app import Array, ArrayRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from clients.participant import NodeConfig, Participant
from fl_core import messages
from fl_core.errors import BadMessage, FedsealError, RefusedError
from fl_core.messages import Packet

app = ClientApp()
_participants: dict[tuple[str, str], Participant] = {}
_last_failure = ""


def last_failure() -> str:
    """The text of the last message's failure, for the person at this machine; empty when it went well."""
    return _last_failure


def forget() -> None:
    """Keep no party in memory: whoever answers for it next, here or in another process, reads its folder."""
    _participants.clear()


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
            )
        )
    return _participants[key]


def _answer(message: Message, context: Context) -> Message:
    global _last_failure
    _last_failure = ""
    step = message.metadata.message_type
    participant = _participant(context)
    try:
        packet = participant.answer(step, _open(message))
    except Exception as error:  # whatever happened, the reply is typed and the text stays here
        known = isinstance(error, FedsealError)
        participant.log.error("%s failed: %s", step, error, exc_info=not known)
        _last_failure = str(error) if known else f"{type(error).__name__}: {error}"
        kind = "refusal" if isinstance(error, RefusedError) else "failure"
        packet = participant.failure(step, kind=kind, error=error)
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
