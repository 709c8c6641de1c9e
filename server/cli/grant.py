"""`fedseal grant request | approve | deny | revoke | list | post`: an owner's consent to uses of its data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fl_core.errors import UsageError
from server.cli.desk import (
    EITHER,
    OWNER,
    AsOption,
    OutOption,
    dataset_name,
    line,
    open_desk,
    until_ms,
)
from server.cli.options import HomeOption, JsonOption

if TYPE_CHECKING:
    from fl_core.trust.grants import Grant, Terms

app = typer.Typer(
    help="Ask for the use of data, and say yes or no to it: each node opens its data for granted jobs only.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
IdArgument = Annotated[
    str, typer.Argument(metavar="ID|FILE", help="8 digits of it or more, from grant list; or a file of --out.")
]
ReasonOption = Annotated[str, typer.Option("--reason", help="One line; everybody can read it.")]
UsesOption = Annotated[int | None, typer.Option("--uses", min=1, metavar="N", help="How many runs.")]
EpsilonOption = Annotated[
    str | None, typer.Option("--epsilon", metavar="ε", help="How much privacy all of them together may spend.")
]
UntilOption = Annotated[
    str | None, typer.Option("--until", metavar="DATE", help="Its last day or minute, UTC: 2026-12-31.")
]


@app.command(
    epilog='Examples: fedseal grant request bank/credit --kind horizontal --purpose "credit scoring" --uses 3 '
    "--epsilon 4 --until 2026-12-31 · fedseal grant request bank/credit --job JOB.toml"
)
def request(
    dataset: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="As fedseal data list shows it.")],
    kind: Annotated[list[str] | None, typer.Option("--kind", help="Kinds of job; may be repeated.")] = None,
    purpose: Annotated[str | None, typer.Option("--purpose", help="One of those on the dataset's card.")] = None,
    uses: UsesOption = None,
    epsilon: EpsilonOption = None,
    until: UntilOption = None,
    receivers: Annotated[
        list[str] | None, typer.Option("--receivers", metavar="NAME", help="Who gets a result (default: you).")
    ] = None,
    algorithm: Annotated[
        list[str] | None, typer.Option("--algorithm", metavar="NAME", help="Allowed ones (default: any).")
    ] = None,
    job: Annotated[
        Path | None, typer.Option("--job", metavar="JOB.toml", help="For exactly this job; the rest is read from it.")
    ] = None,
    this_version: Annotated[bool, typer.Option("--this-version", help="For the data as they are now only.")] = False,
    name: AsOption = None,
    out: OutOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask a data owner for a grant, under your key."""
    from fl_core.errors import IntegrityError
    from fl_core.trust.grant_statements import GrantRequest
    from server.cli.grant_terms import asked_terms

    owner, data = dataset_name(dataset)
    asked = {
        "owner": owner, "dataset": data, "kind": kind, "purpose": purpose, "uses": uses, "epsilon": epsilon,
        "until": until, "receivers": receivers, "algorithm": algorithm, "this_version": this_version,
    }  # fmt: skip
    with open_desk(home, name) as desk:
        desk.check_way(out)
        try:
            terms = asked_terms(desk, asked, job)
            statement = GrantRequest(terms).sign(desk.identity, log=desk.log)
        except IntegrityError as error:  # a text, a number or a name that terms cannot hold
            raise UsageError(f"grant request: {error}") from None
        done = desk.say([statement], out)
    if as_json:
        print(json.dumps({"request": statement.digest, "terms": statement.body["terms"], "done": done}))
    else:
        line(f"request {statement.digest[:16]}: {_words(terms)}; {done}")


