"""What a network does otherwise in training mode: other layers, other outputs, or other chance alone."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils import _pytree as pytree

from secateurs.errors import why
from secateurs.structure.comparison import nest_of
from secateurs.structure.draws import Call
from secateurs.structure.examples import batch_of, doubled
from secateurs.structure.memory import RandomSource
from secateurs.structure.untouched import untouched

DROPOUT_MODULES = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
"""Modules that stay modules in a rebuilt graph, so that their chance is not lost."""


EVALUATION, TRAINING = "evaluation", "training"
IN_TRAINING = "training_"
"""What the names of calls begin with that the forward makes in training mode."""
MASKED, INTERPRETER, RUN_ONLY = "masked", "interpreter", "run only"
"""How a cut network is judged in training mode: by the dense network with removed units at zero, by the interpreter of
its exported forward where a statistic spans units, or by the nest of its outputs alone where there is neither."""


DRAWS = "it asks Python's or NumPy's random numbers, and an export would hold one draw for good"


@dataclass(frozen=True)
class TrainingMode:
    """How the forward in training mode relates to that in evaluation mode.

    ``kind``: ``same``, but for batch statistics and dropout modules; ``chance``: only what is drawn at random differs
    (dropout that is no module, attention's, an LSTM's); ``other``: calls, tensors or outputs differ; ``fails``: it does
    not run on the example. ``reason``: why it fails, or why a rebuilt network cannot have it; ``outputs``: what
    evaluation mode and what training mode returns, in words.
    """

    kind: str
    reason: str = ""
    outputs: tuple[str, str] = ("", "")


def training_of(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> TrainingMode:
    """Found by running the network in both modes, on a batch of at least two where it takes one.

    At batch 1 a batch normalisation behind a global pool cannot be trained. The network is left as it was.
    """
    for call in calls_to_try(args, kwargs):
        try:
            evaluated = recorded(model, call, training=False)
        except Exception:
            continue  # it takes its own batch size only
        try:
            trained = recorded(model, call, training=True)
        except Exception as error:
            return TrainingMode("fails", why(error))
        kind, outputs = _difference(evaluated, trained), (evaluated.returns, trained.returns)
        return TrainingMode("other", DRAWS, outputs) if trained.draws else TrainingMode(kind, outputs=outputs)
    return TrainingMode("same")  # it does not run at all, which the export will say


def calls_to_try(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Call]:
    """The example with a batch of one repeated to two, then as it is."""
    given = (args, kwargs)
    return [(doubled(args), doubled(kwargs)), given] if batch_of(args, kwargs) == 1 else [given]


@dataclass(frozen=True)
class Run:
    """A forward, written down."""

    calls: tuple[tuple[str, tuple[Any, ...]], ...]
    """Function name; names of parameters and buffers and shapes of other tensors that it took; shapes that it gave."""
    scalars: tuple[tuple[Any, ...], ...]
    """Numbers that each call took, in the order of ``calls``."""
    nest: tuple[Any, ...]
    returns: str
    draws: bool
    """Whether Python's or NumPy's random numbers were asked."""


def _difference(evaluated: Run, trained: Run) -> str:
    if evaluated.calls != trained.calls or evaluated.nest != trained.nest:
        return "other"
    found = "same"
    for (name, _), before, after in zip(evaluated.calls, evaluated.scalars, trained.scalars, strict=True):
        if before == after or name in _STATISTICS:
            continue
        if name not in _CHANCE:
            return "other"
        if any(isinstance(number, float) and number > 0 for number in after):
            found = "chance"
    return found


_STATISTICS = ("batch_norm", "instance_norm")
"""Functions that take the mode as an argument and stay modules in a rebuilt graph."""
_CHANCE = (
    "dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout", "dropout_",
    "feature_dropout", "scaled_dot_product_attention", "multi_head_attention_forward", "rrelu", "rrelu_", "lstm", "gru",
    "rnn_tanh", "rnn_relu",
)  # fmt: skip
"""Functions whose numbers say how much chance there is, and whether there is any."""


def into_training(model: nn.Module) -> nn.Module:
    """The network in training mode, but for PyTorch's own parametrisations: what these iterate is no part of it."""
    model.train()
    for module in model.modules():
        if _of_utilities(module) or any(map(_of_utilities, module._forward_pre_hooks.values())):
            module.training = False
    return model


