"""Runs of a network that leave no mark: the user's module, its code and PyTorch's settings are afterwards as before."""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import os
import random
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.modules import module as hooks_of_all

from secateurs.errors import NO_EXIT, StructureError
from secateurs.structure.memory import Memory, RandomSource, random_states

_EVERY_MODULE = tuple(name for name in vars(hooks_of_all) if name.startswith("_global") and name.endswith("_hooks"))


@contextlib.contextmanager
def untouched(model: nn.Module, *, parameters: bool = True, modules: bool = True) -> Iterator[list[RandomSource]]:
    """Whatever happens inside, the module is afterwards bit for bit and attribute for attribute as before.

    So are the classes of its parts, the globals, closures and caches that its code reaches, hooks, random states and
    PyTorch's global settings, also after an error. Yields the objects that it asks for Python's and NumPy's random
    numbers, beside those of all.

    Args:
        model: the network that is run.
        parameters: False spares the copy of the parameters' values (for a scratch copy, say).
        modules: False lets the modules themselves change: only what their code shares with others is put back.
    """
    settings = _settings()
    memory = Memory(model, parameters=parameters, modules=modules)
    try:
        yield memory.sources
    except SystemExit as error:
        if error.code:
            raise
        raise StructureError(f"The network's code ended the program (sys.exit({error.code!r})). {NO_EXIT}") from error
    finally:
        memory.restore()
        for restore in settings:
            restore()


@contextlib.contextmanager
def as_found(model: nn.Module | None, *others: Any) -> Iterator[None]:
    """What a public call that trains or differentiates is wrapped in: :func:`untouched`, whatever surrounds the call.

    Gradients are on inside, also where the caller switched them off or is in inference mode. ``model``: None where it
    is looked after inside; ``others``: loaders and whatever else is read; the generators of random numbers that they
    hold are put back.
    """
    draws = random_states(others)
    kept = contextlib.nullcontext() if model is None else untouched(model)
    with torch.inference_mode(False), torch.enable_grad(), kept:
        try:
            yield
        finally:
            for restore in draws:
                restore()


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while; every submodule gets its own mode back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextlib.contextmanager
def fresh_runs(model: nn.Module) -> Iterator[None]:
    """While active, every run of the network starts from the same attributes, classes and globals.

    The exporter runs a forward several times, on tensors that stand for others. What one run leaves in an attribute (a
    table cached for this size, a counter, a list) must not be met by the next, nor be taken for an assignment that
    cannot be exported.
    """
    memories: list[tuple[Memory, list[Any]]] = []
    assigned = hooks_of_all._global_buffer_registration_hooks

    def before(module: nn.Module, arguments: Any) -> None:
        memories.append((Memory(model, values=False), list(assigned.items())))
        assigned.clear()  # a buffer that is put back is no output

    def after(module: nn.Module, arguments: Any, output: Any) -> None:
        memory, held = memories.pop()
        memory.restore()
        assigned.update(held)

    first = model.register_forward_pre_hook(before, prepend=True)
    last = model.register_forward_hook(after, always_call=True)
    try:
        yield
    finally:
        first.remove()
        last.remove()


@contextlib.contextmanager
def exporting(model: nn.Module) -> Iterator[None]:
    """What an export of the network is wrapped in: :func:`untouched` around :func:`fresh_runs`."""
    with untouched(model), fresh_runs(model):
        yield


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the exporter's warnings and log lines."""
    loggers = [logging.getLogger(name) for name in ("torch.export", "torch.fx", "torch._dynamo", "torch.onnx", "torch")]
    levels = [logger.level for logger in loggers]
    said, failed = contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO())
    with warnings.catch_warnings(), said, failed:
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _settings() -> list[Callable[[], None]]:
    """One function for each of Python's, NumPy's and PyTorch's settings that a forward may change; it resets it."""
    found: list[Callable[[], None]] = []

    def keep(setter: Callable[..., Any], *values: Any, **named: Any) -> None:
        found.append(lambda: setter(*values, **named))

    keep(random.setstate, random.getstate())
    keep(np.random.set_state, np.random.get_state())
    keep(torch.set_rng_state, torch.get_rng_state())
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        keep(torch.cuda.set_rng_state_all, torch.cuda.get_rng_state_all())
    keep(torch.set_default_dtype, torch.get_default_dtype())
    keep(torch.set_grad_enabled, torch.is_grad_enabled())
    keep(
        torch.use_deterministic_algorithms,
        torch.are_deterministic_algorithms_enabled(),
        warn_only=torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    keep(torch.set_num_threads, torch.get_num_threads())
    found.append(_float32_arithmetic())
    keep(torch.autograd.set_detect_anomaly, torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled())
    keep(torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled())
    for name in ("enabled", "benchmark", "deterministic"):
        keep(setattr, torch.backends.cudnn, name, getattr(torch.backends.cudnn, name))
    for device in ("cpu", "cuda"):
        keep(torch.set_autocast_enabled, device, torch.is_autocast_enabled(device))
        keep(torch.set_autocast_dtype, device, torch.get_autocast_dtype(device))
    for name in _EVERY_MODULE:
        keep(_reset, getattr(hooks_of_all, name), dict(getattr(hooks_of_all, name)))
    keep(np.seterr, **np.geterr())
    keep(_reset, os.environ, dict(os.environ))
    return found


def _float32_arithmetic() -> Callable[[], None]:
    """Puts back in which arithmetic float32 is multiplied.

    PyTorch has two doors to it, and reading the older one is an error once both were used; so neither is relied upon,
    and only what was changed is set: a user of one door never comes to have used both.
    """
    backends: Any = torch.backends
    parts: tuple[Any, ...] = (backends, backends.cudnn, backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn)
    parts += (backends.mkldnn, backends.mkldnn.matmul, backends.mkldnn.conv, backends.mkldnn.rnn)
    older: list[tuple[Callable[[], Any], Callable[[Any], None]]] = [
        (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
        (lambda: backends.cuda.matmul.allow_tf32, lambda value: setattr(backends.cuda.matmul, "allow_tf32", value)),
        (lambda: backends.cudnn.allow_tf32, lambda value: setattr(backends.cudnn, "allow_tf32", value)),
    ]
    newer: list[tuple[Callable[[], Any], Callable[[Any], None]]]
    newer = [(functools.partial(getattr, part, "fp32_precision"), _setter(part, "fp32_precision")) for part in parts]
    held: list[tuple[Callable[[], Any], Callable[[Any], None], Any]]
    held = [(read, write, _readable(read)) for read, write in (*older, *newer)]

    def restore() -> None:
        for read, write, value in held:
            if value is not None and _readable(read) != value:
                write(value)

    return restore


def _readable(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except (RuntimeError, AttributeError):  # an older PyTorch has one door only
        return None


def _setter(part: Any, name: str) -> Callable[[Any], None]:
    return lambda value: setattr(part, name, value)


def _reset(table: Any, held: dict[Any, Any]) -> None:
    if dict(table) != held:
        table.clear()
        table.update(held)
