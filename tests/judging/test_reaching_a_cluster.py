"""Addresses of clusters at which no cluster answers: told within seconds."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest

pytest.importorskip("ray")

from secateurs.errors import TargetUnavailableError
from secateurs.judging import cluster


@pytest.fixture
def mute() -> Iterator[str]:
    """Something that takes connections and says nothing."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield f"127.0.0.1:{listening.getsockname()[1]}"


@pytest.mark.parametrize("address", ["nowhere:1", "127.0.0.1:1", "ray://nowhere:1", "nowhere:99999", "[::1]:1"])
def test_nothing_answers(address: str) -> None:
    begin = time.monotonic()
    with pytest.raises(TargetUnavailableError, match=r"Nothing answers at .* --ray HOST:PORT"):
        cluster.connect(address)
    assert time.monotonic() - begin < 8


@pytest.mark.parametrize("address", ["nowhere", ":1", "host:", "host:port", "host:\u0663", "", "host:123456"])
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(TargetUnavailableError, match="not understood"):
        cluster.connect(address)


def test_something_else_answers(mute: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "_ANSWERING_S", 0.2)
    with pytest.raises(TargetUnavailableError, match=r"is no Ray cluster: it did not answer within"):
        cluster.connect(mute)
    monkeypatch.setattr(cluster, "_ASK", "import sys; sys.exit(7)")
    monkeypatch.setattr(cluster, "_ANSWERING_S", 20.0)
    with pytest.raises(TargetUnavailableError, match="answered with an error"):
        cluster.connect(mute)
