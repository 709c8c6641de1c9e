"""`fedseal data publish | list | show | withdraw`: the catalog.  The data themselves never leave."""

from __future__ import annotations

import json
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fl_core.errors import UsageError
from server.cli.desk import (
    OWNER,
    AsOption,
    Desk,
    OutOption,
    dataset_name,
    line,
    moment,
    nodes_of,
    now_ms,
    open_desk,
)
from server.cli.options import HomeOption, JsonOption

if TYPE_CHECKING:
    from clients.sql_source import SqlSource
    from fl_core.trust.catalog import Catalog, DatasetCard, Listing

app = typer.Typer(
    help="Say which data there are, and on what terms; the data never leave.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
DELTA = "0.00001"
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The dataset's name, without its owner.")]


@app.command(
    epilog='Examples: fedseal data publish credit.csv --name credit --purpose "credit scoring" --epsilon 8 --as bank · '
    "fedseal data publish --name credit --purpose research  (data that the node binds to this name) · fedseal data "
    'publish postgresql+psycopg://reader@db/bank --query "SELECT …" --name loans --purpose research'
)
def publish(
    place: Annotated[
        str | None, typer.Argument(metavar="[FILE|URL]", help="csv, parquet, npz, or a SQLAlchemy URL with --query.")
    ] = None,
    name: Annotated[str, typer.Option("--name", help="As grants and jobs will name it.")] = "",
    purpose: Annotated[
        list[str] | None, typer.Option("--purpose", help="What it may be used for; may be repeated.")
    ] = None,
    query: Annotated[str | None, typer.Option("--query", metavar="SELECT", help="The rows, with a URL.")] = None,
    columns: Annotated[
        bool | None, typer.Option("--columns/--no-columns", help="Show the columns' names and types, not a digest.")
    ] = None,
    epsilon: Annotated[
        str | None, typer.Option("--epsilon", metavar="ε", help="Privacy of all jobs together (default: no limit).")
    ] = None,
    delta: Annotated[str | None, typer.Option("--delta", metavar="δ", help=f"At which δ (default {DELTA}).")] = None,
    min_cohort: Annotated[
        int | None, typer.Option("--min-cohort", min=1, help="Data owners in a job at least (default 1).")
    ] = None,
    kinds: Annotated[list[str] | None, typer.Option("--kinds", metavar="KIND", help="Kinds of job.")] = None,
    owner: AsOption = None,
    out: OutOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Sign and post a card of a dataset: rows rounded, a digest of its columns, your terms.  Again: a new version."""
    asked = {"purposes": purpose, "shows": columns, "epsilon": epsilon, "delta": delta, "min_cohort": min_cohort}
    if not name:
        raise UsageError("data publish: no --name; allowed: a name for the dataset")
    with open_desk(home, owner, role=OWNER) as desk:
        desk.check_way(out)
        card, where = _card(desk, place, query, name, asked | {"kinds": kinds})
        statement = desk.consent.publish(card, log=desk.log, place=where)
        done = desk.say([statement], out)
    if as_json:
        print(json.dumps({"card": card.to_dict(), "statement": statement.digest, "done": done}))
        return
    line(f"{card.owner}/{card.name}: {card.rows} rows (rounded), version {card.version[:16]}…, {done}")


def _card(
    desk: Desk, place: str | None, query: str | None, name: str, asked: dict[str, Any]
) -> tuple[DatasetCard, str]:
    """The card of the data at a place, with the terms asked for, or else those of the version before."""
    from clients.consent.data import place_of, version_of
    from clients.describe import describe
    from clients.policy import KINDS
    from clients.store import PartyStore
    from fl_core.errors import IntegrityError
    from fl_core.trust.catalog import UNLIMITED, DatasetCard, round_rows, schema_digest, to_micro

    listing = desk.consent.listing(name)
    before = listing.card if listing is not None else None
    purposes = tuple(asked["purposes"] or (before.purposes if before else ()))
    if not purposes:
        raise UsageError("data publish: no --purpose; allowed: what the data may be used for, in your words")
    kinds = tuple(asked["kinds"] or (before.kinds if before else KINDS))
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise UsageError(f"--kinds {unknown[0]:.40}; allowed: {', '.join(KINDS)}")
    source = _source(desk, place, query, name)
    found, rows = describe(source, where=f"data {name}")
    shows = bool(before and before.columns) if asked["shows"] is None else asked["shows"]
    budget = before.epsilon if before else UNLIMITED
    try:
        card = DatasetCard(
            owner=desk.identity.name,
            name=name,
            schema=schema_digest(found),
            columns=found if shows else (),
            rows=round_rows(rows),
            purposes=purposes,
            kinds=kinds,
            epsilon=budget if asked["epsilon"] is None else to_micro(asked["epsilon"], up=False),
            delta=_delta(asked["delta"]) if asked["delta"] else before.delta if before else DELTA,
            min_cohort=asked["min_cohort"] or (before.min_cohort if before else 1),
            version=version_of(source, PartyStore(desk.folder, desk.identity.name).commitment_key),
            published=max(now_ms(), listing.time + 1 if listing is not None else 0),
        )
    except IntegrityError as error:  # a text, a number or a name that a card cannot hold
        raise UsageError(f"data publish: {error}") from None
    return card, place_of(source)


def _delta(text: str) -> str:
    """δ as a card has it: 1e-5 is 0.00001."""
    try:
        number = Decimal(text)
    except InvalidOperation:
        number = Decimal(-1)
    if not 0 <= number < 1:
        raise UsageError(f"--delta {text:.40}; allowed: a number from 0 to below 1, for example 1e-5")
    return format(number.normalize(), "f") if number else "0"


def _source(desk: Desk, place: str | None, query: str | None, name: str) -> Path | SqlSource:
    """Where the data lie: the place that is named, or what the node binds to the name."""
    from clients.sql_source import SqlSource
    from fl_core.config import is_url

    if place is None:
        if desk.identity.name not in nodes_of(desk.home):
            raise UsageError("data publish: no FILE; allowed: a file, a URL with --query, or at a node a bound name")
        from clients.node.folder import NodeFolder

        sources = NodeFolder(desk.folder).settings().sources
        if name not in sources:
            bound = ", ".join(sources) or "nothing is bound"
            raise UsageError(f"--name {name:.64}: not bound at this node; allowed: {bound}, or a FILE")
        return sources[name].open()
    if is_url(place):
        if query is None:
            raise UsageError("data publish: a URL without --query; allowed: --query SELECT …")
        return SqlSource(place, query)
    if query is not None:
        raise UsageError("data publish: --query with a file; allowed: with a URL")
    return Path(place).expanduser().absolute()


@app.command(name="list", epilog="Example: fedseal data list --json")
def list_(
    withdrawn: Annotated[bool, typer.Option("--withdrawn", help="Also what is offered no more.")] = False,
    name: AsOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the datasets of all owners."""
    with open_desk(home, name) as desk:
        found, refused = _catalog(desk)
    listings = found.listings(withdrawn=withdrawn)
    if as_json:
        print(json.dumps({"datasets": [_told(listing) for listing in listings], "refused": list(refused)}))
        return
    for listing in listings:
        card = listing.card
        state = "  withdrawn" if listing.withdrawn else ""
        line(f"{f'{card.owner}/{card.name}':<32} {card.rows:>9} rows  {_terms(card)}{state}")
    if not listings:
        line("no datasets; an owner publishes one: fedseal data publish --help")
    for text in refused:
        line(f"left out: {text}")


def _catalog(desk: Desk) -> tuple[Catalog, list[str]]:
    """What the board shows; at a node without a pass, its own."""
    from clients.board import read_catalog
    from fl_core.trust.catalog import Catalog

    if desk.board is not None:
        found, refused = read_catalog(desk.board)
        return found, [*refused, *getattr(desk.board, "refused", [])]
    own = Catalog()
    for listing in desk.consent.listings():
        own.add(listing.card.sign(desk.identity, log=desk.log), desk.identity.card)
    return own, []


def _terms(card: DatasetCard) -> str:
    from fl_core.trust.catalog import from_micro

    cohort = f", {card.min_cohort} owners or more" if card.min_cohort > 1 else ""
    return f"{', '.join(card.kinds)}; ε {from_micro(card.epsilon)}{cohort}; {', '.join(card.purposes)}"


def _told(listing: Listing) -> dict[str, Any]:
    told = {"withdrawn": listing.withdrawn, "time": listing.time, "versions": list(listing.versions)}
    return {**listing.card.to_dict(), **told}


@app.command(epilog="Example: fedseal data show bank/credit")
def show(
    dataset: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="As fedseal data list shows it.")],
    name: AsOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Everything that an owner says of a dataset."""
    from fl_core.trust.catalog import from_micro

    wanted = dataset_name(dataset)
    with open_desk(home, name) as desk:
        found, _ = _catalog(desk)
    listing = found.get(*wanted)
    if listing is None:
        known = ", ".join(f"{held.card.owner}/{held.card.name}" for held in found.listings()) or "none is published"
        raise UsageError(f"{dataset:.130}: not published; allowed: {known}")
    if as_json:
        print(json.dumps(_told(listing)))
        return
    card = listing.card
    line(f"{card.owner}/{card.name}" + ("  (withdrawn)" if listing.withdrawn else ""))
    line(f"rows      {card.rows}, rounded")
    line(f"purposes  {', '.join(card.purposes)}")
    line(f"kinds     {', '.join(card.kinds)}")
    line(f"budget    ε {from_micro(card.epsilon)} at δ = {card.delta}, of all jobs together")
    line(f"cohort    {card.min_cohort} data owners or more in a job")
    line(f"version   {card.version}, of {moment(card.published)}, number {len(listing.versions)}")
    line(f"columns   digest {card.schema}")
    for column, kind in card.columns:
        line(f"          {column}: {kind}")


@app.command(epilog="Example: fedseal data withdraw credit --as bank")
def withdraw(
    name: NameArgument,
    owner: AsOption = None,
    out: OutOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Offer a dataset no more: no new run may use it.  Nothing spent of its budget comes back."""
    with open_desk(home, owner, role=OWNER) as desk:
        desk.check_way(out)
        listing = desk.consent.listing(name)
        if listing is None or listing.withdrawn:
            own = ", ".join(held.card.name for held in desk.consent.listings() if not held.withdrawn) or "none"
            raise UsageError(f"{name:.64}: not offered by {desk.identity.name}; allowed: {own}")
        statement = desk.consent.withdraw(name, log=desk.log, now=max(now_ms(), listing.time + 1))
        done = desk.say([statement], out)
        told = f"{desk.identity.name}/{name}"
    if as_json:
        print(json.dumps({"dataset": told, "statement": statement.digest, "done": done}))
    else:
        line(f"{told}: withdrawn, {done}")
