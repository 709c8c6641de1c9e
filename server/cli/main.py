"""`fedseal`: the command line.  Commands live in modules of their own and import their weight when they run."""

from __future__ import annotations

import sys

import typer

from fl_core.errors import FedsealError
from fl_core.text import printable
from server.cli import audit, backup, coordinator, data, grant, identity, jobs, node, owner, serve, witness

app = typer.Typer(
    name="fedseal",
    help="Learn from each other's data without showing it, and prove it afterwards.",
    epilog="Example: fedseal run experiments/demo.toml && fedseal audit verify",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    add_completion=False,
)
jobs.register(app)
serve.register(app)
backup.register(app)
owner.register(app)
app.add_typer(audit.app, name="audit")
app.add_typer(coordinator.app, name="coordinator")
app.add_typer(data.app, name="data")
app.add_typer(grant.app, name="grant")
app.add_typer(identity.app, name="identity")
app.add_typer(node.app, name="node")
app.add_typer(witness.app, name="witness")


def main() -> None:
    """Entry point: errors become one line on stderr and the exit code of their class."""
    try:
        app()
    except FedsealError as error:
        print(f"fedseal: {printable(' '.join(str(error).splitlines()))}", file=sys.stderr)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        sys.exit(1)


if __name__ == "__main__":
    main()
