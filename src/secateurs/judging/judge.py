"""From a plan to an accuracy: a network is cut, repaired quickly, and asked about fixed images."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from secateurs.data.accuracy import evaluate
from secateurs.data.calls import Inputs, called, joined, of_first, on, split
from secateurs.data.images import Images
from secateurs.data.samples import Samples
from secateurs.data.tasks.task import Task, classification
from secateurs.errors import DataError, StructureError
from secateurs.importance.output_change import SETTINGS, refit_count
from secateurs.models import rebuild
from secateurs.plan import Plan
from secateurs.recover.batch_norm import reestimate
from secateurs.recover.precision import Mode, arrange_weights
from secateurs.recover.refit.least_squares import least_squares, workable
from secateurs.recover.refit.lockstep import Lane
from secateurs.search.problem import Evaluation
from secateurs.structure import apply
from secateurs.structure.fold import fold_in_place

BATCH = 64
"""How many images are run at once."""


@dataclass(frozen=True, eq=False)
class Judge:
    """From a plan to its accuracy; holds everything that takes, so that it can be sent to another process.

    ``calibration``: input batches; ``validation``: labelled images, read already, or samples; ``task``: what they are
    judged by; ``repair``: ``statistics`` (batch
    norms are re-estimated; in a network without them every layer's mean output is corrected), ``least-squares`` (layers
    are refitted first, quickly) or ``none``; ``precision``: ``fp32`` or ``bf16`` (autocast); ``means``: mean outputs
    of the dense layers, for ``statistics`` without batch norm; ``norms``: batch norms that are folded into the layer
    before them when their statistics are known (``structure.fold.batch_norm_pairs``), which saves a third of the time;
    ``source``: where the module came from (``Loaded.source``): with it the module is rebuilt in another process and
    not pickled, so that its class need not be importable there.
    """

    module: nn.Module
    example: Any
    calibration: tuple[Inputs, ...]
    validation: Images | Samples
    task: Task = field(default_factory=classification)
    repair: str = "statistics"
    precision: str = "fp32"
    means: Mapping[str, Tensor] = field(default_factory=dict)
    norms: Mapping[str, str] = field(default_factory=dict)
    source: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, plan: Plan, images: int | None = None) -> Evaluation:
        """The accuracy of the cut and repaired network on the first ``images`` of the validation images (None: all).

        Of other tasks than classification its :meth:`~secateurs.budgets.Metric.worth`. The same plan gives the same
        figure.
        """
        start = time.perf_counter()
        small = apply(self.module, plan, self.example, check=False).eval()
        if self.repair == "least-squares":
            with suppress(DataError, StructureError):  # a network that cannot be refitted is judged as it is
                least_squares(self.module, small, plan, self.refitted, settings=SETTINGS, lane=self.lane)
        mode = Mode(self.precision, "channels_last")
        small = arrange_weights(small, torch.channels_last)
        device = next((parameter.device for parameter in small.parameters()), torch.device("cpu"))
        with mode.autocast(device):
            if self.repair != "none":
                reestimate(small, self.calibration)
                _correct_means(small, self.calibration, self._targets(plan))
            fold_in_place(small, self.norms)
            validation = self.validation if images is None else self.validation.take(images)
            found = evaluate(small, validation, self.task, batch=_even_batch(len(validation)))
        details = {"loss": found.loss, **({} if found.answers is None else {"top5": found.top5})}
        return Evaluation(self.task.measured.worth(found.value), time.perf_counter() - start, details)

    @property
    def refitted(self) -> list[Inputs]:
        """The calibration images in four batches, and what is left over: a quarter chooses the damping."""
        images = joined(self.calibration)
        images = of_first(images, min(len(images), refit_count(images)))
        return split(images, max(1, len(images) // 4))

    @cached_property
    def lane(self) -> Lane | None:
        """The whole network, exported for the refit; None where that works on copies."""
        return Lane(self.module, self.refitted[0]) if workable(self.module) else None

    def limit_threads(self, threads: int) -> None:
        """Use so many CPU threads from now on, in the whole process."""
        torch.set_num_threads(threads)

    def use_gpu(self) -> None:
        """Judge on this process's first GPU from now on."""
        self.module.to("cuda")
        self.__dict__.pop("lane", None)
        object.__setattr__(self, "means", {name: mean.to("cuda") for name, mean in self.means.items()})

    def __getstate__(self) -> dict[str, Any]:
        held = dict(self.__dict__)
        held.pop("lane", None)
        if self.source:
            held["module"] = {name: tensor.cpu() for name, tensor in self.module.state_dict().items()}
        return held

    def __setstate__(self, held: dict[str, Any]) -> None:
        self.__dict__.update(held)
        if self.source:
            self.__dict__["module"] = _rebuilt(self.source, held["module"])

    def _targets(self, plan: Plan) -> dict[str, Tensor]:
        """Mean outputs that the cut network's layers should have."""
        targets = {}
        for name, mean in self.means.items():
            kept = plan.slices.get(f"{name}.bias", {}).get(0)
            targets[name] = mean if kept is None else mean[torch.tensor(kept, device=mean.device)]
        return targets


