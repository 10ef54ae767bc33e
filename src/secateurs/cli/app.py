"""The command line: one file per verb, registered here."""

from __future__ import annotations

import typer

from secateurs import __version__
from secateurs.cli import apply, compare, doctor, export, ls, plan, profile, prune, report

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

for _verb in (ls, doctor, profile, plan, apply, prune, compare, export, report):
    app.command(_verb.__name__.rpartition(".")[2])(_verb.verb)


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
