"""What people and parties say of themselves: their roles, how to reach them, and which certificate is theirs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fl_core.errors import UsageError
from server.cli.desk import (
    EITHER,
    AsOption,
    Desk,
    OutOption,
    has_pass,
    line,
    moment,
    nodes_of,
    now_ms,
    open_desk,
    pass_name,
)
from server.cli.options import HomeOption, JsonOption

if TYPE_CHECKING:
    from clients.own_profile import People, Said
    from fl_core.trust.entry import Statement
    from fl_core.trust.members import Member
    from fl_core.trust.profile import Profile
    from fl_core.trust.roles import Role

_NOTHING = "nothing was said yet: fedseal identity describe --help"


def register(app: typer.Typer) -> None:
    """Add `describe` and `members` to the commands about keys."""
    app.command(
        epilog='Examples: fedseal identity describe --contact "data office, +46 8 123 456" --as bank · fedseal '
        "identity describe --role model-owner --role receiver · at a node: fedseal identity describe --out me.json"
    )(describe)
    app.command(epilog="Example: fedseal identity members --json")(members)


# ---- oneself


def describe(
    contact: Annotated[
        str | None, typer.Option("--contact", metavar="TEXT", help="One line; everybody on the board reads it.")
    ] = None,
    role: Annotated[
        list[str] | None, typer.Option("--role", metavar="ROLE", help="What you are here; may be repeated.")
    ] = None,
    certificate: Annotated[
        str | None,
        typer.Option("--certificate", metavar="HEX", help="SHA-256 of your pass's certificate, or the node's card's."),
    ] = None,
    name: AsOption = None,
    out: OutOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say on the board who you are: your roles, how to reach you, which certificate is yours.  Again at any time.

    What is not given stays as it was said before. At first, roles and certificate are those of the pass; a node is a
    data owner, with its own card's fingerprint and the contact of fedseal node set --contact. At a home of one's own,
    everybody is data owner and model owner. Claim less than you may and you may less: what no claimed role allows is
    refused on the board.
    """
    from clients.own_profile import check_contact

    with open_desk(home, name, role=EITHER) as desk:
        desk.check_way(out)
        given: dict[str, Any] = {} if contact is None else {"contact": check_contact(contact)}
        if role:
            given["roles"] = _read_roles(role)
        if certificate is not None:
            given["certificate"] = certificate
        profile = own_profile(desk, desk.said(out), **given)
        done = desk.say([profile.sign(desk.identity, log=desk.log)], out)
        if contact is not None:
            _keep_contact(desk, contact)
    if as_json:
        print(json.dumps({"name": desk.identity.name, "profile": told(profile), "done": done}))
        return
    line(f"{desk.identity.name}: {', '.join(profile.roles)}, {done}")
    show_profile(profile)


def own_profile(
    desk: Desk,
    said: Said,
    *,
    contact: str | None = None,
    roles: frozenset[Role] | None = None,
    certificate: str | None = None,
) -> Profile:
    """What the one at this desk says of itself now; what is not given as `describe --help` says.

    Raises
    ------
    UsageError
        For what no profile can hold, or where a pass gives no role.
    """
    from fl_core.errors import IntegrityError
    from fl_core.trust.profile import Profile

    before = said.before
    wanted = _roles(desk, before) if roles is None else roles
    if not wanted:
        raise UsageError(f"{desk.identity.name}: its pass gives no role; allowed: a pass with one of {_all_roles()}")
    try:
        return Profile(
            card=desk.identity.card.fingerprint,
            roles=tuple(sorted(one.value for one in wanted)),
            contact=_contact(desk) or (before.contact if before else "") if contact is None else contact,
            certificate=_certificate(desk, before) if certificate is None else certificate,
            time=max(now_ms(), before.time + 1 if before is not None else 0),
        )
    except IntegrityError as error:
        raise UsageError(f"identity describe: {error}") from None


def introduced(desk: Desk, statements: Sequence[Statement], said: Said) -> list[Statement]:
    """Return own statements with one's card before them, and one's profile where the board does not show it."""
    from clients.board import introduce

    card = introduce(desk.identity, log=desk.log)
    if said.on_board or any(statement.kind == "profile" for statement in statements):
        return [card, *statements]
    profile = said.statement or own_profile(desk, said).sign(desk.identity, log=desk.log)
    return [card, profile, *statements]


def _all_roles() -> str:
    from fl_core.trust.roles import Role

    return ", ".join(Role)


def _read_roles(texts: Sequence[str]) -> frozenset[Role]:
    from fl_core.errors import BadMessage
    from fl_core.trust.roles import ENGINEER, Role, read_roles

    try:
        return read_roles(Role.MODEL_OWNER.value if text == ENGINEER else text for text in texts)
    except BadMessage as error:
        raise UsageError(f"--role: {error}") from None


