"""Real networks of many tasks through the front door: 60 % of the latency, metric dense, repaired and trained.

The weights and samples are those of the data folder (``SECATEURS_DATA``, by default ``shared/data`` beside the
checkout); nothing of it is kept here. One row per network::

    scripts/bench real_tasks                    # all of them
    scripts/bench real_tasks kwt1 ds_cnn --epochs 3
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent.parent
ROWS = ROOT / "benchmarks" / "results" / "real_tasks.csv"
sys.path[:0] = [str(ROOT / place) for place in ("benchmarks/real", "examples", "tests/jobs")]

import audio  # noqa: E402
import espnet  # noqa: E402
import pictures  # noqa: E402
import yolox_nano  # noqa: E402
from result_rows import append  # noqa: E402

import secateurs as sc  # noqa: E402
from secateurs.jobs.settings import Settings  # noqa: E402

Batches = list[tuple[Any, Any]]
COLUMNS = (
    "network", "metric", "dense", "repaired", "trained", "standard_error", "dense_trained", "kept", "latency_ms_dense",
    "latency_ms", "ratio", "within", "parameters", "seconds", "epochs", "seed", "criterion", "test_samples", "target",
    "versions",
)  # fmt: skip


@dataclass(frozen=True)
class Real:
    """One network. ``make``: with its weights; ``example``: its inputs; ``data``: (train, test), or a source's text;
    ``task``: None for labelled images; ``normalize``: of images that are opened here."""

    make: Callable[[Path], nn.Module]
    example: Tensor
    data: Callable[[Path], Any]
    task: Callable[[], Any]
    normalize: str | None = None


def main() -> None:
    """A row per network."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*", default=list(NETWORKS), help="names (default: all)")
    parser.add_argument("--epochs", type=int, default=None, help="of fine-tuning [by the number of samples]")
    parser.add_argument("--latency", default="60%%")
    parser.add_argument("--target", default="onnxruntime-cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--criterion", default=None)
    parser.add_argument("--rows", type=Path, default=ROWS)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    folder = Path(os.environ.get("SECATEURS_DATA", ROOT.parent / "shared" / "data"))
    for name in options.networks:
        row = measured(name, folder, options)
        append(row, options.rows, COLUMNS)
        print("  ".join(f"{key} {row[key]}" for key in COLUMNS[:13]), flush=True)


def measured(name: str, folder: Path, options: argparse.Namespace) -> dict[str, object]:
    """One job."""
    real = NETWORKS[name]
    start = time.monotonic()
    settings = Settings(
        latency=options.latency.replace("%%", "%"),
        target=options.target,
        epochs=options.epochs,
        seed=options.seed,
        criterion=options.criterion,
    )
    with tempfile.TemporaryDirectory() as run:
        result = sc.prune(
            real.make(folder).eval(),
            real.example,
            data=real.data(folder),
            task=real.task(),
            normalize=real.normalize,
            settings=settings,
            output=Path(run) / "run",
        )
    record = result.record
    test, dense_trained = record.test, record.dense_finetuned
    return {
        "network": name,
        "metric": record.metric.name,
        "dense": rounded(record.dense.accuracy),
        "repaired": rounded(record.pruned.accuracy_recalibrated),
        "trained": rounded(record.pruned.accuracy),
        "standard_error": rounded(None if test is None else test.standard_error),
        "dense_trained": rounded(None if dense_trained is None else dense_trained.accuracy),
        "kept": record.kept,
        "latency_ms_dense": rounded(record.dense.latency_ms),
        "latency_ms": rounded(record.pruned.latency_ms),
        "ratio": rounded(record.latency_ratio),
        "within": record.pruned_within_budget,
        "parameters": sum(p.numel() for p in result.module.parameters()),
        "seconds": round(time.monotonic() - start),
        "epochs": record.tuned_epochs,
        "seed": options.seed,
        "criterion": record.criterion,
        "test_samples": None if test is None else test.samples,
        "target": record.target.name,
        "versions": " ".join(f"{key} {value}" for key, value in sorted(record.versions.items())),
    }


def rounded(value: float | None) -> float | None:
    """To four digits behind the point."""
    return None if value is None else round(value, 4)


def loaded(module: nn.Module, file: Path) -> nn.Module:
    """The module with the weights of a file, of which only counts may be missing."""
    missing, unexpected = module.load_state_dict(load_file(file), strict=False)
    lacking = [name for name in missing if not name.endswith("num_batches_tracked")]
    if lacking or unexpected:
        raise SystemExit(f"{file} does not fit: lacks {lacking[:3]}, has {unexpected[:3]}")
    return module


