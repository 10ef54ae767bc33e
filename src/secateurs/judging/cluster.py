"""Workers that are Ray actors on the nodes of a cluster. Extra ``ray``."""

from __future__ import annotations

import logging
import pickle
import re
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from secateurs.errors import TargetUnavailableError, why
from secateurs.judging.pool import Answer, JudgeWorker, Pool
from secateurs.judging.processes import Work
from secateurs.search.problem import Evaluation

_CONNECTING_S = 5.0
_ANSWERING_S = 25.0
_ASK = """
import sys
try:
    from ray._raylet import GcsClient
except ImportError:  # another version of Ray: it is asked by ray.init alone
    sys.exit(0)
GcsClient(sys.argv[1])
"""
_STARTING_S = 120.0
"""Longest wait for room for the first actor."""


def ray_pool(judge: Work, address: str, workers: int | None = None, threads: int = 1) -> Pool:
    """A pool of actors with one copy of the judge each.

    Args:
        judge: what they do; goes through the object store once.
        address: of the cluster, ``auto`` for the one that this machine belongs to, ``local`` to start one here.
        workers: actors (None: as many as the cluster has room for).
        threads: CPU cores that one actor takes. Where the cluster has GPUs, each takes one GPU as well.

    Raises:
        TargetUnavailableError: the cluster cannot be reached or has no room for one actor.
    """
    connect(address)
    crew = Actors(judge, threads)
    room = crew.room(ray.cluster_resources())
    if room < 1:
        raise TargetUnavailableError(
            f"The Ray cluster at {address} has no room for an evaluator of {threads} CPU cores (it has "
            f"{ray.cluster_resources().get('CPU', 0):g}). Add nodes, or give fewer --threads-per-worker."
        )
    return Pool(crew, min(workers or room, room))


