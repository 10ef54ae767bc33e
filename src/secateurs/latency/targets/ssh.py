"""Another machine, reached with the system's OpenSSH client: ``ssh://[user@]host[:port]/TARGET[?python=PROGRAM]``.

The remote machine needs Python 3.10 and the runtime, nothing of secateurs: the worker and the engine travel through
the connection, and the measurement lock is taken there. Host keys are checked and no password is asked for, so the
connection must work with keys alone; everything else (addresses, jumps, key files) is OpenSSH's own configuration.
"""

from __future__ import annotations

import base64
import functools
import json
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from secateurs.errors import PlanError, TargetError, why
from secateurs.latency.process import QUIET, WORKER_FILE, Worker
from secateurs.latency.targets._base import Operation, Target, overflows

_FORM = re.compile(
    r"ssh://(?:(?P<user>[\w.-]+)@)?(?P<host>[\w.-]+|\[[0-9a-fA-F:]+\])(?::(?P<port>\d+))?"
    r"/(?P<target>[^?]+)(?:\?python=(?P<python>[\w./~-]+))?"
)
_OPTIONS = (
    "-T", "-a", "-x", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=yes", "-o", "ConnectTimeout=10",
    # A dead connection ends the client, and with it the measurement.
    "-o", "ServerAliveInterval=15", "-o", "ServerAliveCountMax=4", "-o", "ClearAllForwardings=yes",
)  # fmt: skip
# Read the rest of the program from the connection: one line of base64, then the worker's own requests.
_BOOT = "import sys,base64;exec(compile(base64.b64decode(sys.stdin.readline()),'secateurs','exec'))"
_PROBE = """
import json, platform, importlib.metadata as m
def version(name):
    try:
        return m.version(name)
    except m.PackageNotFoundError:
        return None
name, flags = platform.processor(), ""
try:
    told = {}
    for line in open("/proc/cpuinfo"):
        key, _, value = line.partition(":")
        told.setdefault(key.strip(), value.strip())
    name = next((told[key] for key in ("model name", "Hardware", "Model") if key in told), name)
    flags = told.get("flags", told.get("Features", ""))
except OSError:
    pass
print(json.dumps({"node": platform.node(), "device": name or platform.machine(), "python": platform.python_version(),
    "system": platform.system() + " " + platform.machine(), "machine": platform.machine(), "flags": flags,
    "version": version(PACKAGE)}))
"""