def parted(inputs: Tensor, labels: Tensor, count: int) -> tuple[Batches, Batches]:
    """The first ``count`` samples of a fixed order to calibrate and train with, the others to test."""
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(labels)))
    parts = (order[:count], order[count:])
    return tuple([(inputs[one], labels[one].long()) for one in part.split(64)] for part in parts)  # type: ignore[return-value]


def clips(file: str, key: str, shaped: Callable[[Tensor], Tensor], count: int) -> Callable[[Path], Any]:
    """Recordings of a file."""

    def read(folder: Path) -> Any:
        held = load_file(folder / file)
        return parted(shaped(held[key].float()), held["labels"], count)

    return read


class Parquet(torch.utils.data.Dataset[Any]):
    """Rows of a file with encoded images, made into samples."""

    def __init__(self, file: Path, columns: Sequence[str], made: Callable[[dict[str, Any]], Any]) -> None:
        import pyarrow.parquet

        self.table, self.columns, self.made = pyarrow.parquet.read_table(file, columns=list(columns)), columns, made

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, row: int) -> Any:
        return self.made({name: self.table[name][row].as_py() for name in self.columns})


def bgr(encoded: bytes) -> np.ndarray:
    """float32 [height, width, 3]."""
    return np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))[:, :, ::-1].astype(np.float32)


def camvid_sample(row: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """An image as ESPNet takes it, and class indices."""
    image = (bgr(row["jpeg"]) - np.float32(espnet.MEAN)) / np.float32(espnet.STD) / 255
    label = np.asarray(Image.open(io.BytesIO(row["label"]))).astype(np.int64)
    return torch.from_numpy(image.transpose(2, 0, 1).copy()), torch.from_numpy(label)


def loaders(name: str, columns: Sequence[str], made: Callable[[dict[str, Any]], Any]) -> Callable[[Path], Any]:
    """Training and validation files of a data set."""

    def read(folder: Path) -> Any:
        sets = [Parquet(folder / f"{name}_{part}.parquet", columns, made) for part in ("train", "val")]
        return tuple(torch.utils.data.DataLoader(one, batch_size=4) for one in sets)

    return read


def weights(make: Callable[[], nn.Module], file: str) -> Callable[[Path], nn.Module]:
    """Makes a network with its weights."""
    return lambda folder: loaded(make(), folder / file)


def detector(folder: Path) -> nn.Module:
    """The example's network."""
    os.environ["DETECTOR_DATA"] = str(folder)
    return yolox_nano.make()[0]


NETWORKS: dict[str, Real] = {
    "kwt1": Real(
        weights(audio.KeywordTransformer, "kwt1_speech_commands.safetensors"),
        torch.zeros(1, 98, 40),
        clips("kwt1_speech_commands_samples.safetensors", "mfcc", lambda x: x, 300),
        lambda: "classification",
    ),
    "ds_cnn": Real(
        weights(audio.SeparableKeywords, "mlperf_tiny_kws_dscnn.safetensors"),
        torch.zeros(1, 1, 49, 10),
        clips("mlperf_tiny_kws_samples.safetensors", "mfcc", lambda x: x[:, None], 300),
        lambda: "classification",
    ),
    "wake_word": Real(
        weights(audio.WakeWord, "mlperf_tiny_streaming_wakeword.safetensors"),
        torch.zeros(1, 40, 30),
        clips("mlperf_tiny_streaming_wakeword_samples.safetensors", "features", lambda x: x.transpose(1, 2), 25),
        lambda: "classification",
    ),
    "resnet8": Real(
        weights(pictures.ResNet8, "mlperf_tiny_resnet8_cifar10.safetensors"),
        torch.zeros(1, 3, 32, 32),
        lambda folder: f"parquet:{folder}/cifar10_jpeg_train.parquet,{folder}/cifar10_jpeg_test.parquet",
        lambda: None,
        "0-255",
    ),
    "espnet": Real(
        espnet.trained,
        torch.zeros(1, 3, 360, 480),
        loaders("camvid", ("jpeg", "label"), camvid_sample),
        lambda: sc.task("segmentation", ignore=11),
    ),
    "yolox_nano": Real(
        detector,
        torch.zeros(1, 3, 416, 416),
        lambda folder: yolox_nano.data(),
        yolox_nano.task,
    ),
}


if __name__ == "__main__":
    main()
