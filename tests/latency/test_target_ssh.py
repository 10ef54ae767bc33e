"""Another machine: an OpenSSH server of our own on loopback, with its own keys."""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from secateurs.data import open_data
from secateurs.errors import TargetError, TargetUnavailableError, UnstableTimingError
from secateurs.jobs.entry import Place, run
from secateurs.jobs.settings import Settings
from secateurs.latency.lock import measuring
from secateurs.latency.targets import make_target, open_target
from secateurs.latency.targets.ssh import SshTarget, _probe
from secateurs.latency.timing import Protocol, compare
from secateurs.models import load

from .test_targets import chain

pytestmark = pytest.mark.alone


@dataclass
class Server:
    """``port``: where it listens; ``folder``: its files; ``process``: itself."""

    port: int
    folder: Path
    process: subprocess.Popen[bytes]

    @property
    def target(self) -> str:
        return f"ssh://{getpass.getuser()}@localhost:{self.port}/onnxruntime-cpu?python={sys.executable}"


def programs() -> tuple[str, str]:
    """sshd and ssh-keygen.

    Raises:
        pytest.skip.Exception: not here.
    """
    search = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])
    found = {name: shutil.which(name, path=search) for name in ("sshd", "ssh-keygen", "ssh")}
    missing = [name for name, path in found.items() if path is None]
    if missing:
        pytest.skip(f"OpenSSH's {', '.join(missing)} is not installed (Debian: apt install openssh-server)")
    return str(found["sshd"]), str(found["ssh-keygen"])


def free_port() -> int:
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
        return connection.recv(4) == b"SSH-"
    return False


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A running server; 'ssh' on the path knows its key and ours and nothing else."""
    sshd, keygen = programs()
    # Short: the server refuses keys below folders that others may write to.
    folder = tmp_path_factory.mktemp("sshd")
    folder.chmod(0o700)
    for name in ("host", "user"):
        subprocess.run([keygen, "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    shutil.copy(folder / "user.pub", folder / "authorized")
    (folder / "authorized").chmod(0o600)
    port = free_port()
    (folder / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/authorized\n"
        f"PidFile {folder}/pid\nPasswordAuthentication no\nKbdInteractiveAuthentication no\nUsePAM no\n"
        f"StrictModes no\nPermitRootLogin prohibit-password\nMaxStartups 100\n"
    )
    key = (folder / "host.pub").read_text().split()
    (folder / "known").write_text(f"[localhost]:{port} {key[0]} {key[1]}\n")
    (folder / "config").write_text(
        f"Host *\n  IdentityFile {folder}/user\n  IdentitiesOnly yes\n  UserKnownHostsFile {folder}/known\n"
        f"  GlobalKnownHostsFile /dev/null\n"
    )
    client = folder / "bin" / "ssh"
    client.parent.mkdir()
    client.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {folder}/config "$@"\n')
    client.chmod(0o755)
    monkeypatch.setenv("PATH", f"{client.parent}{os.pathsep}{os.environ['PATH']}")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # where the server, run by root, locks its parts up
    command = [sshd, "-D", "-E", str(folder / "log"), "-f", str(folder / "sshd_config")]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 20
        while not answers(port):
            if process.poll() is not None or time.monotonic() > end:
                pytest.skip(f"sshd does not start here: {(folder / 'log').read_text()[-300:]}")
            time.sleep(0.05)
        _probe.cache_clear()
        yield Server(port, folder, process)
    finally:
        process.terminate()
        process.wait()


def test_a_measurement_on_a_real_server(server: Server) -> None:
    target = open_target(server.target)
    assert isinstance(target, SshTarget)
    assert target.name == server.target
    facts = target.fingerprint(1)
    assert facts["host"] == socket.gethostname()
    assert facts["target"] == "onnxruntime-cpu"
    content, _ = chain()
    rules = Protocol(turns=6, runs_per_turn=2, refuse=9.0, extensions=0)
    found = compare(target, {"dense": content, "same": content}, protocol=rules)
    assert found["same"].latency_ms > 0
    assert found["same"].ratio is not None
    assert (found["dense"].peak_memory_bytes or 0) > 10 << 20


def test_the_processor_there_says_whether_weights_need_seven_bits(server: Server) -> None:
    here = open_target("onnxruntime-cpu:int8")
    there = open_target(server.target.replace("-cpu?", "-cpu:int8?"))
    assert there.saturates is here.saturates


def test_an_unknown_host_key_is_refused(server: Server) -> None:
    (server.folder / "known").write_text("")
    with pytest.raises(TargetUnavailableError, match=r"(?i)host key"):
        open_target(server.target)
    assert (server.folder / "known").read_text() == ""


def test_a_changed_host_key_is_refused(server: Server) -> None:
    other = (server.folder / "user.pub").read_text().split()
    (server.folder / "known").write_text(f"[localhost]:{server.port} {other[0]} {other[1]}\n")
    with pytest.raises(TargetUnavailableError, match=r"(?i)host key"):
        open_target(server.target)


def test_no_password_is_asked_for(server: Server) -> None:
    (server.folder / "authorized").write_text("")
    with pytest.raises(TargetUnavailableError, match="Permission denied"):
        open_target(server.target)


def test_the_lock_is_taken_on_the_device(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The server's processes do not see our environment: their lock is not ours."""
    monkeypatch.setenv("SECATEURS_LOCK", str(tmp_path / "here.lock"))
    target = open_target(server.target)
    with target.start() as worker, target.start() as other:
        assert worker.lock()
        assert not other.lock()
        with pytest.raises(UnstableTimingError, match="ssh://"), measuring(worker=other, timeout_s=0.1):
            pass
        worker.unlock()
        with measuring(worker=other, timeout_s=5):
            assert not worker.lock()
        assert worker.lock()
    assert not (tmp_path / "here.lock").exists()


