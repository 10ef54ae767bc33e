"""The options that several verbs share, declared once."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import typer

from secateurs.budgets import check_pairs
from secateurs.errors import DataError, PlanError
from secateurs.latency.targets import DEFAULT_TARGET
from secateurs.planning.elements import SCOPES
from secateurs.search.lap.settings import AGENTS, Agent, LapSettings

MODEL_HELP = (
    "A built-in network (cifar-resnet56, mobilenet-v1 …, see 'secateurs ls models'), timm:NAME, torchvision:NAME, "
    "hf:FOLDER, onnx:FILE, file.py:factory or package.module:factory; options behind a question mark, such as "
    "mobilenet-v1?width=0.25."
)
STRATEGY_HELP = "Search, see 'secateurs ls strategies'."
DATA_HELP = (
    "digits, parquet:TRAIN,TEST, imagefolder:DIR, coco:DIR, yolo:data.yaml, segmentation:DIR, csv:FILE, audio:DIR or "
    "file.py:factory."
)

Model = Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP, show_default=False)]
PlanFile = Annotated[Path, typer.Argument(metavar="PLAN", help="A plan file.", show_default=False)]
Weights = Annotated[
    Path | None, typer.Option("--weights", help="A .safetensors file, or a .pth of tensors only.", show_default=False)
]
Input = Annotated[
    str | None, typer.Option("--input", metavar="1,3,H,W", help="Input shape, where the model does not say it.")
]
Normalize = Annotated[
    str | None,
    typer.Option(
        "--normalize",
        metavar="MEAN/STD",
        help="How pixels reach your own model: imagenet, none (pixel / 255) or MEAN/STD; needed where it gets images.",
    ),
]
AllowChance = Annotated[
    bool, typer.Option("--allow-chance", help="Go on where the dense network is at chance on the test data.")
]
PrecisionMix = Annotated[
    str,
    typer.Option(
        "--precision-mix",
        metavar="off|auto",
        help="On int8 targets: quantise every layer that can be, or leave some in float where that pays.",
    ),
]
Threads = Annotated[int, typer.Option("--threads", min=1, help="Threads of the runtime that is measured.")]
Batch = Annotated[int, typer.Option("--batch", min=1, help="Batch size that is measured.")]


def _seed(value: int) -> int:
    if not 0 <= value < 2**63:
        raise typer.BadParameter(f"{value} is no seed. Give a whole number from 0 on.")
    return value


Seed = Annotated[int, typer.Option("--seed", callback=_seed, help="Seed of everything random.")]
Json = Annotated[bool, typer.Option("--json", help="Result as JSON on stdout.")]
Target = Annotated[str, typer.Option("--target", help="Runtime on a device, see 'secateurs ls targets'.")]
Targets = Annotated[
    list[str] | None,
    typer.Option(
        "--target",
        help="Runtime on a device, see 'secateurs ls targets'; repeatable, each with its own --latency.",
        show_default=DEFAULT_TARGET,
    ),
]
Strategy = Annotated[str, typer.Option("--strategy", help=STRATEGY_HELP)]
Criterion = Annotated[
    str | None, typer.Option("--criterion", help="Scores of units, see 'secateurs ls criteria'; the strategy's own.")
]
Data = Annotated[str | None, typer.Option("--data", metavar="DATA", help=DATA_HELP)]
SizedBy = Annotated[
    str | None,
    typer.Option("--data", metavar="DATA", help="Data that gives the input's shape, where the model does not."),
]
Calibrating = Annotated[
    str | None,
    typer.Option(
        "--data", metavar="DATA", help="Data that int8 files are calibrated with, and that gives the input's shape."
    ),
]
Classes = Annotated[
    str, typer.Option("--classes", metavar="all|present", help="'present': only classes that occur count.")
]
Task = Annotated[
    str | None,
    typer.Option(
        "--task",
        metavar="NAME",
        help="What the network is for: classification, multilabel, segmentation, keypoints, regression, "
        "image-to-image, language-model; options behind a question mark, such as segmentation?ignore=255; or "
        "file.py:factory that returns a secateurs.Task. A factory as --data may bring its own [classification].",
    ),
]
Keep = Annotated[
    list[str] | None, typer.Option("--keep", metavar="PATTERN", help="Parameters or modules to keep whole.")
]
Only = Annotated[
    list[str] | None,
    typer.Option("--only", metavar="PATTERN", help="The only layers or modules to prune; all else stays whole."),
]
Barrier = Annotated[
    list[str] | None, typer.Option("--barrier", metavar="PATTERN", help="Modules not to prune through.")
]
MinWidth = Annotated[
    int | None,
    typer.Option(
        "--min-width", min=1, help="Fewest units that stay in a group [1; a tenth for --criterion l1 and its like]."
    ),
]
RemoveBlocks = Annotated[
    bool, typer.Option("--blocks/--no-blocks", help="Whether whole residual blocks may be removed.")
]
Channels = Annotated[bool, typer.Option("--channels/--no-channels", help="Whether channels may be removed.")]
Elements = Annotated[
    str | None,
    typer.Option(
        "--elements",
        metavar="|".join(SCOPES),
        help="Prune kernel elements too. layer: rectangles, for any target; others for torch-sparse-cpu and fpga.",
    ),
]
Latencies = Annotated[
    list[str] | None,
    typer.Option(
        "--latency",
        metavar="BUDGET",
        help="Of one run: 60% of dense, 3.2ms, or a speed-up such as 2x; on int8 targets also 20%-of-float. The first "
        "is for the first --target, and so on.",
    ),
]
Memory = Annotated[
    str | None,
    typer.Option("--memory", metavar="BUDGET", help="Peak that the network adds to the runtime's process: 20MB, 60%."),
]
FileSize = Annotated[
    str | None, typer.Option("--file-size", metavar="BUDGET", help="Of the deployed file: 10MB, 60% of dense.")
]
Macs = Annotated[str | None, typer.Option("--macs", metavar="BUDGET", help="Multiply-adds at batch 1: 300M, 50%.")]
Multipliers = Annotated[
    str | None, typer.Option("--multipliers", metavar="N", help="Of an FPGA, that the engine may take: 128 [all].")
]
BlockRam = Annotated[
    str | None,
    typer.Option("--block-ram", metavar="SIZE", help="Of an FPGA, that its buffers may take: 900kbit [all]."),
]
MaxLoss = Annotated[
    float | None,
    typer.Option(
        "--max-loss",
        metavar="POINTS",
        help="Instead of --latency: the fastest network that loses at most so much validation accuracy, repaired: 1.0.",
    ),
]
MinAccuracy = Annotated[
    str | None,
    typer.Option(
        "--min-accuracy",
        "--min-metric",
        metavar="SHARE",
        help="Instead of --latency: the fastest network that keeps so much of it: 88%.",
    ),
]
Store = Annotated[
    Path | None,
    typer.Option("--store", help="SQLite file of measurements [the user's cache folder].", show_default=False),
]

Episodes = Annotated[
    int | None,
    typer.Option(
        "--episodes", min=1, help=f"Networks that --strategy lap judges [{LapSettings().episodes}].", show_default=False
    ),
]
WarmStart = Annotated[
    str | None,
    typer.Option("--warm-start", metavar="STRATEGY", help="Plan that --strategy lap starts from, such as knapsack."),
]
AgentKind = Annotated[
    str | None, typer.Option("--agent", metavar="|".join(AGENTS), help=f"Learner of --strategy lap [{Agent().kind}].")
]


def input_shape(text: str | None, batch: int = 1) -> tuple[int, ...] | None:
    """(channels, height, width) from ``3,224,224`` or ``1,3,224,224``; (length,) from ``1,16000``.

    Raises:
        DataError: not two to four sizes above zero, or a batch that --batch contradicts.
    """
    if text is None:
        return None
    sizes = (
        [int(part) for part in re.split(r"[,x]", text)]
        if re.fullmatch(r"[0-9]{1,9}([,x][0-9]{1,9}){1,3}", text.strip())
        else []
    )
    if not sizes or min(sizes) < 1:
        raise DataError(
            f"--input {text!r} is not understood. Give batch, channels, height, width: --input 1,3,224,224."
        )
    if len(sizes) in (2, 4) and sizes[0] not in (1, batch):
        raise DataError(
            f"--input {text!r} has batch {sizes[0]}, but --batch is {batch}. Give the batch with --batch only."
        )
    return tuple(sizes[1:]) if len(sizes) == 2 else tuple(sizes[-3:])


def chosen_for(kind: Any, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a kind among the parameters of a verb, by name, as its job.json spells them."""
    chosen = {item.name: parameters[item.name] for item in fields(kind)}
    if parameters.get("only"):
        chosen["keep"] = kept(chosen["keep"], parameters["only"])
    several = {item.name for item in fields(kind) if isinstance(item.default, tuple)}
    singly = {item.name: item.default for item in fields(kind) if item.name not in several}
    return {
        name: list(value or ()) if name in several else one_or_several(value, singly[name])
        for name, value in chosen.items()
    }


