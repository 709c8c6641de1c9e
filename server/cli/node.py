"""`fedseal node …`: what a data owner does."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fl_core.errors import UsageError
from server import environment
from server.cli.options import HomeOption, JsonOption

if TYPE_CHECKING:
    from clients.node.folder import NodeFolder, Settings, Source

app = typer.Typer(help="Run a node beside your data; it dials out only.", no_args_is_help=True, rich_markup_mode=None)
NameOption = Annotated[str | None, typer.Option("--name", help="The node, where this home holds several.")]
DataOption = Annotated[
    list[str] | None,
    typer.Option("--data", metavar="NAME=PATH-or-URL", help="Bind data to the name that jobs use; may be repeated."),
]
QueryOption = Annotated[
    list[str] | None, typer.Option("--query", metavar="NAME=SELECT", help="The rows, where NAME is bound to a URL.")
]
LimitOption = Annotated[
    list[str] | None,
    typer.Option("--max-epsilon", metavar="[NAME=]ε", help="Privacy over all jobs, for one name or for the others."),
]
KindOption = Annotated[list[str] | None, typer.Option("--allow", metavar="KIND", help="Allowed kinds of job.")]
CodeOption = Annotated[
    list[str] | None,
    typer.Option("--allow-code", metavar="PACKAGE.MODULE:FUNCTION", help="Installed code that jobs may name."),
]

ConsentOption = Annotated[
    str | None,
    typer.Option("--consent", metavar="standing|ask", help="standing: jobs may use the data; ask: by grants only."),
]
ContactOption = Annotated[
    str | None,
    typer.Option("--contact", metavar="TEXT", help="How to reach you; fedseal identity describe says it on the board."),
]
PsiOption = Annotated[
    str | None,
    typer.Option("--psi-protocol", metavar="any|ecdh", help="Take part in psi by this protocol only."),
]


def _open(home: Path | None, name: str | None) -> NodeFolder:
    from clients.node.folder import NodeFolder
    from fl_core.home import Home

    return NodeFolder.of(Home.open(home), name)


@app.command(
    epilog="Example: fedseal node init --name bank --coordinator fed.example.org:9443 --data credit=/data/credit.csv"
)
def init(
    name: Annotated[str, typer.Option("--name", help="The party's name, as jobs will name it.")],
    coordinator: Annotated[str, typer.Option("--coordinator", metavar="HOST:PORT", help="Where nodes come in.")],
    data: DataOption = None,
    query: QueryOption = None,
    max_epsilon: LimitOption = None,
    allow: KindOption = None,
    allow_code: CodeOption = None,
    refuse_unsafe: Annotated[
        bool, typer.Option("--refuse-unsafe", help="Refuse jobs that take protection away.")
    ] = False,
    psi_protocol: PsiOption = None,
    consent: ConsentOption = None,
    contact: ContactOption = None,
    federation: Annotated[
        Path | None, typer.Option("--federation", help="federation.json of the coordinator, instead of asking it.")
    ] = None,
    fingerprint: Annotated[
        str | None, typer.Option("--fingerprint", help="Of the coordinator's authority, if you know it.")
    ] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a node's keys and print the card that the coordinator's operator registers."""
    from clients.node.bootstrap import federation_of, verify
    from clients.node.folder import NodeFolder, Settings
    from fl_core.files import write_atomic
    from fl_core.home import Home
    from fl_core.trust.identity import check_name

    check_name(name)
    found = federation_of(coordinator, file=federation, fingerprint=fingerprint)
    if federation is None:
        verify(coordinator, found)
    settings = _changed(Settings(name, coordinator), data, query, max_epsilon, allow, allow_code)
    settings = dataclasses.replace(settings, refuse_unsafe=refuse_unsafe)
    settings = _with_contact(_with_consent(_with_psi(settings, psi_protocol), consent), contact)
    folder = NodeFolder.create(Home.open(home), settings, authority=found.authority)
    folder.pin(found.coordinator)
    folder.agree()
    card = folder.card()
    path = folder.path / "card.txt"
    write_atomic(path, card.encode().encode() + b"\n", mode=0o644)
    if as_json:
        told = {"name": name, "card": card.encode(), "fingerprint": card.fingerprint, "file": str(path)}
        print(json.dumps(told | {"authority": found.fingerprint}))
        return
    print(f"node {name} in {folder.path}")
    print(f"coordinator's authority {found.fingerprint}" + ("" if fingerprint else "  (compare it with the operator)"))
    print(f"this node's fingerprint {card.fingerprint}  (the operator compares it with you)")
    print(consent_line(settings))
    print(f"the card to register, also in {path}:\n{card.encode()}")
    print("next: the operator runs fedseal coordinator register CARD; you run fedseal node start")


@app.command(epilog="Example: fedseal node set --data loans=loans.parquet --max-epsilon 8")
def set(
    data: DataOption = None,
    query: QueryOption = None,
    max_epsilon: LimitOption = None,
    allow: KindOption = None,
    allow_code: CodeOption = None,
    refuse_unsafe: Annotated[bool | None, typer.Option("--refuse-unsafe/--take-unsafe")] = None,
    psi_protocol: PsiOption = None,
    consent: ConsentOption = None,
    contact: ContactOption = None,
    name: NameOption = None,
    home: HomeOption = None,
) -> None:
    """Change what the node offers and allows; it holds from the next message on."""
    folder = _open(home, name)
    settings = _changed(folder.settings(), data, query, max_epsilon, allow, allow_code)
    if refuse_unsafe is not None:
        settings = dataclasses.replace(settings, refuse_unsafe=refuse_unsafe)
    settings = _with_contact(_with_consent(_with_psi(settings, psi_protocol), consent), contact)
    folder.save(settings)
    folder.agree(anew=consent is not None)
    print(f"node {folder.name}: saved")
    print(consent_line(settings))