def test_a_lost_connection_is_reported(server: Server) -> None:
    target = open_target(server.target)
    with target.start() as worker:
        assert worker.peak_bytes() > 0
        worker._process.kill()
        with pytest.raises(TargetError, match="ended unexpectedly"):
            worker.peak_bytes()


def test_nothing_is_left_behind(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    before = set(Path("/tmp").glob("secateurs-engine-*"))
    target = open_target(server.target)
    with target.start() as worker:
        assert set(Path("/tmp").glob("secateurs-engine-*")) - before
        worker.peak_bytes()
    end = time.monotonic() + 10
    while set(Path("/tmp").glob("secateurs-engine-*")) - before and time.monotonic() < end:
        time.sleep(0.05)
    assert not set(Path("/tmp").glob("secateurs-engine-*")) - before


@pytest.mark.parametrize("answer", ["", "This account is for file transfers only.", '{"node": "x"}', "3"])
def test_a_host_that_answers_something_else_is_told(tmp_path: Path, answer: str) -> None:
    client = tmp_path / "ssh"
    client.write_text(f"#!/bin/sh\ncat >/dev/null\necho '{answer}'\n")
    client.chmod(0o755)
    target = replace(make_target("ssh://somewhere/onnxruntime-cpu"), client=str(client), host=f"h{len(answer)}")
    reason = target.available() or ""
    assert "did not run python3" in reason
    assert repr(answer) in reason


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("few_samples")
def test_the_main_job(server: Server, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    loaded = load("digits-resnet", seed=0)
    settings = Settings(latency="70%", target=server.target, criterion="l1", epochs=1, repair="statistics")
    place = Place(tmp_path / "run", store=tmp_path / "store.sqlite")
    result = run(loaded, open_data("digits", loaded, seed=0), settings, place)
    written = json.loads((tmp_path / "run" / "result.json").read_text())
    assert socket.gethostname() in str(written["target"])
    assert written["pruned"]["latency_ms"] < written["dense"]["latency_ms"]
    assert sum(parameter.numel() for parameter in result.module.parameters()) == written["pruned"]["params"]