def kept(keep: list[str] | None, only: list[str] | None) -> list[str]:
    """Patterns of what stays whole, as ``trace(keep=)`` takes them."""
    return [*(keep or ()), *(f"!{pattern}" for pattern in only or ())]


def one_or_several(value: Any, default: Any) -> Any:
    """Of an option that may be repeated what was given: the only value, or a list; of others the value."""
    if not isinstance(value, (list, tuple)):
        return default if value is None else value
    return list(value) if len(value) > 1 else next(iter(value), default)


def limited(target: Any, multipliers: str | None, block_ram: str | None) -> Any:
    """The target or targets with what may be used of an FPGA, in the form in which they were given.

    Raises:
        typer.BadParameter: one is no FPGA, or a limit is not understood.
    """
    from secateurs.latency.targets.fpga import with_limits

    limits = {"multipliers": multipliers, "block-ram": block_ram}
    if multipliers is None and block_ram is None:
        return target
    try:
        if isinstance(target, list):
            return [with_limits(one, limits) for one in target]
        return with_limits(target or DEFAULT_TARGET, limits)
    except PlanError as error:
        raise typer.BadParameter(str(error)) from error


def paired(targets: list[str] | None, latencies: list[str] | None) -> tuple[list[str], list[str]]:
    """Targets and the latencies that hold on them, in the order given.

    Raises:
        typer.BadParameter: there is not one latency for every one of several targets.
    """
    on, given = targets or [DEFAULT_TARGET], latencies or []
    try:
        check_pairs(on, given)
    except PlanError as error:
        raise typer.BadParameter(str(error)) from error
    return on, given