def consent_line(settings: Settings) -> str:
    """Who may use the data, in one line."""
    names = ", ".join(settings.sources) or "its data, once bound"
    if settings.consent == "ask":
        return f"CONSENT ask: each use of {names} needs a grant that you approve (fedseal grant list)"
    whose = "everyone whom the coordinator admits may use"
    return f"CONSENT standing: {whose} {names}; --consent ask wants a grant for each use"


def _with_consent(settings: Settings, consent: str | None) -> Settings:
    from clients.policy import CONSENTS

    if consent is None:
        return settings
    if consent not in CONSENTS:
        raise UsageError(f"--consent {consent}; allowed: {', '.join(CONSENTS)}")
    return dataclasses.replace(settings, consent=consent)


def _with_contact(settings: Settings, contact: str | None) -> Settings:
    from clients.own_profile import check_contact

    return settings if contact is None else dataclasses.replace(settings, contact=check_contact(contact))


def _with_psi(settings: Settings, protocol: str | None) -> Settings:
    if protocol is None:
        return settings
    if protocol not in ("any", "ecdh"):
        raise UsageError(f"--psi-protocol {protocol}; allowed: any, ecdh")
    return dataclasses.replace(settings, psi_protocol=protocol)


def _changed(
    settings: Settings,
    data: list[str] | None,
    query: list[str] | None,
    max_epsilon: list[str] | None,
    allow: list[str] | None,
    allow_code: list[str] | None,
) -> Settings:
    """Settings with what the options say."""
    from clients.policy import EVERY, KINDS

    for kind in allow or ():
        if kind not in KINDS:
            raise UsageError(f"--allow {kind}; allowed: {', '.join(KINDS)}")
    limits = dict(settings.limits)
    for text in max_epsilon or ():
        key, _, value = text.rpartition("=")
        try:
            limits[key or EVERY] = float(value)
        except ValueError:
            raise UsageError(f"--max-epsilon {text}; allowed: ε or NAME=ε") from None
        if not 0 < limits[key or EVERY] < float("inf"):
            raise UsageError(f"--max-epsilon {text}; allowed: a positive number")
    return dataclasses.replace(
        settings,
        sources={**settings.sources, **_sources(data, query)},
        limits=limits,
        kinds=tuple(allow) if allow else settings.kinds,
        code=tuple(allow_code) if allow_code else settings.code,
    )


def _sources(data: list[str] | None, query: list[str] | None) -> dict[str, Source]:
    """Bound data; a file must be there, a URL must come with a query."""
    from clients.node.folder import Source
    from fl_core.config import is_url
    from fl_core.trust.identity import check_name

    queries = dict(_pair("--query", text) for text in query or ())
    sources = {}
    for text in data or ():
        name, place = _pair("--data", text)
        check_name(name)
        if is_url(place) != (name in queries):
            raise UsageError(f"--data {name}: a URL needs --query {name}=SELECT …, a file has none")
        if not is_url(place):
            place = str(Path(place).expanduser().resolve())
            if not Path(place).is_file():
                raise UsageError(f"--data {name}: no file {place}; allowed: a file that is there, or a URL")
        sources[name] = Source(place, queries.pop(name, None))
    for name in queries:
        raise UsageError(f"--query {name}: no --data {name}=URL beside it")
    return sources


def _pair(option: str, text: str) -> tuple[str, str]:
    name, found, value = text.partition("=")
    if not found or not name or not value:
        shown = name if found else text.partition("://")[0]  # a URL may hold a password
        raise UsageError(f"{option} {shown[:64]}: not NAME=VALUE; allowed: for example credit=credit.csv")
    return name, value


@app.command(epilog="Example: fedseal node start --name bank")
def start(name: NameOption = None, home: HomeOption = None) -> None:
    """Serve jobs, in the foreground, until SIGTERM or Ctrl-C."""
    environment.prepare()
    from clients.node.service import NodeService
    from server.cli.coordinator import say

    folder = _open(home, name)
    print(consent_line(folder.settings()), flush=True)
    NodeService(folder, say=say).run()


@app.command(epilog="Example: fedseal node status --json")
def status(name: NameOption = None, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Connection, data, privacy left, jobs now and before, refusals.  Exit: 0 connected, 1 not."""
    from clients.node.status import look, show

    found = look(_open(home, name))
    if as_json:
        print(json.dumps(found))
    else:
        show(found)
    if not found["connected"]:
        raise typer.Exit(1)


@app.command(epilog="Example: fedseal node pause")
def pause(name: NameOption = None, home: HomeOption = None) -> None:
    """Take no new jobs; what has begun goes on."""
    folder = _open(home, name)
    folder.pause(True)
    print(f"node {folder.name}: takes no new jobs")


@app.command(epilog="Example: fedseal node resume")
def resume(name: NameOption = None, home: HomeOption = None) -> None:
    """Take jobs again."""
    folder = _open(home, name)
    folder.pause(False)
    print(f"node {folder.name}: takes jobs")


@app.command(epilog="Example: fedseal node card")
def card(name: NameOption = None, home: HomeOption = None) -> None:
    """Print the card that the operator registers."""
    print(_open(home, name).card().encode())