@dataclass(frozen=True)
class SshTarget(Target):
    """A target on another machine.

    ``inner``: the target as it would be here; ``host``, ``user``, ``port``: where it is; ``python``: the program there.
    """

    host: str
    inner: Target
    user: str | None = None
    port: int | None = None
    python: str = "python3"
    client: str = field(default="ssh", compare=False)
    timeout_s: float = 300.0
    name: str = field(init=False)
    artifact: str = field(init=False)
    precision: str = field(init=False)
    profiles: bool = field(init=False)

    def __post_init__(self) -> None:
        host = f"[{self.host}]" if ":" in self.host else self.host
        where = f"{self.user}@{host}" if self.user else host
        python = "" if self.python == "python3" else f"?python={self.python}"
        port = f":{self.port}" if self.port else ""
        object.__setattr__(self, "name", f"ssh://{where}{port}/{self.inner.name}{python}")
        for fact in ("artifact", "precision", "profiles"):
            object.__setattr__(self, fact, getattr(self.inner, fact))

    @classmethod
    def parse(cls, text: str, make: Callable[[str], Target]) -> SshTarget:
        """Read ``ssh://[user@]host[:port]/TARGET``, with ``?python=PROGRAM`` where ``python3`` is not the right one.

        ``make``: the target of a text on this machine.

        Raises:
            PlanError: not of this form, or a target that cannot run remotely.
        """
        match = _FORM.fullmatch(text)
        if match is None or match["host"].startswith("-"):
            raise PlanError(
                f"Target {text!r} is not understood. Write ssh://[user@]host[:port]/TARGET, "
                f"for example ssh://pi@192.168.1.20/onnxruntime-cpu."
            )
        inner = make(match["target"])
        if inner.engine is None:
            raise PlanError(
                f"Target {match['target']!r} cannot run on another machine: its files are made for this one. Choose "
                f"one whose files can travel, such as ssh://{match['host']}/onnxruntime-cpu."
            )
        port = int(match["port"]) if match["port"] else None
        return cls(match["host"].strip("[]"), inner, match["user"], port, match["python"] or "python3")

    def _command(self, program: str) -> list[str]:
        port = ["-p", str(self.port)] if self.port else []
        user = ["-l", self.user] if self.user else []
        # The remote shell gets a fixed text; what varies travels through the connection.
        return [self.client, *_OPTIONS, *port, *user, "--", self.host, f'{self.python} -u -c "{program}"']

    @property
    def exporter(self) -> str:
        """The inner target's."""
        return self.inner.exporter

    @property
    def saturates(self) -> bool:
        """As the processor there is."""
        facts = _probe(self)
        return overflows(facts["machine"], facts["flags"].split())

    def available(self) -> str | None:
        """None, or why not: no ssh client, no connection, no Python there, no runtime there."""
        if shutil.which(self.client) is None:
            return "the OpenSSH client 'ssh' is not installed here"
        try:
            facts = _probe(self)
        except TargetError as error:
            return str(error)
        if facts["version"] is None:
            return f"{self.inner.package} is not installed for {self.python} on {self.host} (pip install it there)"
        return None

    def fingerprint(self, threads: int) -> dict[str, str | int]:
        """The remote machine's device and runtime version, precision, threads."""
        facts = _probe(self)
        return {
            "target": self.inner.name,
            "device": facts["device"],
            "host": facts["node"],
            "system": facts["system"],
            "runtime": f"{self.inner.package} {facts['version']}",
            "precision": self.precision,
            "threads": threads,
        }

    def start(self) -> Worker:
        """A worker process on the remote machine."""
        engine = WORKER_FILE.parent / "engines" / f"{self.inner.engine}.py"
        boot = "\n".join(
            [
                "import os, sys, tempfile, shutil",
                f"os.environ.update({QUIET!r})",
                "folder = tempfile.mkdtemp(prefix='secateurs-engine-')",
                f"files = {{'worker.py': {WORKER_FILE.read_text()!r}, 'engine.py': {engine.read_text()!r}}}",
                "for name, text in files.items():",
                "    open(os.path.join(folder, name), 'w').write(text)",
                "sys.path.insert(0, folder)",
                "import worker",
                "sys.path.remove(folder)",
                "try:",
                "    worker.serve(os.path.join(folder, 'engine.py'))",
                "finally:",
                "    shutil.rmtree(folder, ignore_errors=True)",
            ]
        )
        first = base64.b64encode(boot.encode()) + b"\n"
        return Worker(self.name, self._command(_BOOT), timeout_s=self.timeout_s, remote=True, first=first)

    def settings(self, *, threads: int, batch: int, profile: bool) -> dict[str, Any]:
        """The inner target's."""
        return self.inner.settings(threads=threads, batch=batch, profile=profile)

    def operations(self, profile: Mapping[str, Any]) -> tuple[Operation, ...]:
        """The inner target's."""
        return self.inner.operations(profile)


@functools.lru_cache(maxsize=16)
def _probe(target: SshTarget) -> dict[str, Any]:
    """Facts about the remote machine.

    Raises:
        TargetError: it cannot be reached or has no Python.
    """
    code = base64.b64encode(_PROBE.replace("PACKAGE", repr(target.inner.package)).encode())
    try:
        done = subprocess.run(target._command(_BOOT), input=code + b"\n", capture_output=True, timeout=40)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise TargetError(f"{target.host} cannot be reached with ssh ({why(error)}). Check the address.") from error
    if done.returncode != 0:
        words = done.stderr.decode("utf-8", "replace").strip()[-400:]
        raise TargetError(
            f"{target.host} cannot be used with ssh (exit code {done.returncode}: {words!r}). 'ssh {target.host} "
            f"{target.python} --version' must work without a password and with a known host key"
        )
    # The login may print before the answer.
    said = done.stdout.decode("utf-8", "replace").strip()
    try:
        facts: dict[str, Any] = json.loads(said.rpartition("\n")[2])
        return {key: facts[key] for key in ("node", "device", "system", "machine", "flags", "version")}
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise TargetError(
            f"{target.host} did not run {target.python}: it answered {said[-200:]!r}. 'ssh {target.host} "
            f"{target.python} --version' must print a version of Python, 3.10 or newer"
        ) from error