@app.command(
    epilog="Examples: fedseal grant approve 3f2a9c01 --uses 1 --until 2026-06-30 · fedseal grant approve request.json "
    "--out approval.json · several in turn, each with its own key: fedseal grant approve 3f2a9c01 --then legal --then "
    "bank --as dpo, then fedseal grant approve 9c1d44ab --as legal, and last the owner, bank"
)
def approve(
    wanted: Annotated[
        list[str],
        typer.Argument(metavar="ID|FILE...", help="8 digits of it or more, from grant list; or files of --out."),
    ],
    uses: UsesOption = None,
    epsilon: EpsilonOption = None,
    until: UntilOption = None,
    receivers: Annotated[
        list[str] | None, typer.Option("--receivers", metavar="NAME", help="Fewer than were asked for.")
    ] = None,
    then: Annotated[
        list[str] | None,
        typer.Option(
            "--then", metavar="NAME[=FINGERPRINT]", help="Who signs after you, in turn; the owner of the data is last."
        ),
    ] = None,
    name: AsOption = None,
    out: OutOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say yes to a request, to all of it or to less; or sign a grant that waits for you as one of several.

    Whoever signs first, before the owner, names the others with --then; they sign the grant by its own ID.
    """
    from fl_core.trust.catalog import to_micro
    from fl_core.trust.grant_statements import Approval
    from server.cli.grant_chain import begin, check_asked, take_up

    with open_desk(home, name, role=OWNER) as desk:
        desk.check_way(out)
        about = take_up(desk, wanted, chain=True)
        if any(waiting.digest.startswith(about) for waiting in desk.consent.waiting()):
            statement = desk.consent.approve(
                about,
                log=desk.log,
                uses=uses,
                epsilon=None if epsilon is None else to_micro(epsilon, up=False),
                until=None if until is None else until_ms(until),
                receivers=tuple(receivers) if receivers else None,
                chain=begin(desk, about, then or ()),
            )
        elif any(given is not None for given in (uses, epsilon, until, receivers)) or then:
            raise UsageError(f"{about:.64}: no request that waits here; a grant is signed as it is, without options")
        else:
            check_asked(desk, about)
            statement = desk.consent.sign(about, log=desk.log)
        grant = Approval.from_dict(statement.body).grant
        done = desk.say([statement], out)
    if as_json:
        chain = [signer.name for signer in grant.approvals]
        print(json.dumps({"grant": grant.id, "terms": grant.to_dict()["terms"], "approvals": chain, "done": done}))
    else:
        line(f"grant {grant.id[:16]}: {_words(grant.terms)}; {done}")
        if len(grant.approvals) > 1:
            _show_chain(grant, statement.by)


def _show_chain(grant: Grant, last: str) -> None:
    """Who has signed, `last` the last of them, and who follows; fingerprints, so that people can compare them."""
    word = "signed"
    for signer in grant.approvals:
        line(f"  {word:<7} {signer.name:<20} {signer.fingerprint}")
        if signer.name == last:
            word = "then"


@app.command(epilog='Example: fedseal grant deny 3f2a9c01 --reason "another purpose than ours"')
def deny(
    wanted: IdArgument,
    reason: ReasonOption,
    name: AsOption = None,
    out: OutOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say no to a request."""
    _end("deny", wanted, reason, name, out, home, as_json)


@app.command(epilog='Example: fedseal grant revoke 9c1d44ab --reason "the contract ended"')
def revoke(
    wanted: IdArgument,
    reason: ReasonOption,
    name: AsOption = None,
    out: OutOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take a grant back, at once: no run begins under it, and none goes on."""
    _end("revoke", wanted, reason, name, out, home, as_json)


def _end(
    act: str, wanted: str, reason: str, name: str | None, out: Path | None, home: Path | None, as_json: bool
) -> None:
    from fl_core.errors import IntegrityError
    from server.cli.grant_chain import check_own, take_up

    with open_desk(home, name, role=OWNER) as desk:
        desk.check_way(out)
        about = take_up(desk, [wanted])
        if act == "deny":
            check_own(desk, about)
        try:
            sign = desk.consent.deny if act == "deny" else desk.consent.revoke
            statement = sign(about, reason, log=desk.log)
        except IntegrityError as error:
            raise UsageError(f"--reason: {error}") from None
        done = desk.say([statement], out)
    ended = str(statement.body["about"])
    if as_json:
        print(json.dumps({"act": act, "about": ended, "done": done}))
    else:
        what = "request" if act == "deny" else "grant"
        line(f"{what} {ended[:16]}: {'denied' if act == 'deny' else 'revoked'}, {done}")


@app.command(epilog="Example: fedseal grant post request.json  (in a home with a pass, or that of the ledger)")
def post(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What --out wrote, here or elsewhere.")],
    name: AsOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Hand in statements that somebody has signed elsewhere; their signatures stay theirs."""
    from clients.statement_file import read_statements

    items = read_statements(file)
    with open_desk(home, name) as desk:
        size, added = desk.need_board("a home that has one").post([statement for statement, _ in items])
    if as_json:
        print(json.dumps({"statements": len(items), "added": added, "size": size}))
    else:
        line(f"{added} of {len(items)} statements were new; the ledger has {size} entries")


@app.command(name="list", epilog="Examples: fedseal grant list --as bank · fedseal grant list --json")
def list_(name: AsOption = None, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """What waits for you, what you granted and what of it is used, and what you have asked for."""
    from server.cli.grant_list import as_grantee, as_owner, show_all

    with open_desk(home, name, role=EITHER) as desk:
        refused = desk.sync()
        ended = desk.ended_keys()
        found = {"name": desk.identity.name, **as_owner(desk.consent, ended), "asked": as_grantee(desk, ended)}
        found["refused"] = refused
    if as_json:
        print(json.dumps(found))
    else:
        show_all(found)


def _words(terms: Terms) -> str:
    from server.cli.grant_list import words

    return words(terms)
