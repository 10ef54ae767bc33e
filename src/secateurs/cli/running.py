"""How every verb runs: results on stdout, talk on stderr, errors as one paragraph, exit codes 0, 1, 2, 3 and 130."""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import os
import shlex
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ParamSpec

import typer
from rich.console import Console

from secateurs.errors import NO_EXIT, SecateursError, interrupted, plain, why
from secateurs.report.terminal import terminal, wide

P = ParamSpec("P")
BUDGET_MISSED, INTERRUPTED = 3, 130
_DEBUG = "SECATEURS_DEBUG"

_result_stream = sys.stdout
_pressed: list[int] = []
"""Ctrl-C since the verb began."""


def talk() -> Console:
    """The console for everything that is not the result: stderr."""
    return terminal(stderr=True, soft_wrap=not sys.stderr.isatty())


def emit(payload: Mapping[str, Any] | list[Any], show: Callable[[Console], None], *, as_json: bool) -> None:
    """Write the result to stdout: ``payload`` as JSON for machines, or what ``show`` prints for people."""
    if as_json:
        print(json.dumps(payload, indent=1), file=_result_stream, flush=True)
        return
    console = terminal(_result_stream)
    show(console if console.is_terminal else wide(console))


def guarded(verb: Callable[P, None]) -> Callable[P, None]:
    """``verb`` with stdout reserved for :func:`emit` and every failure turned into a message and an exit code."""

    @functools.wraps(verb)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        global _result_stream
        _result_stream = sys.stdout
        try:
            with contextlib.redirect_stdout(sys.stderr), interruptible():
                verb(*args, **kwargs)
        except (typer.Exit, typer.BadParameter):
            raise
        except BrokenPipeError:
            _stop_writing()
            raise typer.Exit(1) from None
        except SystemExit as error:
            complain(f"Code of the network or of the data ended the program (sys.exit({error.code!r})). {NO_EXIT}")
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            complain("Interrupted.")
            raise typer.Exit(INTERRUPTED) from None
        except Exception as error:
            if os.environ.get(_DEBUG):
                traceback.print_exc()
            complain(explain(error))
            raise typer.Exit(error.exit_code if isinstance(error, SecateursError) else 1) from None

    return run


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C stays Ctrl-C, also where a library makes another error of it, or swallows it and fails later."""

    def press(number: int, frame: Any) -> None:
        _pressed.append(number)
        raise KeyboardInterrupt

    mine = threading.current_thread() is threading.main_thread()
    mine = mine and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if mine:
        signal.signal(signal.SIGINT, press)
    try:
        yield
    except typer.Exit:
        raise
    except (Exception, SystemExit) as error:
        if _pressed or interrupted(error):
            raise KeyboardInterrupt from error
        raise
    finally:
        if mine:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            _pressed.clear()


def complain(message: str) -> None:
    """One paragraph on stderr."""
    print(f"secateurs: {' '.join(plain(message).split())}", file=sys.stderr, flush=True)


def explain(error: Exception) -> str:
    """The paragraph for an error: its own message where it was raised on purpose, else what failed and what to do."""
    if isinstance(error, SecateursError):
        return str(error)
    if isinstance(error, OSError):
        where = f" ({error.filename})" if error.filename else ""
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return (
                f"The disk is full{where}: nothing half-written was left under a final name. Free space and try again."
            )
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            return f"No permission{where}: {error.strerror}. Choose another folder or change its permissions."
        return f"{error.strerror or error}{where}. Check the path."
    if isinstance(error, MemoryError):
        return "Out of memory. Use a smaller --batch, or fewer calibration images."
    place = traceback.extract_tb(error.__traceback__)[-1]
    written = _report(error)
    more = f"Set {_DEBUG}=1 for the traceback" if written is None else f"The traceback is in {written}"
    return (
        f"This is a bug in secateurs: {why(error)} (in {os.path.basename(place.filename)}:{place.lineno}). "
        f"{more}: report it with that."
    )


def _report(error: Exception) -> str | None:
    """A file with the command, versions and the traceback; None where none can be written."""
    from secateurs.provenance import versions

    lines = [shlex.join(sys.argv), json.dumps(versions()), *traceback.format_exception(error)]
    with contextlib.suppress(OSError):
        handle, path = tempfile.mkstemp(prefix="secateurs-report-", suffix=".txt")
        with os.fdopen(handle, "w", encoding="utf-8", errors="replace") as file:
            file.write("\n".join(lines))
        return path
    return None


def _stop_writing() -> None:
    """Point stdout at nothing, so that the interpreter's own flush at exit does not fail again."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