def _of_utilities(value: object) -> bool:
    return type(value).__module__.startswith("torch.nn.utils.")


def recorded(model: nn.Module, call: Call, *, training: bool, seed: int | None = None) -> Run:
    """What a forward calls. ``seed``: of Python's and NumPy's random numbers; the network and they are left alone."""
    with untouched(model) as sources, torch.no_grad():
        if seed is not None:
            seed_python(seed, sources)
        _ = into_training(model) if training else model.eval()
        names = {id(t): name for name, t in [*model.named_parameters(), *model.named_buffers()]}
        record = _Record(names)
        hooks = [hook for module in model.modules() if type(module) in DROPOUT_MODULES for hook in record.watch(module)]
        try:
            args, kwargs = pytree.tree_map(_copied, call)
            before = _drawn(sources)
            with record:
                output = model(*args, **kwargs)
            draws = before != _drawn(sources)
        finally:
            for hook in hooks:
                hook.remove()
    return Run(tuple(record.calls), tuple(record.scalars), nest_of(output), in_words(output), draws)


def seed_python(seed: int, sources: Sequence[RandomSource] = ()) -> None:
    """Set Python's and NumPy's random numbers, those of ``sources`` as well, which whoever calls winds back."""
    random.seed(seed)
    np.random.seed(seed)
    for number, source in enumerate(sources, 1):
        own = 1_000_003 * number + seed  # so that no two draw the same
        if isinstance(source, np.random.Generator):
            source.bit_generator.state = type(source.bit_generator)(own).state
        else:
            source.seed(own)


def _drawn(sources: Sequence[RandomSource]) -> list[str]:
    """Where Python's and NumPy's random numbers are, and those of ``sources``."""
    return [repr(random.getstate()), repr(np.random.get_state()), *map(_state, sources)]


def _state(source: RandomSource) -> str:
    if isinstance(source, random.Random):
        return repr(source.getstate())
    return repr(source.get_state() if isinstance(source, np.random.RandomState) else source.bit_generator.state)


def in_words(output: Any) -> str:
    """What a forward returns, in a few words."""
    if isinstance(output, torch.Tensor):
        return "a tensor"
    kind = type(output).__name__
    if isinstance(output, Mapping):
        return f"{kind} with {', '.join(map(str, output))}"
    if isinstance(output, (list, tuple)) and not hasattr(output, "_fields"):
        return f"{kind} of {len(output)}"
    return kind


def _copied(leaf: Any) -> Any:
    return leaf.detach().clone() if isinstance(leaf, torch.Tensor) else leaf


_PLAIN = (bool, int, float, str)


class _Record(TorchFunctionMode):
    """Writes down every function that is called on tensors, but for counters of batches, and for dropout modules the
    call alone."""

    def __init__(self, names: Mapping[int, str]) -> None:
        super().__init__()
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.scalars: list[tuple[Any, ...]] = []
        self._names = names
        self._inside = 0

    def watch(self, module: nn.Module) -> list[Any]:
        """Leave out the numbers of what happens inside a module."""

        def enter(module: nn.Module, arguments: Any) -> None:
            self._inside += 1

        def leave(module: nn.Module, arguments: Any, output: Any) -> None:
            self._inside -= 1

        return [module.register_forward_pre_hook(enter), module.register_forward_hook(leave, always_call=True)]

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[Any], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self._note(func, pytree.tree_leaves((args, kwargs or {})), result)
        return result

    def _note(self, func: Callable[..., Any], leaves: list[Any], result: Any) -> None:
        given = [self._described(leaf) for leaf in leaves if isinstance(leaf, torch.Tensor)]
        made = [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        if (result is not None and not made) or (given and all("num_batches_tracked" in str(name) for name in given)):
            return
        name = str(getattr(func, "__name__", func) or resolve_name(func))
        self.calls.append((name, (*given, *(tuple(leaf.shape) for leaf in made))))
        self.scalars.append(() if self._inside else tuple(leaf for leaf in leaves if isinstance(leaf, _PLAIN)))

    def _described(self, tensor: torch.Tensor) -> Any:
        return self._names.get(id(tensor), (tuple(tensor.shape), tensor.dtype))
