"""`fedseal serve | predict`: encrypted inference, at the model's owner and at the data's."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fl_core.errors import UsageError
from server.cli.options import HomeOption, JsonOption

if TYPE_CHECKING:
    from collections.abc import Callable

    from fl_core.protocols.prediction.online import RowsById
    from fl_core.trust.identity import Card

MIN_TREES = 20  # as `fl_core.job` has it, which takes longer to import than help may


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command(
        epilog="Examples: fedseal serve --model runs/hospitals --listen 0.0.0.0:9450 --host models.example.org "
        "--client clinic.card · fedseal serve --model digits=models:/digits/3 --client clinic.card · "
        "fedseal serve --model network.pt --convert rows.csv --out network.npz"
    )(serve)
    app.command(
        epilog="Examples: fedseal predict --as clinic --card > clinic.card · "
        "fedseal predict --server models.example.org:9450 --ca authority.pem --as clinic --data rows.csv --id id"
    )(predict)


def serve(
    client: Annotated[
        list[str] | None,
        typer.Option("--client", metavar="CARD[=YYYY-MM-DD]", help="A client's card file, and when its time ends."),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            metavar="[NAME=]SOURCE",
            help="model.pt or --out folder, runs:/… or models:/… of MLflow, a scikit-learn pipeline, a torch network: "
            "logistic, or one hidden layer with x².",
        ),
    ] = None,
    convert: Annotated[
        Path | None,
        typer.Option("--convert", metavar="ROWS", help="Fit x² to the model's activations on these rows; then end."),
    ] = None,
    label: Annotated[str, typer.Option("--label", help="With --convert: the column of classes, to measure by.")] = "",
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="With --convert: what to serve then.")] = Path(
        "network.npz"
    ),
    features: Annotated[
        str, typer.Option("--features", metavar="A,B,…", help="Names, in order, for a model without.")
    ] = "",
    classes: Annotated[str, typer.Option("--classes", metavar="A,B,…", help="Names, for a model without.")] = "",
    activation: Annotated[
        str, typer.Option("--activation", help="relu, tanh, sigmoid or square, for a torch state dict.")
    ] = "",
    vertical: Annotated[
        list[str] | None,
        typer.Option(
            "--vertical",
            metavar="[NAME=]MODELFOLDER=DATAFILE",
            help="Your part of a vertical model of two, and your rows by id.",
        ),
    ] = None,
    vertical_id: Annotated[
        list[str] | None, typer.Option("--vertical-id", metavar="COLUMN", help="A column that names a row there.")
    ] = None,
    min_trees: Annotated[
        int, typer.Option("--min-trees", help="Vertical trees a score; fewer show a row's paths.", min=1)
    ] = MIN_TREES,
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
    flooding: Annotated[
        int, typer.Option("--lambda", metavar="20|40", help="Of networks: 40 hides more and takes twice as long.")
    ] = 20,
    labels: Annotated[bool, typer.Option("--labels", help="Two classes: the label only, no score.")] = False,
    output_noise: Annotated[float, typer.Option("--output-noise", help="Deviation added to each logit.", min=0)] = 0.0,
    capacity: Annotated[
        int | None, typer.Option("--capacity", help="Blocks at a time; by this machine's cores where not given.", min=1)
    ] = None,
    page: Annotated[
        str, typer.Option("--page", metavar="[HOST:]PORT", help="Your page and metrics; without HOST on loopback.")
    ] = "",
    tls_cert: Annotated[
        Path | None, typer.Option("--tls-cert", metavar="FILE", help="Your own certificate, PEM, instead of ours.")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option("--tls-key", metavar="FILE", help="Its key, PEM.")] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Answer encrypted rows, in the foreground, until SIGTERM or Ctrl-C; SIGHUP reads the models again."""
    from server import environment

    environment.prepare()
    from fl_core.home import Home

    opened, naming = Home.open(home), (_words(features), _words(classes), activation)
    tracking = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{opened.path.resolve() / 'mlflow.db'}"
    if convert is not None:
        if len(model or ()) != 1:
            raise UsageError("--convert: one --model is converted at a time")
        return _convert(_named((model or [""])[0])[1], tracking, naming, convert, label, out, as_json)
    from server.cli.serve_members import members_reader
    from server.serving.door import CAPACITY
    from server.serving.host import Naming, Settings, host_predictions
    from server.web.site import page_address

    if not client:
        raise UsageError("serve: no --client; allowed: a card for each that may ask (fedseal predict --card)")
    if flooding not in (20, 40):
        raise UsageError(f"--lambda {flooding}; allowed: 20, 40")
    if not model and not vertical:
        raise UsageError("serve: neither --model nor --vertical; allowed: one or more of them")
    if bool(vertical) != bool(vertical_id):
        raise UsageError("--vertical and --vertical-id; allowed: both or neither")
    if many and labels:
        raise UsageError("--many with --labels; allowed: one of them")
    if (tls_cert is None) != (tls_key is None):
        raise UsageError("--tls-cert and --tls-key; allowed: both or neither")
    if tls_cert and host:
        raise UsageError("--host with --tls-cert; allowed: one of them, a certificate has its names")
    settings = Settings(
        name=name,
        listen=listen,
        hosts=tuple(host or ()),
        models=tuple(_named(text) for text in model or ()),
        clients=tuple(_client(text) for text in client),
        rows_a_day=rows_a_day,
        requests_a_second=requests_a_second,
        naming=Naming(*naming),
        tracking_uri=tracking,
        network="CKKS_NETWORK" if flooding == 20 else "CKKS_NETWORK_40",
        parameters="CKKS_LINEAR_MANY" if many else "CKKS_LINEAR_LABELS" if labels else "CKKS_LINEAR",
        output_noise=output_noise,
        capacity=capacity or CAPACITY,
        tls=(tls_cert, tls_key) if tls_cert and tls_key else None,
        page=page_address(page) if page else None,
        parts=tuple(_vertical(text, tuple(vertical_id or ())) for text in vertical or ()),
        min_trees=min_trees,
    )
    host_predictions(opened, settings, say, members=members_reader(opened))
    return None