def _rebuilt(source: Mapping[str, Any], state: Mapping[str, Tensor]) -> nn.Module:
    """The network that ``source`` describes with these weights, through a file as if it were loaded for the first time
    (a built-in network's variant follows from its weights)."""
    with tempfile.TemporaryDirectory(prefix="secateurs-judge-") as folder:
        path = Path(folder) / "weights.safetensors"
        save_file({name: tensor.contiguous().clone() for name, tensor in state.items()}, path)
        return rebuild({**source, "weights_sha256": None}, weights=path).module


def _even_batch(images: int) -> int:
    """The largest batch up to :data:`BATCH` that leaves no smaller last one, for which kernels would be
    made ready once more; where there is none of half that size, the full one."""
    even = [size for size in range(BATCH // 2, BATCH + 1) if images % size == 0]
    return max(even, default=BATCH)


def _biased(module: nn.Module) -> dict[str, nn.Module]:
    """Convolutions and linear layers with a bias, by name."""
    kinds = (nn.modules.conv._ConvNd, nn.Linear)
    return {
        name: child for name, child in module.named_modules() if isinstance(child, kinds) and child.bias is not None
    }


def _channel_mean(layer: nn.Module, output: Tensor) -> Tensor:
    channel = output.ndim - 1 if isinstance(layer, nn.Linear) else 1
    return output.float().mean(dim=[dim for dim in range(output.ndim) if dim != channel])


def mean_outputs(module: nn.Module, batches: Sequence[Inputs]) -> dict[str, Tensor]:
    """Mean output per channel of every layer with a bias that runs once per pass, over ``batches``."""
    total: dict[str, list[Tensor]] = {}

    def watch(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        return lambda layer, _, output: total.setdefault(name, []).append(_channel_mean(layer, output))

    handles = [layer.register_forward_hook(watch(name)) for name, layer in _biased(module).items()]
    device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
    try:
        with torch.no_grad():
            for batch in batches:
                called(module, on(batch, device))
    finally:
        for handle in handles:
            handle.remove()
    return {name: torch.stack(found).mean(0) for name, found in total.items() if len(found) == len(batches)}


def _correct_means(small: nn.Module, batches: Sequence[Inputs], targets: Mapping[str, Tensor]) -> None:
    """Shift every bias so that the layer's mean output is the target, front to back in one pass over one batch.

    The one-pass relative of :func:`secateurs.recover.refit.least_squares.correct_bias`, quick enough for every
    candidate: a layer's output is corrected on its way, so that the layers behind it see what they will see.
    """
    if not targets:
        return

    def shift(target: Tensor) -> Callable[[nn.Module, Any, Tensor], Tensor]:
        def correct(layer: nn.Module, _: Any, output: Tensor) -> Tensor:
            missing = target - _channel_mean(layer, output)
            assert isinstance(layer.bias, nn.Parameter)
            layer.bias.data += missing.to(layer.bias.dtype)
            shape = [1] * output.ndim
            shape[output.ndim - 1 if isinstance(layer, nn.Linear) else 1] = -1
            return output + missing.view(shape).to(output.dtype)

        return correct

    handles = [
        layer.register_forward_hook(shift(targets[name])) for name, layer in _biased(small).items() if name in targets
    ]
    device = next((parameter.device for parameter in small.parameters()), torch.device("cpu"))
    try:
        with torch.no_grad():
            called(small, on(joined(batches), device))
    finally:
        for handle in handles:
            handle.remove()
