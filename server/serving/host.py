"""The process of `fedseal serve`: keys and certificate, models, the service, and its end.

::

    serving/                     in the home of the model's owner
      identity.key               signs receipts and the ledger
      authority.pem  .key        signs the certificate; clients get the .pem
      version.key                models' versions are keyed with it
      accounts.db  ledger.db     what clients used; receipts
"""

from __future__ import annotations

import secrets
import shlex
import signal
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from fl_core.errors import FedsealError, UsageError
from fl_core.files import private_dir, write_atomic
from fl_core.home import Home
from fl_core.job import MIN_TREES
from fl_core.protocols.prediction.online import RowsById
from fl_core.trust import certificates
from fl_core.trust.certificates import Pair
from fl_core.trust.federation import host_port
from fl_core.trust.identity import Card, Identity
from fl_core.trust.ledger import Ledger
from fl_core.trust.members import Members
from fl_core.trust.once import create_once
from server.predict import Prediction, Server, handler
from server.serving.accounts import Accounts, Quota
from server.serving.door import CAPACITY, Client, Door
from server.serving.folding import Linear, Network, ready
from server.serving.metrics import Metrics
from server.serving.model import Served, serve_linear, serve_network
from server.serving.page import Model, Owner, Page
from server.serving.receipts import Receipts
from server.serving.sources import find
from server.serving.standing import check_owner, standing_of
from server.serving.tls import held_by, read_pair
from server.serving.vertical import VerticalPrediction
from server.serving.vertical import handler as vertical_handler
from server.serving.vertical_model import ServedPart, lines, load_parts

Say = Callable[[str], None]


@dataclass(frozen=True)
class Naming:
    """What a model's file may not say; as in `server.serving.sources.find`."""

    features: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    activation: str = ""


@dataclass(frozen=True)
class Settings:
    """What `fedseal serve` was told; `models` are (name, source), `clients` (card, end in seconds since 1970 or 0).

    parameters, network : sets of linear models and of networks. naming, tracking_uri : for models' sources.
    capacity : blocks at a time. tls : files of the owner's own certificate and key. page : where its page listens.
    parts : (name, what reads it) of vertical models. min_trees : of theirs, a score.
    """

    name: str
    listen: str
    hosts: tuple[str, ...]
    models: tuple[tuple[str, str], ...]
    clients: tuple[tuple[Card, float], ...]
    rows_a_day: int
    requests_a_second: float
    parameters: str
    output_noise: float
    capacity: int = CAPACITY
    tls: tuple[Path, Path] | None = None
    page: tuple[str, int] | None = None
    network: str = "CKKS_NETWORK"
    naming: Naming = Naming()
    tracking_uri: str = ""
    parts: tuple[tuple[str, Callable[[], RowsById]], ...] = ()
    min_trees: int = MIN_TREES


def load_models(folder: Path, settings: Settings) -> dict[str, Served]:
    """All models, ready, by name and version, in the order they were named.  Raises `UsageError`."""
    path, models = folder / "version.key", dict[str, Served]()
    create_once(path, secrets.token_bytes(32))
    for name, source in settings.models:
        found = find(source, tracking_uri=settings.tracking_uri, **asdict(settings.naming))
        served = _served(name, source, ready(found), path.read_bytes(), settings)
        models[f"{name}@{served.offer.version}"] = served
    return models


def _served(name: str, source: str, model: Linear | Network, key: bytes, settings: Settings) -> Served:
    noise = settings.output_noise
    try:
        if isinstance(model, Linear):
            return serve_linear(name, model, parameters=settings.parameters, version_key=key, output_noise=noise)
        if settings.parameters == "CKKS_LINEAR_LABELS":
            raise UsageError("a network with --labels; allowed: --labels for linear models of two classes")
        return serve_network(name, model, parameters=settings.network, version_key=key, output_noise=noise)
    except UsageError as error:
        raise UsageError(f"--model {source}: {error}") from None


def _load(folder: Path, settings: Settings) -> tuple[dict[str, Served], dict[str, ServedPart]]:
    """Models and parts of vertical models."""
    taken = {name for name, _ in settings.models}
    parts = load_parts(folder, settings.parts, taken=taken, min_trees=settings.min_trees)
    return load_models(folder, settings), parts


def certificate(folder: Path, hosts: tuple[str, ...]) -> Pair:
    """A new server certificate under the folder's own authority, which is made on first use and stays."""
    held, shown = folder / "authority.key", folder / "authority.pem"
    if not held.exists():
        made = certificates.make_authority("fedseal serve")
        write_atomic(shown, made.certificate, mode=0o644)
        write_atomic(held, made.key)
    return certificates.issue_server(Pair(shown.read_bytes(), held.read_bytes()), list(hosts))