def say(text: str) -> None:
    """A line for the operator, with the time; whoever closed the pipe must not keep receipts from the ledger."""
    with contextlib.suppress(BrokenPipeError):
        print(f"{time.strftime('%H:%M:%S')}  {text}", file=sys.stderr, flush=True)


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",")) if text else ()


def _named(text: str) -> tuple[str, str]:
    """A name and a source; without a name the file's, the folder's, or the model's in MLflow."""
    name, equals, source = text.partition("=")
    source = source if equals else text
    if equals:
        return name, source
    if source.startswith(("runs:/", "models:/")):
        return source.partition(":/")[2].strip("/").split("/")[-1 if source.startswith("runs:/") else 0], source
    path = Path(source)
    return path.stem if path.is_file() else path.resolve().name, source


def _convert(
    source: str, tracking: str, naming: tuple[Any, ...], rows: Path, label: str, out: Path, as_json: bool
) -> None:
    """Convert a model, say what it costs, and write it."""
    from dataclasses import asdict

    from clients.predict.file import read_features
    from server.serving.convert import convert
    from server.serving.sources import find, save_converted

    found = find(source, tracking_uri=tracking, features=naming[0], classes=naming[1], activation=naming[2])
    x, texts = read_features(rows, found.features, [label] if label else [], where="--convert")
    labels = [str(value) for value in texts.column(label).to_pylist()] if label else None
    say(f"fitting to {len(x)} rows")
    made, cost = convert(found, x, labels)
    save_converted(made, out)
    if as_json:
        print(json.dumps({**asdict(cost), "out": str(out)}))
        return
    print(f"{out}: the same class as before for {cost.agreement:.1%} of {cost.rows} rows kept apart")
    if cost.accuracy_before is not None and cost.accuracy_after is not None:
        print(f"accuracy there: {cost.accuracy_before:.4f} before, {cost.accuracy_after:.4f} after")
    print(f"probabilities differ by {cost.mean_difference:.4f} on average, {cost.max_difference:.4f} at most")


def _vertical(text: str, id_columns: tuple[str, ...]) -> tuple[str, Callable[[], RowsById]]:
    """A name, and what reads the part and its table."""
    words = text.split("=")
    if len(words) not in (2, 3) or not all(words):
        raise UsageError(f"--vertical {text}; allowed: [NAME=]MODELFOLDER=DATAFILE")
    folder, data = Path(words[-2]), Path(words[-1])

    def read() -> RowsById:
        from clients.predict.vertical_table import read_served

        return read_served(folder, data, id_columns)

    return words[0] if len(words) == 3 else data.name.partition(".")[0], read


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
    vertical: Annotated[
        Path | None, typer.Option("--vertical", metavar="MODELFOLDER", help="Your part of a vertical model: by id.")
    ] = None,
    ids: Annotated[str, typer.Option("--ids", metavar="ID,ID", help="With --vertical: these rows only.")] = "",
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
    state = folder / "predict"
    if vertical is not None:
        from clients.predict.vertical import VerticalClient
        from clients.predict.vertical_file import vertical_predict_file

        with VerticalClient(
            server, authority=authority, identity=identity, folder=state, model=vertical, name=model
        ) as asker:
            chosen = [one for one in ids.split(",") if one]
            told = vertical_predict_file(asker, data, id_columns=id_columns or [], ids=chosen, out=out)
        text = f"{told['rows']} of {told['asked']} rows scored by {told['model']}: {out}"
        print(json.dumps(told) if as_json else text)
        return
    if ids:
        raise UsageError("--ids without --vertical; allowed: both")
    from clients.predict import PredictClient
    from clients.predict.file import predict_file

    with PredictClient(server, authority=authority, identity=identity, folder=state) as client:
        told = predict_file(client, data, model=model, id_columns=id_columns or [], without=without or [], out=out)
    print(json.dumps(told) if as_json else f"{told['rows']} rows scored by {told['model']}: {out}")
