"""`fedseal witness serve | key | log | ask`: witnesses for others' logs, and a log's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fl_core.errors import UsageError
from server.cli.options import HomeOption, JsonOption

if TYPE_CHECKING:
    from fl_core.trust.identity import Identity

app = typer.Typer(
    help="Co-sign others' ledgers, so that nobody can be shown two histories; ask others to co-sign this one.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
NameOption = Annotated[str, typer.Option("--as", help="The witness's name on its co-signatures.")]


@app.command(
    epilog="Example: fedseal witness serve --as notary --log fedseal/012…def+1a2b3c4d+AX… --listen 0.0.0.0:9460"
)
def serve(
    log: Annotated[list[str], typer.Option("--log", metavar="KEY", help="What fedseal witness log prints there.")],
    name: NameOption = "witness",
    listen: Annotated[str, typer.Option("--listen", metavar="HOST:PORT")] = "127.0.0.1:9460",
    tls_cert: Annotated[Path | None, typer.Option("--tls-cert", metavar="FILE", help="PEM; else plain HTTP.")] = None,
    tls_key: Annotated[Path | None, typer.Option("--tls-key", metavar="FILE")] = None,
    home: HomeOption = None,
) -> None:
    """Co-sign checkpoints of logs (C2SP tlog-witness), in the foreground, until SIGTERM or Ctrl-C."""
    import uvicorn

    from fl_core.trust.outside import LOG_KEY, VerifierKey
    from server.cli.serve import say
    from server.web.site import page_address
    from server.witness import OutsideWitness, application

    if (tls_cert is None) != (tls_key is None):
        raise UsageError("--tls-cert and --tls-key: one without the other; allowed: both, or none")
    host, port = page_address(listen, "--listen")
    keys = [VerifierKey.parse(text, algorithm=LOG_KEY) for text in log]
    folder, identity = _witness(home, name)
    witness = OutsideWitness(folder, identity, {key.name: key for key in keys})
    say(f"witness {witness.key.text}")
    say(f"co-signing {len(keys)} logs at {'https' if tls_cert else 'http'}://{host}:{port}/add-checkpoint")
    try:
        uvicorn.run(
            application(witness), host=host, port=port, log_level="warning", ws="none", lifespan="off",
            server_header=False, access_log=False, limit_concurrency=64, timeout_keep_alive=30,
            ssl_certfile=str(tls_cert) if tls_cert else None, ssl_keyfile=str(tls_key) if tls_key else None,
        )  # fmt: skip
    except (OSError, SystemExit):
        raise UsageError(f"witness serve: {listen} cannot be listened on, or no key and certificate there") from None


@app.command(epilog="Example: fedseal witness key --as notary")
def key(name: NameOption = "witness", home: HomeOption = None) -> None:
    """Print this witness's verifier key, for the policies of those who rely on it."""
    from fl_core.trust.outside import WITNESS_KEY, VerifierKey

    print(VerifierKey.of(_witness(home, name)[1], algorithm=WITNESS_KEY).text)


@app.command(epilog="Example: fedseal witness log > log.key")
def log(home: HomeOption = None) -> None:
    """Print the verifier key of this home's ledger, for its witnesses; a home without a ledger gets one."""
    from fl_core.home import Home
    from fl_core.messages import COORDINATOR
    from fl_core.trust.identity import Identity
    from fl_core.trust.ledger import Ledger
    from fl_core.trust.outside import LOG_KEY, VerifierKey

    place = Home.open(home)
    if not place.ledger.exists():
        Ledger.open(place.ledger, Identity.load_or_create(place.coordinator, COORDINATOR)).close()
    with Ledger.open(place.ledger) as opened:
        print(VerifierKey(opened.log, LOG_KEY, opened.coordinator.ed25519).text)


@app.command(epilog="Example: fedseal witness ask --policy witnesses.json")
def ask(
    policy: Annotated[Path | None, typer.Option("--policy", metavar="FILE", help="Instead of witnesses.json.")] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Have the newest checkpoint co-signed by the policy's witnesses.  Exit: 0 by enough of them, 4 by fewer."""
    from fl_core.home import Home
    from fl_core.trust.outside import Policy
    from server.witness import ask_all, open_for_witnesses

    opened = Home.open(home)
    path = policy or opened.witnesses
    found = Policy.load(path)
    with open_for_witnesses(opened) as ledger:
        missing = ask_all(ledger, found)
        size = ledger.checkpoint_sizes()[-1]
        held = ledger.outside_cosignatures(size)
    signed = [o.key.name for o in found.witnesses if o.key.text in held]
    told = {"size": size, "signed": signed, "quorum": found.quorum, "missing": missing}
    if as_json:
        print(json.dumps(told))
    else:
        print(f"{len(signed)} of {len(found.witnesses)} witnesses co-signed the first {size} entries")
        for why in missing.values():
            print(why)
    raise typer.Exit(0 if len(signed) >= found.quorum else 4)


def _witness(home: Path | None, name: str) -> tuple[Path, Identity]:
    from fl_core.home import Home
    from fl_core.trust.identity import Identity

    folder = Home.open(home).path / "witness"
    return folder, Identity.load_or_create(folder, name)
