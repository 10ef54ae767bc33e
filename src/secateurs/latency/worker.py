"""The process that runs one candidate: reads JSON lines on stdin, answers JSON lines on stdout.

Self-contained on purpose: it is started by file path, imports nothing of secateurs (so it starts fast and loads no
torch) and can be copied to another machine together with one engine file. Usage: ``python worker.py ENGINE.py``.

An engine file defines ``describe() -> dict`` and ``load(path: str, settings: dict) -> session``, where a session has
``run()`` and, where the runtime has a profiler, ``profile() -> dict`` (ends profiling and returns what it saw). Where
the device has a clock of its own, ``timed() -> float`` is a run with its time in ms, and the engine's
``peak_bytes() -> int`` tells the device's memory. ``infer(arrays) -> arrays``, where a session has it, gives the
outputs for inputs, each array as an object of ``dtype``, ``shape`` and ``data`` in base64.

Requests: ``load`` (key, file, settings), ``run`` (keys, rounds, runs, skip), ``infer`` (key, arrays),
``profile`` (key), ``drop`` (keys), ``put`` (name, data), ``remove`` (name), ``peak``, ``lock``, ``unlock``, ``quit``.
Every answer is one object; a failed request answers ``{"error": text}``.
"""

from __future__ import annotations

import base64
import contextlib
import gc
import importlib.util
import json
import math
import os
import queue
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import IO, Any

FEW_THREADS = 8
"""So many are allowed anywhere, to see what more threads than processors do."""


ORPHANED_S = 5.0
"""So long what is worked on may go on when nobody is there any more."""


def peak_bytes() -> int:
    """Largest resident memory of this process so far, 0 where the system does not tell."""
    # Linux counts what the parent held when it started us into ru_maxrss; VmHWM is ours alone.
    with contextlib.suppress(OSError), open("/proc/self/status", encoding="ascii", errors="replace") as file:
        for line in file:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


@contextlib.contextmanager
def raised_priority() -> Iterator[None]:
    """A larger share of the processor for a while, so that other programs disturb less; needs rights, else nothing."""
    before = os.getpriority(os.PRIO_PROCESS, 0) if hasattr(os, "getpriority") else 0
    _prefer(-10, before - 10)
    try:
        yield
    finally:
        _prefer(0, before)


def _prefer(session: int, nice: int) -> None:
    """Set how nice this process is, as a session and with all its threads; each has its own figure on Linux."""
    with contextlib.suppress(OSError), open("/proc/self/autogroup", "w", encoding="ascii") as file:
        file.write(str(session))
    threads = [0]
    with contextlib.suppress(OSError, ValueError):
        threads = [int(name) for name in os.listdir("/proc/self/task")]
    for thread in threads:
        with contextlib.suppress(OSError, AttributeError):
            os.setpriority(os.PRIO_PROCESS, thread, nice)


def die_with_parent() -> None:
    """Be killed when whoever started this process is gone (Linux; elsewhere the end of stdin tells)."""
    if sys.platform != "linux":
        return
    with contextlib.suppress(Exception):
        import ctypes

        ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG


def watched_lines(stream: IO[str], gone: Callable[[], None]) -> Iterator[str]:
    """Lines of a stream up to its end. A thread reads them, so that the end is seen while a request is worked on: then
    nobody is left to answer; where that goes on for a while, ``gone`` tidies up and the process ends."""
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def listen() -> None:
        for line in stream:
            lines.put(line)
        lines.put(None)
        time.sleep(ORPHANED_S)
        gone()
        os._exit(1)

    threading.Thread(target=listen, daemon=True).start()
    while (line := lines.get()) is not None:
        yield line


def set_limit(seconds: float) -> None:
    """End this process if it is still running after so many seconds (0: never).

    Who asked gives up earlier; this is for runtimes that hang when nobody is left to end them, with the lock in hand.
    """
    if hasattr(signal, "alarm"):
        signal.alarm(math.ceil(seconds))


def lock_path() -> str:
    """This machine's measurement lock: ``$SECATEURS_LOCK`` or one name in the system's folder for temporary files."""
    return os.environ.get("SECATEURS_LOCK") or os.path.join(tempfile.gettempdir(), "secateurs-measure.lock")


def open_lock(path: str) -> IO[bytes]:
    """The lock file, made if need be so that every user may open it; where somebody put a link, it is an error."""
    with contextlib.suppress(OSError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666))
        os.chmod(path, 0o666)
    writable = os.access(path, os.W_OK)
    flags = (os.O_RDWR if writable else os.O_RDONLY) | getattr(os, "O_NOFOLLOW", 0)
    return os.fdopen(os.open(path, flags), "r+b" if writable else "rb")


def try_lock(file: IO[bytes]) -> bool:
    """Whether the lock is ours now; closing the file, or the end of the process, gives it back."""
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        except OSError:
            return False
        return True
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def require_threads(wanted: int) -> None:
    """Nothing, if this device has so many processors; more threads than that only wait for each other."""
    there = os.cpu_count() or 1
    if wanted > max(there, FEW_THREADS):
        raise ValueError(f"{wanted} threads are asked for, and this device has {there} processors")