def connect(address: str, target: str | None = None) -> None:
    """Join the cluster, once per process; a cluster that is started here carries the label of ``target``.

    Raises:
        TargetUnavailableError: it cannot be reached.
    """
    if ray.is_initialized():
        return
    _require_reachable(address)
    try:
        if address == "local":
            labels = {} if target is None else {label_of(target): 1.0}
            ray.init(resources=labels, log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
        else:
            ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise TargetUnavailableError(
            f"The Ray cluster {address!r} cannot be reached ({why(error)}). Start one with 'ray start --head', or give "
            f"its address as --ray HOST:PORT."
        ) from error


def _require_reachable(address: str) -> None:
    """Nothing, if a Ray cluster answers at a HOST:PORT: Ray itself would try for minutes.

    Raises:
        TargetUnavailableError: it is no such address, or nothing answers there.
    """
    if address in ("auto", "local"):
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not re.fullmatch("[0-9]{1,5}", port):
        raise TargetUnavailableError(
            f"The address {address!r} of a Ray cluster is not understood. Give --ray HOST:PORT, auto or local."
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECTING_S).close()
    except (OSError, OverflowError, UnicodeError) as error:
        raise TargetUnavailableError(
            f"Nothing answers at {address} ({why(error)}; waited {_CONNECTING_S:.0f} s at most). Start a cluster there "
            f"with 'ray start --head', or give its address as --ray HOST:PORT."
        ) from error
    if not address.startswith("ray://"):
        _require_ray(address)


def _require_ray(address: str) -> None:
    """Nothing, if what answers at an address is a Ray cluster; a process of its own asks, which can be ended."""
    try:
        asked = subprocess.run(
            [sys.executable, "-c", _ASK, address],
            timeout=_ANSWERING_S,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ).returncode
        how = f"answered with an error ({asked})" if asked else ""
    except subprocess.TimeoutExpired:
        how = f"did not answer within {_ANSWERING_S:.0f} s"
    if how:
        raise TargetUnavailableError(
            f"What listens at {address} is no Ray cluster: it {how}. Give the address that 'ray start --head' told, as "
            f"--ray HOST:PORT."
        )


class _Evaluator:
    """The actor: one copy of the judge in a process of its own."""

    def __init__(self, judge: bytes, threads: int, on_gpu: bool) -> None:
        self._judge: Work = pickle.loads(judge)
        for name, value in (("limit_threads", threads), ("use_gpu", None)):
            method = getattr(self._judge, name, None)
            if method is not None and (name != "use_gpu" or on_gpu):
                method() if value is None else method(value)

    def started(self) -> None:
        """Answers once the process is there."""

    def judge(self, item: tuple[Any, ...]) -> Evaluation:
        """The evaluation of one item."""
        return self._judge(*item)


class Actors:
    """Workforce of actors. A lost one is replaced where there is room; else the others do its work."""

    def __init__(self, judge: Work, threads: int) -> None:
        self._judge = ray.put(pickle.dumps(judge))
        self._threads = threads
        self._on_gpu = ray.cluster_resources().get("GPU", 0) >= 1
        self._kind = ray.remote(_Evaluator)

    def room(self, resources: dict[str, float]) -> int:
        """Actors that fit into these resources."""
        fits = int(resources.get("CPU", 0) // self._threads)
        return min(fits, int(resources.get("GPU", 0))) if self._on_gpu else fits

    def hire(self, wanted: int, present: int) -> list[JudgeWorker]:
        """New actors, as many as there is room for now; at least one where there are none."""
        count = min(wanted, self.room(ray.available_resources()))
        count = max(count, 0 if present else 1)
        options = {"num_cpus": self._threads, "num_gpus": 1 if self._on_gpu else 0, "max_restarts": 0}
        return [
            _Actor(self._kind.options(**options).remote(self._judge, self._threads, self._on_gpu)) for _ in range(count)
        ]

    def answers(self, busy: Sequence[JudgeWorker]) -> list[tuple[JudgeWorker, Answer]]:
        """Answers of the actors that have one; an actor whose process or node is gone is lost."""
        actors = {worker.pending: worker for worker in busy if isinstance(worker, _Actor)}
        began = time.monotonic()
        while True:
            ready, _ = ray.wait(list(actors), num_returns=1, timeout=_STARTING_S / 8)
            if ready:
                return [(actors[reference], _answer(reference)) for reference in ready]
            started, _ = ray.wait([actor.started for actor in actors.values()], num_returns=1, timeout=0)
            if not started and time.monotonic() - began > _STARTING_S:
                raise TargetUnavailableError(
                    f"No evaluator of {self._threads} CPU cores was started on the Ray cluster within "
                    f"{_STARTING_S:.0f} s: other jobs hold its cores. Wait for them, or give fewer "
                    f"--threads-per-worker."
                )

    def close(self) -> None:
        """The cluster stays connected; it belongs to the process."""


class _Actor:
    def __init__(self, handle: Any) -> None:
        self.handle, self.started = handle, handle.started.remote()
        self.pending: Any = None

    def give(self, item: tuple[Any, ...]) -> None:
        self.pending = self.handle.judge.remote(item)

    def close(self) -> None:
        with suppress(Exception):
            ray.kill(self.handle)


def _answer(reference: Any) -> Answer:
    try:
        answer: Evaluation = ray.get(reference)
    except RayTaskError as error:
        return error.cause if isinstance(error.cause, Exception) else error
    except RayActorError:
        return None
    return answer


def label_of(target: str) -> str:
    """The custom resource that marks nodes on which a target's latencies may be measured."""
    return f"secateurs-{target}"


def require_label(target: str) -> None:
    """Nothing, if this process's node carries the target's label: latencies are measured here.

    Raises:
        TargetUnavailableError: it does not.
    """
    label, here = label_of(target), ray.get_runtime_context().get_node_id()
    labelled = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get(label, 0) >= 1]
    if any(node["NodeID"] == here for node in labelled):
        return
    others = ", ".join(sorted(node["NodeManagerAddress"] for node in labelled)) or "no node does"
    raise TargetUnavailableError(
        f"Latencies of {target} are measured where this command runs, but this node of the Ray cluster does not carry "
        f"the label {label!r} ({others}). Start it on such a node, or label this one: "
        f"ray start … --resources='{{\"{label}\": 1}}'."
    )
