"""`fedseal coordinator …`: what the operator of a deployment does."""

from __future__ import annotations

import json
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fl_core.errors import UsageError
from server import environment
from server.cli.options import HomeOption, JsonOption

if TYPE_CHECKING:
    from server.coordinator.folder import CoordinatorFolder

app = typer.Typer(
    help="Run a coordinator: nodes and people of several organisations.", no_args_is_help=True, rich_markup_mode=None
)
NodeArgument = Annotated[str, typer.Argument(metavar="NAME", help="The node's party.")]


def _open(home: Path | None) -> CoordinatorFolder:
    from fl_core.home import Home
    from server.coordinator.folder import CoordinatorFolder

    return CoordinatorFolder.open(Home.open(home))


def _note(folder: CoordinatorFolder, kind: str, body: dict[str, Any]) -> None:
    """Put the operator's act on the ledger."""
    from fl_core.trust.entry import Statement
    from fl_core.trust.ledger import Ledger

    identity = folder.identity()
    with Ledger.open(folder.home.ledger, identity) as ledger:
        ledger.append([Statement.make(identity, log=ledger.log, kind=kind, run="", body=body)])


def note_for(folder: CoordinatorFolder) -> Callable[[str, str, dict[str, Any]], None]:
    """What puts a statement of the coordinator, outside any run, on the ledger: kind, run, body."""
    return lambda kind, _, body: _note(folder, kind, body)


@app.command(epilog="Example: fedseal coordinator init --host fed.example.org --host 10.0.0.7")
def init(
    host: Annotated[
        list[str] | None,
        typer.Option("--host", help="A name or address others reach it by; the first one is told to them."),
    ] = None,
    bind: Annotated[str, typer.Option("--bind", help="The address to listen on.")] = "0.0.0.0",  # noqa: S104
    nodes_port: Annotated[int, typer.Option("--port", help="Where nodes come in.")] = 9443,
    door_port: Annotated[int, typer.Option("--door-port", help="Where people come in.")] = 9444,
    health_port: Annotated[int, typer.Option("--health-port", help="Plain HTTP on loopback.")] = 9445,
    exchange_port: Annotated[int, typer.Option("--exchange-port", help="Where nodes come in for sessions.")] = 9446,
    home: HomeOption = None,
) -> None:
    """Make keys, certificates and settings."""
    from fl_core.home import Home
    from server.coordinator.folder import Addresses, CoordinatorFolder

    hosts = tuple(host or (["localhost"] if bind.startswith("127.") else [socket.getfqdn()]))
    addresses = Addresses(hosts, bind, nodes_port, door_port, health_port, exchange_port)
    folder = CoordinatorFolder.create(Home.open(home), addresses)
    found = folder.federation()
    print(f"coordinator for {', '.join(hosts)} in {folder.path}")
    print(f"authority   {found.fingerprint}  (10 years; owners of nodes compare it)")
    print(f"certificate until {folder.check().not_after:%Y-%m-%d}; fedseal coordinator renew")
    print(f"hand to owners of nodes: {folder.public}")
    print("next: fedseal coordinator start")


@app.command(epilog="Example: fedseal coordinator start --mlflow 127.0.0.1:5000")
def start(
    mlflow: Annotated[
        str | None, typer.Option("--mlflow", metavar="HOST:PORT", help="Serve this home's MLflow runs there.")
    ] = None,
    home: HomeOption = None,
) -> None:
    """Serve nodes and people, in the foreground, until SIGTERM or Ctrl-C."""
    environment.prepare()
    from server.coordinator.service import Coordinator

    Coordinator(_open(home), mlflow=mlflow, say=say).run()


def say(text: str) -> None:
    """A line for the operator, with the time."""
    print(f"{time.strftime('%H:%M:%S')}  {text}", file=sys.stderr, flush=True)


