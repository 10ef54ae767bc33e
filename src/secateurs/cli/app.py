"""The command line: one file per verb, registered here."""

from __future__ import annotations

import typer

from secateurs import __version__
from secateurs.cli.apply import verb as apply
from secateurs.cli.compare import verb as compare
from secateurs.cli.doctor import verb as doctor
from secateurs.cli.elements import verb as elements
from secateurs.cli.export import verb as export
from secateurs.cli.front import verb as front
from secateurs.cli.ls import verb as ls
from secateurs.cli.plan import verb as plan
from secateurs.cli.profile import verb as profile
from secateurs.cli.prune import verb as prune
from secateurs.cli.report import verb as report
from secateurs.cli.store import app as store

HELP = """Prune a trained PyTorch network to a latency budget, measured on the runtime it will run on.

Start with 'secateurs doctor MODEL' (what can go) or 'secateurs prune MODEL --data DATA --latency 60% -o RUN' (the
whole job). Exit codes: 0 done, 1 the input is wrong, 2 usage, 3 the budget cannot be reached, 130 interrupted.
"""

app = typer.Typer(
    name="secateurs",
    help=HELP,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.command("ls")(ls)
app.command("doctor")(doctor)
app.command("profile")(profile)
app.command("elements")(elements)
app.command("plan")(plan)
app.command("apply")(apply)
app.command("prune")(prune)
app.command("front")(front)
app.command("compare")(compare)
app.command("export")(export)
app.command("report")(report)
app.add_typer(store, name="store")


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"secateurs {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(
        False, "--version", callback=_show_version, is_eager=True, help="Print the version and exit."
    ),
) -> None:
    """Options of the command itself."""


def main() -> None:
    """Run the command line and exit with its code."""
    app()


if __name__ == "__main__":
    main()
