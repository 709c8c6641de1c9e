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
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fl_core.errors import FedsealError, UsageError
from fl_core.files import private_dir, write_atomic
from fl_core.home import Home
from fl_core.trust import certificates
from fl_core.trust.certificates import Pair
from fl_core.trust.federation import host_port
from fl_core.trust.identity import Card, Identity
from fl_core.trust.ledger import Ledger
from fl_core.trust.once import create_once
from server.predict import Prediction, Server, handler
from server.serving.accounts import Accounts, Quota
from server.serving.door import Client, Counts, Door
from server.serving.model import Served, load_linear, serve_linear
from server.serving.receipts import Receipts

Say = Callable[[str], None]


@dataclass(frozen=True)
class Settings:
    """What `fedseal serve` was told; `models` are (name, source), `clients` (card, end in seconds since 1970 or 0)."""

    name: str
    listen: str
    hosts: tuple[str, ...]
    models: tuple[tuple[str, Path], ...]
    clients: tuple[tuple[Card, float], ...]
    rows_a_day: int
    requests_a_second: float
    parameters: str
    output_noise: float


def load_models(folder: Path, settings: Settings) -> dict[str, Served]:
    """All models, ready.  Raises `UsageError`."""
    path = folder / "version.key"
    create_once(path, secrets.token_bytes(32))
    key, models = path.read_bytes(), {}
    for name, source in settings.models:
        if name in models:
            raise UsageError(f"--model {name}: two models of this name; allowed: --model NAME=SOURCE")
        linear = load_linear(source)
        models[name] = serve_linear(
            name, linear, parameters=settings.parameters, version_key=key, output_noise=settings.output_noise
        )
    return models


def certificate(folder: Path, hosts: tuple[str, ...]) -> Pair:
    """A new server certificate under the folder's own authority, which is made on first use and stays."""
    held, shown = folder / "authority.key", folder / "authority.pem"
    if not held.exists():
        made = certificates.make_authority("fedseal serve")
        write_atomic(shown, made.certificate, mode=0o644)
        write_atomic(held, made.key)
    return certificates.issue_server(Pair(shown.read_bytes(), held.read_bytes()), list(hosts))


def host_predictions(home: Home, settings: Settings, say: Say) -> None:
    """Serve until SIGTERM or SIGINT; SIGHUP reads the models again."""
    try:
        address, _ = host_port(settings.listen)
    except ValueError:
        raise UsageError(f"--listen {settings.listen!r}; allowed: HOST:PORT") from None
    folder = private_dir(home.path / "serving")
    identity = Identity.load_or_create(folder, settings.name)
    models = load_models(folder, settings)
    clients = {card.name: Client(card, until) for card, until in settings.clients}
    if len(clients) < len(settings.clients):
        raise UsageError("--client: two cards of one name; allowed: one card a client")
    hosts = settings.hosts or (("localhost", "127.0.0.1") if address in ("localhost", "127.0.0.1") else (address,))
    pair = certificate(folder, hosts)
    quota = Quota(settings.rows_a_day, settings.requests_a_second)
    accounts = Accounts(folder / "accounts.db")
    with Ledger.open(folder / "ledger.db", identity) as ledger:
        counts = Counts()
        service = Prediction(Door(identity, ledger, accounts, clients, quota, watcher=counts), models)
        server = Server(handler(service), settings.listen, pair)
        receipts = Receipts(ledger, accounts)
        try:
            _tell(service, settings, folder, server.port, say)
            _wait(service, folder, settings, say)
        finally:
            say("stopping")
            server.stop()
            receipts.close()
            accounts.close()
            say(f"{counts.rows} rows served, {counts.refusals} calls refused")


def _tell(service: Prediction, settings: Settings, folder: Path, port: int, say: Say) -> None:
    for model in service.models.values():
        offer = model.offer
        say(f"model {offer.name} version {offer.version}: {offer.features} features, {len(offer.classes)} classes")
        if not offer.labels and not settings.output_noise and settings.rows_a_day > offer.features:
            text = f"{offer.features + 1} exact scores give the weights of {offer.name}, whatever the cryptography"
            say(f"note: {text}; {settings.rows_a_day} rows a day are allowed to each client")
    host = settings.listen.rpartition(":")[0]
    say(f"hand to clients: {folder / 'authority.pem'}")
    say(f"serving {len(service.models)} models to {len(settings.clients)} clients on {host}:{port}")


def _wait(service: Prediction, folder: Path, settings: Settings, say: Say) -> None:
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
                service.models = load_models(folder, settings)
                say("models read again")
            except FedsealError as error:
                say(f"models stay as they were: {error}")