@app.command(epilog="Example: fedseal coordinator status --json")
def status(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """How the running coordinator and its nodes are.  Exit: 0 all well, 1 not."""
    environment.prepare()
    from server.coordinator.status import look, show

    found = look(_open(home))
    if as_json:
        print(json.dumps(found))
    else:
        show(found)
    if not found["ok"]:
        raise typer.Exit(1)


@app.command(epilog="Example: fedseal coordinator register fedseal-node-card:eyJj…  (or the file it is in)")
def register(
    card: Annotated[str, typer.Argument(metavar="CARD", help="What fedseal node init printed, or a file with it.")],
    role: Annotated[
        list[str] | None,
        typer.Option("--role", help="data-owner (so without), receiver or model-owner; may be repeated."),
    ] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let a node in, and pin its party's card.  The same card again with other roles changes them."""
    from fl_core.trust.identity import CardBook
    from fl_core.trust.node_card import NodeCard

    folder = _open(home)
    text = Path(card).read_text(encoding="utf-8") if len(card) < 256 and Path(card).is_file() else card
    shown = NodeCard.decode(text.strip())
    cards = CardBook(folder.path / "cards.json")
    if cards.get(shown.name) is not None:
        cards.pin(shown.card)  # refuses another card than before
    node = folder.nodes.register(shown, role or ["data-owner"])
    cards.pin(shown.card)
    held = sorted(node.roles)
    _note(folder, "node", {"node": node.name, "card": node.fingerprint, "state": "registered", "roles": held})
    if as_json:
        print(json.dumps({"node": node.name, "fingerprint": node.fingerprint, "state": node.state, "roles": held}))
    else:
        print(f"node {node.name}: registered ({', '.join(held)}); compare with its owner: {node.fingerprint}")


@app.command(epilog="Example: fedseal coordinator disable bank")
def disable(name: NodeArgument, home: HomeOption = None) -> None:
    """Keep a node out until it is enabled again."""
    _set(name, "disabled", home)


@app.command(epilog="Example: fedseal coordinator enable bank")
def enable(name: NodeArgument, home: HomeOption = None) -> None:
    """Let a disabled node in again."""
    _set(name, "enabled", home)


def _set(name: str, state: str, home: Path | None) -> None:
    folder = _open(home)
    node = folder.nodes.set_state(name, state)
    _note(folder, "node", {"node": name, "card": node.fingerprint, "state": state})
    print(f"node {name}: {state}")


@app.command(epilog="Example: fedseal coordinator remove bank")
def remove(name: NodeArgument, home: HomeOption = None) -> None:
    """Forget a node; its party's card stays pinned."""
    folder = _open(home)
    node = folder.nodes.remove(name)
    _note(folder, "node", {"node": name, "card": node.fingerprint, "state": "removed"})
    print(f"node {name}: removed")


@app.command(epilog="Example: fedseal coordinator nodes --json")
def nodes(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """List the registered nodes and whether they are connected."""
    environment.prepare()
    from server.coordinator.status import look, show_nodes

    found = look(_open(home))
    if as_json:
        print(json.dumps({"nodes": found["nodes"]}))
    else:
        show_nodes(found["nodes"])


@app.command(epilog="Example: fedseal coordinator admit ann --role engineer --out ann.pass")
def admit(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The person or program.")],
    role: Annotated[
        list[str],
        typer.Option(
            "--role",
            help="data-owner, model-owner (or engineer), receiver, auditor or operator; may be repeated.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="The pass, a file with a private key (0600).")],
    days: Annotated[int, typer.Option("--days", min=1, max=397, help="How long it holds.")] = 397,
    home: HomeOption = None,
) -> None:
    """Issue a person's pass: certificate, key, and whom to trust.  An earlier pass of that name is revoked."""
    from fl_core.files import write_atomic
    from fl_core.messages import COORDINATOR
    from fl_core.trust import certificates
    from fl_core.trust.federation import Pass

    folder = _open(home)
    if name == COORDINATOR:
        raise UsageError(f"{name}: the coordinator's own name; allowed: another one")
    if out.exists():
        raise UsageError(f"--out {out}: there is a file already; allowed: a new one")
    pair = certificates.issue_client(folder.authority(), name=name, roles=role, days=days)
    checked = certificates.check(pair.certificate, authority=folder.authority_pem, purpose="client")
    write_atomic(out, Pass(folder.federation(), pair).encode())
    person = folder.people.add(checked)
    body = {"person": name, "roles": list(person.roles), "certificate": person.fingerprint, "state": "admitted"}
    _note(folder, "person", body)
    print(f"{name}: {', '.join(role)}, until {checked.not_after:%Y-%m-%d}; hand over {out}; then: fedseal login {out}")


@app.command(epilog="Example: fedseal coordinator revoke ann")
def revoke(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The person or program.")], home: HomeOption = None
) -> None:
    """Take a person's pass back, at once."""
    folder = _open(home)
    folder.people.revoke(name)
    _note(folder, "person", {"person": name, "state": "revoked"})
    print(f"{name}: revoked")


@app.command(epilog="Example: fedseal coordinator people --json")
def people(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """List who was admitted."""
    from dataclasses import asdict

    found = [asdict(person) for person in _open(home).people.all()]
    if as_json:
        print(json.dumps({"people": found}))
        return
    for p in found:
        until = time.strftime("%Y-%m-%d", time.gmtime(p["not_after"]))
        state = "revoked" if p["revoked"] else f"until {until}"
        print(f"{p['name']:<24} {', '.join(p['roles']):<20} {state:<18} {p['fingerprint'][:16]}…")


@app.command(epilog="Example: fedseal coordinator renew --host fed.example.org")
def renew(
    host: Annotated[list[str] | None, typer.Option("--host", help="Other names or addresses than so far.")] = None,
    home: HomeOption = None,
) -> None:
    """A new server certificate under the same authority; takes effect when the coordinator is started again."""
    checked = _open(home).renew(host or ())
    print(f"certificate for {', '.join(checked.hosts)} until {checked.not_after:%Y-%m-%d}; restart the coordinator")
