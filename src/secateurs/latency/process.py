"""The parent's end of a worker process: requests, answers, time-outs and crashes."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from secateurs.errors import TargetError, plain, why

WORKER_FILE = Path(__file__).with_name("worker.py")
QUIET_SHARE = 0.93
"""Below this share of processor time in a turn of a single thread, something else ran on our core."""
QUIET = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
"""Environment of runtimes that bring their own threads: numpy's would only disturb them."""
_CHUNK_BYTES = 3 << 20
_GRACE_S = 60.0
"""So much later than we give up, a worker that nobody ended ends itself."""
_GREETINGS = 40
"""Lines that a login may print before the worker speaks."""


def local_command(engine: str) -> list[str]:
    """Command line of a worker on this machine for the engine file ``engines/<engine>.py``."""
    return [sys.executable, str(WORKER_FILE), str(WORKER_FILE.parent / "engines" / f"{engine}.py")]


class WorkerLostError(TargetError):
    """The runtime's process ended by itself; a fresh one may do better."""


class Worker:
    """A running worker process; a context manager that ends the process.

    Args:
        name: what to call it in messages (the target's name).
        command: the command line that starts it.
        environment: variables to set on top of this process's own.
        timeout_s: longest wait for one answer before the runtime counts as hung.
        remote: files are sent through the pipe instead of being named by path.
        first: sent to the process before anything else.

    ``about``: what the engine says of itself; ``pid``: of the process, None where there is none on this machine.
    """

    name: str = ""
    remote: bool = False
    about: Mapping[str, Any]
    pid: int | None = None

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        timeout_s: float = 300.0,
        remote: bool = False,
        first: bytes = b"",
    ) -> None:
        self.name, self.remote, self._timeout_s = name, remote, timeout_s
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  (closed by close)
        self._answers: queue.Queue[str | None] = queue.Queue()
        self._closed = False
        try:
            self._process = subprocess.Popen(
                list(command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                env={**os.environ, **(environment or {})},
                # Its own session: the scheduler gives sessions equal shares, and Ctrl-C reaches only the parent.
                start_new_session=True,
            )
        except OSError as error:
            raise TargetError(
                f"{name}: the worker process could not be started ({why(error)}). Command: {' '.join(command)}. "
                f"Check that this program exists."
            ) from error
        self.pid = None if remote else self._process.pid
        if first:
            self._send_bytes(first)
        threading.Thread(target=self._listen, daemon=True).start()
        try:
            self.about = self._receive(timeout_s, greetings=_GREETINGS if remote else 0)
        except BaseException:
            self.close()
            raise

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._answers.put(line.decode("utf-8", "replace"))
        self._answers.put(None)

    def _receive(self, timeout_s: float, greetings: int = 0) -> dict[str, Any]:
        try:
            line = self._answers.get(timeout=timeout_s)
        except queue.Empty:
            self._process.kill()
            raise TargetError(
                f"{self.name}: the runtime did not answer within {timeout_s:.0f} s and was stopped. "
                f"The model may be too large for this device, or the runtime hangs. {self._tail()}"
            ) from None
        if line is None:
            code = self._process.wait()
            raise WorkerLostError(
                f"{self.name}: the runtime's process ended unexpectedly with exit code {code}. {self._tail()} "
                f"Try another target or another version of the runtime."
            )
        try:
            answer: dict[str, Any] = json.loads(line)
        except json.JSONDecodeError as error:
            if greetings:
                return self._receive(timeout_s, greetings - 1)
            raise TargetError(
                f"{self.name}: the worker answered {line[:200]!r}, which is not JSON. Something else prints to its "
                f"standard output; silence that."
            ) from error
        if "error" in answer:
            raise TargetError(
                f"{self.name}: the runtime refused the model or failed: {plain(answer['error'])[:1500].rstrip('. ')}. "
                f"See 'secateurs ls targets' for what it can run."
            )
        return answer

    def _tail(self) -> str:
        self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(0, self._errors.tell() - 600))
        text = self._errors.read().decode("utf-8", "replace")
        text = plain(text).strip()
        return f"Its last words: {text!r}." if text else "It left no message."

    def _send_bytes(self, data: bytes) -> bool:
        """Whether the process took it; it does not when it is gone, and then :meth:`_receive` says why."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(data)
            self._process.stdin.flush()
        except OSError:
            return False
        return True

    def ask(self, request: Mapping[str, Any], timeout_s: float | None = None) -> dict[str, Any]:
        """The answer to one request.

        Raises:
            TargetError: the runtime failed, crashed or hung.
        """
        if self._closed:
            raise TargetError(
                f"{self.name}: its worker process was ended, and was then asked to {request.get('do')!r}. "
                f"Start a new one with the target's start()."
            )
        wait_s = self._timeout_s if timeout_s is None else timeout_s
        if not self._send_bytes(json.dumps({**request, "limit_s": wait_s + _GRACE_S}).encode() + b"\n"):
            return self._receive(5.0)
        return self._receive(wait_s)

    def load(self, key: str, file: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Load a model file under ``key`` and run it once; returns ``load_ms`` and ``first_ms``."""
        name = str(file.resolve())
        if self.remote:
            name = self._send(file)
        answer = self.ask({"do": "load", "key": key, "file": name, "settings": dict(settings)})
        if self.remote:
            self.ask({"do": "remove", "name": name})
        return answer

    def _send(self, file: Path) -> str:
        with open(file, "rb") as source:
            more = False
            while chunk := source.read(_CHUNK_BYTES):
                data = base64.b64encode(chunk).decode("ascii")
                self.ask({"do": "put", "name": file.name, "data": data, "more": more})
                more = True
        return file.name

    def run(self, keys: Sequence[str], *, runs: int, rounds: int = 1, skip: int = 0) -> dict[str, Any]:
        """``times_ms`` per key of ``rounds`` × ``runs`` timed runs, in turn; ``wall_ms`` and ``cpu_ms`` of all."""
        return self.ask({"do": "run", "keys": list(keys), "runs": runs, "rounds": rounds, "skip": skip})

    def infer(self, key: str, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Outputs of a loaded model for inputs [samples, ...] in the file's order, a multiple of its batch of them."""
        sent = [
            {"dtype": str(entry.dtype), "shape": list(entry.shape), "data": base64.b64encode(entry.tobytes()).decode()}
            for entry in arrays
        ]
        answer = self.ask({"do": "infer", "key": key, "arrays": sent})
        return [
            np.frombuffer(base64.b64decode(entry["data"]), dtype=entry["dtype"]).reshape(entry["shape"])
            for entry in answer["arrays"]
        ]

    def profile(self, key: str) -> dict[str, Any]:
        """What the runtime's profiler saw since the model was loaded; later runs are not profiled."""
        profile: dict[str, Any] = self.ask({"do": "profile", "key": key})["profile"]
        return profile

    def drop(self, keys: Sequence[str]) -> None:
        """Unload models."""
        self.ask({"do": "drop", "keys": list(keys)})

    def peak_bytes(self) -> int:
        """Peak resident memory of the worker process."""
        return int(self.ask({"do": "peak"})["bytes"])

    def lock(self) -> bool:
        """Whether the device's measurement lock is now held by the worker process."""
        return bool(self.ask({"do": "lock"})["held"])

    def unlock(self) -> None:
        """Give the device's measurement lock back; nothing where the process is gone, and the lock with it."""
        with contextlib.suppress(TargetError):
            self.ask({"do": "unlock"})

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._closed = True
        if self._process.poll() is None:
            try:
                self._process.stdin.write(b'{"do": "quit"}\n')
                self._process.stdin.close()
                self._process.wait(timeout=3)
            except (OSError, ValueError, subprocess.TimeoutExpired):
                self._process.kill()
                self._process.wait()
        self._errors.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