def _holds_pass(desk: Desk) -> bool:
    """Whether the pass of this home, if any, is of the one at this desk."""
    return has_pass(desk.home) and pass_name(desk.home) == desk.identity.name


def _is_node(desk: Desk) -> bool:
    return desk.identity.name in nodes_of(desk.home)


def _roles(desk: Desk, before: Profile | None) -> frozenset[Role]:
    """The roles said before, as far as the pass still gives them; else those that node and pass give."""
    from fl_core.trust.roles import Role, held
    from server.runtimes.remote import read_pass

    owner = frozenset({Role.DATA_OWNER})
    if _holds_pass(desk):
        given = held(read_pass(desk.home).holder().roles)
        if before is not None and (_is_node(desk) or before.held <= given):
            return before.held
        return given | owner if _is_node(desk) else given
    if before is not None:
        return before.held
    if _is_node(desk):
        return owner
    return owner | {Role.MODEL_OWNER}  # in a home of one's own nobody else is there to divide the work with


def _contact(desk: Desk) -> str:
    """What a node's settings hold."""
    if not _is_node(desk):
        return ""
    from clients.node.folder import NodeFolder

    return NodeFolder(desk.folder).settings().contact


def _keep_contact(desk: Desk, contact: str) -> None:
    """A node has one contact: that of its settings follows what was said."""
    if not _is_node(desk):
        return
    from clients.node.folder import NodeFolder

    folder = NodeFolder(desk.folder)
    folder.save(dataclasses.replace(folder.settings(), contact=contact))


def _certificate(desk: Desk, before: Profile | None) -> str:
    """The pass's, else the node's as it was said before: a rotation leaves the registered one as it is."""
    from fl_core.trust import certificates
    from server.runtimes.remote import read_pass

    if _holds_pass(desk):
        return certificates.fingerprint(read_pass(desk.home).person.certificate)
    if not _is_node(desk):
        return ""
    if before is not None and before.certificate:
        return before.certificate
    from clients.node.folder import NodeFolder

    return NodeFolder(desk.folder).card().fingerprint


def told(profile: Profile | None) -> dict[str, Any] | None:
    """A profile as JSON."""
    return None if profile is None else {**dataclasses.asdict(profile), "roles": list(profile.roles)}


def show_profile(profile: Profile | None) -> None:
    """Print a profile for people."""
    if profile is None:
        line(f"profile      {_NOTHING}")
        return
    line(f"roles        {', '.join(profile.roles)}")
    line(f"contact      {profile.contact or 'none'}")
    line(f"certificate  {profile.certificate or 'none'}")


# ---- everybody


def members(name: AsOption = None, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """List everybody on the board: roles and contact as each says them, the card, since when, revoked and why."""
    from clients.own_profile import read_people

    with open_desk(home, name, role=EITHER) as desk:
        people = read_people(desk.need_board("the home of the ledger: --home HOME"))
    found = people.members.all()
    if as_json:
        print(json.dumps({"members": [_member(one, people) for one in found], "refused": list(people.refused)}))
        return
    for one in found:
        line(_member_line(one, people))
    if not found:
        line("nobody has shown a card on this board yet")
    for text in people.refused:
        line(f"left out: {text}")


def _member(one: Member, people: People) -> dict[str, Any]:
    profile = one.profile
    return {
        "name": one.name,
        "fingerprint": one.card.fingerprint if one.card is not None else None,
        "roles": list(profile.roles) if profile is not None else None,
        "contact": profile.contact if profile is not None else None,
        "certificate": profile.certificate if profile is not None else None,
        "since": people.times[one.since],
        "entry": one.since,
        "changed": one.changed,
        "rotations": people.rotations.get(one.name, 0),
        "revoked": one.ended if one.card is None else None,
    }


def _member_line(one: Member, people: People) -> str:
    """One line; what the member or the revoker wrote comes last, so that it can feign nothing after it."""
    turned = people.rotations.get(one.name, 0)
    often = f", rotated {turned} time{'s' if turned > 1 else ''}" if turned else ""
    shown = one.card.fingerprint[:16] if one.card is not None else "revoked"
    head = f"{one.name:<24} {shown:<16}  since {moment(people.times[one.since])}{often}"
    if one.card is None:
        return f"{head}  revoked {moment(one.changed)}: {one.ended}"
    if one.profile is None:
        return f"{head}  no profile"
    contact = f"; {one.profile.contact}" if one.profile.contact else ""
    return f"{head}  {', '.join(one.profile.roles)}{contact}"
