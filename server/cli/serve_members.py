"""The way from a home that serves predictions to its coordinator's board."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fl_core.home import Home
    from fl_core.trust.members import Members


def members_reader(home: Home) -> Callable[[], Members] | None:
    """Return what reads the members that the board of this home shows now; None where there is no way to one."""
    from server.runtimes.remote import has_pass

    if not has_pass(home) and not home.ledger.exists():
        return None

    def read() -> Members:
        from clients.board import DoorBoard, LocalBoard
        from clients.door import DoorClient
        from clients.own_profile import read_people
        from server.runtimes.remote import read_pass

        if not has_pass(home):
            return read_people(LocalBoard(home)).members
        held = read_pass(home)
        with ExitStack() as stack:
            door = stack.enter_context(DoorClient(held))
            return read_people(DoorBoard(door, held.federation.coordinator, None)).members

    return read