def host_predictions(
    home: Home, settings: Settings, say: Say, *, members: Callable[[], Members] | None = None
) -> None:
    """Serve until SIGTERM or SIGINT; SIGHUP reads the models again.  `members` reads a board, where there is one."""
    try:
        address, _ = host_port(settings.listen)
    except ValueError:
        raise UsageError(f"--listen {settings.listen!r}; allowed: HOST:PORT") from None
    if settings.models:
        check_owner(home)
    folder = private_dir(home.path / "serving")
    identity = Identity.load_or_create(folder, settings.name)
    models, parts = _load(folder, settings)
    clients = {card.name: Client(card, until) for card, until in settings.clients}
    if len(clients) < len(settings.clients):
        raise UsageError("--client: two cards of one name; allowed: one card a client")
    hosts = settings.hosts or (("localhost", "127.0.0.1") if address in ("localhost", "127.0.0.1") else (address,))
    pair = read_pair(*settings.tls) if settings.tls else certificate(folder, hosts)
    quota = Quota(settings.rows_a_day, settings.requests_a_second)
    accounts = Accounts(folder / "accounts.db")
    with standing_of(members, say) as standing, Ledger.open(folder / "ledger.db", identity) as ledger:
        metrics = Metrics(clients)
        door = Door(
            identity, ledger, accounts, clients, quota, capacity=settings.capacity, watcher=metrics, standing=standing
        )
        service, vertical = Prediction(door, models), VerticalPrediction(door, parts)
        handlers = handler(service) | (vertical_handler(vertical) if parts else {})
        server = Server(handlers, settings.listen, pair, capacity=settings.capacity)
        receipts = Receipts(ledger, accounts)
        page = _page(settings, service, vertical, ledger, metrics, pair, server.port, folder)
        try:
            if settings.page:
                page.open(settings.page, say)
            _tell(service, vertical, settings, folder, server.port, say)
            _wait(service, vertical, folder, settings, say)
        finally:
            say("stopping")
            page.stopping = True
            server.stop()
            receipts.close()
            page.close()
            accounts.close()
            say(f"{metrics.rows} rows served, {metrics.refusals} calls refused")


def _page(
    settings: Settings,
    service: Prediction,
    vertical: VerticalPrediction,
    ledger: Ledger,
    metrics: Metrics,
    pair: Pair,
    port: int,
    folder: Path,
) -> Page:
    """The owner's page, not open yet."""
    held, door = held_by(pair.certificate, "certificate"), service.door
    owner = Owner(
        name=settings.name,
        address=f"{settings.listen.rpartition(':')[0]}:{port}",
        hosts=held.hosts,
        authority="" if settings.tls else str((folder / "authority.pem").resolve()),
        certificate_end=held.end,
        fingerprint=door.card.fingerprint,
        ledger=shlex.quote(str((folder / "ledger.db").resolve())),
        capacity=settings.capacity,
    )

    def models() -> list[Model]:
        parts = [Model.of_part(part.offer, len(part.index)) for part in vertical.models.values()]
        return [Model.of(model.offer) for model in service.models.values()] + parts

    def notes() -> list[str]:
        marked = [line.removeprefix("note: ") for line in lines(vertical.models) if line.startswith("note: ")]
        return _notes(service, settings) + marked

    return Page(door, ledger, metrics, owner, models=models, notes=notes)


def _notes(service: Prediction, settings: Settings) -> list[str]:
    """What the owner should know, a sentence each."""
    return [
        f"{model.offer.name} is a network: exact scores of some thousand rows give a narrow one away, whatever the "
        f"cryptography; {settings.rows_a_day:,} rows a day are allowed to each client"
        for model in service.models.values()
        if model.offer.layers and not settings.output_noise
    ] + [
        f"{model.offer.features + 1} exact scores give the weights of {model.offer.name}, whatever the cryptography; "
        f"{settings.rows_a_day:,} rows a day are allowed to each client"
        for model in service.models.values()
        if not (model.offer.layers or model.offer.labels or settings.output_noise)
        and settings.rows_a_day > model.offer.features
    ]


def _tell(
    service: Prediction, vertical: VerticalPrediction, settings: Settings, folder: Path, port: int, say: Say
) -> None:
    for model in service.models.values():
        offer = model.offer
        end = f", network {'-'.join(map(str, offer.layers))}, {offer.parameters}" if offer.layers else ""
        size = f"{offer.features} features, {len(offer.classes)} classes"
        say(f"model {offer.name} version {offer.version}: {size}{end}")
    for note in _notes(service, settings):
        say(f"note: {note}")
    for line in lines(vertical.models):
        say(line)
    host = settings.listen.rpartition(":")[0]
    if settings.tls is None:
        say(f"hand to clients: {folder / 'authority.pem'}")
    count = len(service.models) + len(vertical.models)
    say(f"serving {count} models to {len(settings.clients)} clients on {host}:{port}")


def _wait(service: Prediction, vertical: VerticalPrediction, folder: Path, settings: Settings, say: Say) -> None:
    ended, woken, again = threading.Event(), threading.Event(), threading.Event()

    def end(*_: object) -> None:
        ended.set()
        woken.set()

    def reload(*_: object) -> None:
        again.set()
        woken.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    signal.signal(signal.SIGHUP, reload)
    while not ended.is_set():
        woken.wait()
        woken.clear()
        if again.is_set() and not ended.is_set():
            again.clear()
            try:
                service.models, vertical.models = _load(folder, settings)
                say("models read again")
            except FedsealError as error:
                say(f"models stay as they were: {error}")