class Host:
    """Holds the loaded sessions and answers requests."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine
        self.sessions: dict[str, Any] = {}
        self.lock: IO[bytes] | None = None
        self._folder: str | None = None

    @property
    def folder(self) -> str:
        """Where files that were sent lie; made when the first one comes."""
        if self._folder is None:
            self._folder = tempfile.mkdtemp(prefix="secateurs-worker-")
        return self._folder

    def close(self) -> None:
        """Remove what was sent."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """The answer to one request; raises what the runtime raises."""
        return dict(getattr(self, "do_" + str(request["do"]))(request))

    def do_load(self, request: dict[str, Any]) -> dict[str, Any]:
        path = request["file"]
        if not os.path.isabs(path):
            path = os.path.join(self.folder, path)
        start = time.perf_counter()
        require_threads(request["settings"].get("threads", 1))
        session = self.engine.load(path, request["settings"])
        loaded = time.perf_counter()
        session.run()
        first = time.perf_counter()
        self.sessions[request["key"]] = session
        return {"load_ms": (loaded - start) * 1e3, "first_ms": (first - loaded) * 1e3}

    def do_run(self, request: dict[str, Any]) -> dict[str, Any]:
        keys, runs, skip = request["keys"], request["runs"], request.get("skip", 0)
        times: dict[str, list[float]] = {key: [] for key in keys}
        with raised_priority():
            wall_start, cpu_start = time.perf_counter_ns(), time.process_time_ns()
            for _ in range(request.get("rounds", 1)):
                for key in keys:
                    session = self.sessions[key]
                    for _ in range(skip):
                        session.run()
                    times[key] += _timed_runs(session, runs)
            wall_end, cpu_end = time.perf_counter_ns(), time.process_time_ns()
        wall, cpu = wall_end - wall_start, cpu_end - cpu_start
        if any(hasattr(self.sessions[key], "timed") for key in keys):
            # Waiting for another device is no sign of a busy processor.
            cpu = wall
        return {"times_ms": times, "wall_ms": wall / 1e6, "cpu_ms": cpu / 1e6}

    def do_infer(self, request: dict[str, Any]) -> dict[str, Any]:
        return {"arrays": self.sessions[request["key"]].infer(request["arrays"])}

    def do_profile(self, request: dict[str, Any]) -> dict[str, Any]:
        return {"profile": self.sessions[request["key"]].profile()}

    def do_drop(self, request: dict[str, Any]) -> dict[str, Any]:
        for key in request["keys"]:
            self.sessions.pop(key, None)
        gc.collect()
        return {}

    def do_put(self, request: dict[str, Any]) -> dict[str, Any]:
        path = os.path.join(self.folder, os.path.basename(request["name"]))
        with open(path, "ab" if request.get("more") else "wb") as file:
            file.write(base64.b64decode(request["data"]))
        return {"file": path}

    def do_remove(self, request: dict[str, Any]) -> dict[str, Any]:
        with contextlib.suppress(FileNotFoundError):
            os.remove(os.path.join(self.folder, os.path.basename(request["name"])))
        return {}

    def do_peak(self, request: dict[str, Any]) -> dict[str, Any]:
        return {"bytes": getattr(self.engine, "peak_bytes", peak_bytes)()}

    def do_lock(self, request: dict[str, Any]) -> dict[str, Any]:
        if self.lock is None:
            self.lock = open_lock(lock_path())
        return {"held": try_lock(self.lock)}

    def do_unlock(self, request: dict[str, Any]) -> dict[str, Any]:
        if self.lock is not None:
            self.lock.close()
            self.lock = None
        return {}


def _timed_runs(session: Any, runs: int) -> list[float]:
    """Times of so many runs in ms."""
    if hasattr(session, "timed"):
        return [session.timed() for _ in range(runs)]
    run, clock, seen = session.run, time.perf_counter_ns, []
    for _ in range(runs):
        before = clock()
        run()
        seen.append((clock() - before) / 1e6)
    return seen


def serve(engine_file: str) -> None:
    """Answer requests until stdin closes or ``quit`` comes."""
    die_with_parent()
    # Runtimes print to stdout; keep the real one for answers and send theirs to stderr.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(answer: dict[str, Any]) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    try:
        specification = importlib.util.spec_from_file_location("secateurs_engine", engine_file)
        assert specification is not None
        assert specification.loader is not None
        engine = importlib.util.module_from_spec(specification)
        specification.loader.exec_module(engine)
        say({"ready": True, **engine.describe()})
    except Exception as error:
        say({"error": f"{type(error).__name__}: {error}"})
        return
    host = Host(engine)
    gc.disable()
    try:
        for line in watched_lines(sys.stdin, host.close):
            request = json.loads(line)
            if request["do"] == "quit":
                break
            set_limit(request.get("limit_s", 0))
            try:
                say(host.answer(request))
            except Exception as error:
                say({"error": f"{type(error).__name__}: {error}"})
            set_limit(0)
    finally:
        host.close()


if __name__ == "__main__":
    # The script's own folder must not shadow modules that the runtimes import.
    sys.path[:] = [entry for entry in sys.path if entry != os.path.dirname(os.path.abspath(__file__))]
    serve(sys.argv[1])
