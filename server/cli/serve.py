"""`fedseal serve | predict`: encrypted inference, at the model's owner and at the data's."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fl_core.errors import UsageError
from server.cli.options import HomeOption, JsonOption

if TYPE_CHECKING:
    from fl_core.trust.identity import Card


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command(
        epilog="Example: fedseal serve --model runs/hospitals --listen 0.0.0.0:9450 --host models.example.org "
        "--client clinic.card"
    )(serve)
    app.command(
        epilog="Examples: fedseal predict --as clinic --card > clinic.card · "
        "fedseal predict --server models.example.org:9450 --ca authority.pem --as clinic --data rows.csv --id id"
    )(predict)


def serve(
    model: Annotated[
        list[str],
        typer.Option("--model", metavar="[NAME=]SOURCE", help="A logistic model.pt, or an --out folder with one."),
    ],
    client: Annotated[
        list[str],
        typer.Option("--client", metavar="CARD[=YYYY-MM-DD]", help="A client's card file, and when its time ends."),
    ],
    listen: Annotated[str, typer.Option("--listen", metavar="HOST:PORT")] = "127.0.0.1:9450",
    host: Annotated[
        list[str] | None, typer.Option("--host", help="A name or address that clients use; for the certificate.")
    ] = None,
    name: Annotated[str, typer.Option("--as", help="This model owner's name on receipts.")] = "model-owner",
    rows_a_day: Annotated[int, typer.Option("--rows-a-day", help="Of one client.", min=1)] = 100_000,
    requests_a_second: Annotated[float, typer.Option("--requests-a-second", help="Of one client.", min=0.1)] = 50.0,
    many: Annotated[
        bool, typer.Option("--many", help="λ = 40 over 2^20 answers together, not each; scores to 1e-2.")
    ] = False,
    labels: Annotated[bool, typer.Option("--labels", help="Two classes: the label only, no score.")] = False,
    output_noise: Annotated[float, typer.Option("--output-noise", help="Deviation added to each logit.", min=0)] = 0.0,
    home: HomeOption = None,
) -> None:
    """Answer encrypted rows, in the foreground, until SIGTERM or Ctrl-C; SIGHUP reads the models again."""
    from server import environment

    environment.prepare()
    from fl_core.home import Home
    from server.serving.host import Settings, host_predictions

    if many and labels:
        raise UsageError("--many with --labels; allowed: one of them")
    settings = Settings(
        name=name,
        listen=listen,
        hosts=tuple(host or ()),
        models=tuple(_named(text) for text in model),
        clients=tuple(_client(text) for text in client),
        rows_a_day=rows_a_day,
        requests_a_second=requests_a_second,
        parameters="CKKS_LINEAR_MANY" if many else "CKKS_LINEAR_LABELS" if labels else "CKKS_LINEAR",
        output_noise=output_noise,
    )
    host_predictions(Home.open(home), settings, say)


def say(text: str) -> None:
    """A line for the operator, with the time."""
    print(f"{time.strftime('%H:%M:%S')}  {text}", file=sys.stderr, flush=True)


def _named(text: str) -> tuple[str, Path]:
    name, equals, path = text.partition("=")
    source = Path(path if equals else text)
    return (name if equals else source.stem if source.is_file() else source.resolve().name), source


def _client(text: str) -> tuple[Card, float]:
    """A card file and an end, seconds since 1970, 0 for none."""
    from datetime import UTC, datetime

    from fl_core.errors import IntegrityError
    from fl_core.trust.identity import Card

    path, _, day = text.partition("=")
    try:
        until = datetime.strptime(day, "%Y-%m-%d").replace(tzinfo=UTC).timestamp() if day else 0.0
    except ValueError:
        raise UsageError(f"--client {text}: {day!r} is no day; allowed: YYYY-MM-DD") from None
    try:
        return Card.from_dict(json.loads(Path(path).read_bytes())), until
    except (OSError, ValueError, IntegrityError, RecursionError):
        raise UsageError(f"--client {path}: no card there; allowed: what fedseal predict --card prints") from None


def predict(
    server: Annotated[str, typer.Option("--server", metavar="HOST:PORT")] = "",
    ca: Annotated[
        Path | None, typer.Option("--ca", metavar="FILE", help="The authority of the server's certificate, PEM.")
    ] = None,
    model: Annotated[str, typer.Option("--model", help="Where several are served.")] = "",
    data: Annotated[Path | None, typer.Option("--data", metavar="FILE", help="csv, csv.gz or parquet.")] = None,
    id_columns: Annotated[list[str] | None, typer.Option("--id", help="A column that names a row.")] = None,
    without: Annotated[list[str] | None, typer.Option("--without", help="A column that is no feature.")] = None,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The scores.")] = Path("scores.csv"),
    name: Annotated[str, typer.Option("--as", help="This data owner's name; its key is in the home.")] = "client",
    card: Annotated[bool, typer.Option("--card", help="Print this client's card for the model's owner.")] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Score rows with a model that another party holds; it sees none of them."""
    from server import environment

    environment.prepare()
    from fl_core.home import Home
    from fl_core.trust.identity import Identity

    folder = Home.open(home).party(name)
    identity = Identity.load_or_create(folder, name)
    if card:
        print(json.dumps(identity.card.to_dict()))
        return
    if not server or ca is None or data is None:
        raise UsageError("predict: one of --server, --ca, --data is missing")
    try:
        authority = ca.read_bytes()
    except OSError as error:
        raise UsageError(f"--ca {ca}: cannot be read ({error.strerror})") from None
    from clients.predict import PredictClient
    from clients.predict_file import predict_file

    with PredictClient(server, authority=authority, identity=identity, folder=folder / "predict") as client:
        told = predict_file(client, data, model=model, id_columns=id_columns or [], without=without or [], out=out)
    print(json.dumps(told) if as_json else f"{told['rows']} rows scored by {told['model']}: {out}")
