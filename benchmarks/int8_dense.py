"""What quantising costs the dense networks: accuracy in float and in int8, by ranges, bits of weights, and biases.

    scripts/bench int8_dense [mobilenet-v1 resnet20 ... --ranges minmax,percentile,entropy,average,nncf]

One row per network and way. Ways are compared on images of the training file that neither calibrate nor train
(*validation*), and the default was chosen by them; the test images only report. ``arithmetic``: ``int8`` is what the
runtime does; ``float`` runs the same quantised file with integers as float numbers, so that eight bits can be judged
on processors whose int8 sums overflow. Accuracy is no timing, so that other work on the machine does no harm.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnxruntime.quantization import CalibrationMethod, calibrate
from result_rows import append

from secateurs.data import open_data
from secateurs.export.bias_correction import corrected
from secateurs.export.onnx import to_model
from secateurs.export.quantised import ENOUGH, Ranges, quantised, ranges_of
from secateurs.latency.targets._base import instructions, overflows, processor_name
from secateurs.models import load
from secateurs.provenance import versions

ROWS = Path(__file__).parent / "results" / "int8_dense.csv"
BATCH = 8
IMAGENETTE, CIFAR = ("imagenette224_train", "imagenette224_val"), ("cifar10_jpeg_train", "cifar10_jpeg_test")
NETWORKS = {
    "resnet20": ("cifar-resnet20", "resnet20_cifar10_jpeg", CIFAR),
    "resnet56": ("cifar-resnet56", "resnet56_cifar10_jpeg", CIFAR),
    "mobilenet-v1-0.25-128": ("mobilenet-v1?width=0.25&size=128", "mobilenet_v1_0.25_128", IMAGENETTE),
    "mobilenet-v1": ("mobilenet-v1", "mobilenet_v1_1.0_224", IMAGENETTE),
    "mobilenet-v2": ("mobilenet-v2", "mobilenet_v2_1.0_224", IMAGENETTE),
}
METHODS = {
    "average": (CalibrationMethod.MinMax, {"moving_average": True, "averaging_constant": 0.01}),
    "percentile": (CalibrationMethod.Percentile, {"percentile": 99.99}),
    "entropy": (CalibrationMethod.Entropy, {}),
}
"""What ONNX Runtime offers beside least and greatest value."""


@dataclass(frozen=True)
class Judged:
    """Images [n, 3, h, w] and labels of two sets, and the classes that occur."""

    images: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]
    classes: np.ndarray | None


def main() -> None:
    """Appends a row for every network and way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=list(NETWORKS))
    parser.add_argument("--ranges", default="minmax")
    parser.add_argument("--bits", default="7,8")
    parser.add_argument("--no-float", action="store_true", help="the float network's row is there already")
    parser.add_argument("--validation", type=int, default=500)
    parser.add_argument("--test", type=int, default=1000)
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data")
    given = parser.parse_args()
    torch.set_num_threads(1)
    for name in given.networks:
        text, weights, (train, test) = NETWORKS[name]
        loaded = load(text, weights=given.data / f"{weights}.safetensors")
        where = f"parquet:{given.data / train}.parquet,{given.data / test}.parquet"
        data = open_data(where, loaded, seed=0, classes="present" if train == IMAGENETTE[0] else "all")
        kept = data.classes
        calibration = arrays(data.calibration, ENOUGH)[0]
        judged = {"validation": arrays(data.validation, given.validation), "test": arrays(data.test, given.test)}
        sets = Judged(
            {part: images for part, (images, _) in judged.items()},
            {part: labels for part, (_, labels) in judged.items()},
            None if kept is None else np.array(sorted(kept)),
        )
        model = to_model(loaded.module.eval(), loaded.example(), batch=BATCH)
        facts = {"network": name, "data": test, "calibration": len(calibration)}
        if not given.no_float:
            record({**facts, "ranges": "", "bits": 32, "biases": "", "arithmetic": "float"}, model, sets)
        for method in given.ranges.split(","):
            if method == "nncf":
                way = {"ranges": method, "bits": 7, "biases": "corrected", "arithmetic": "int8"}
                record({**facts, **way}, by_nncf(model, calibration), sets)
                continue
            ranges = found_ranges(model, calibration, method)
            for bits in map(int, given.bits.split(",")):
                made = quantised(model, ranges, seven_bits=bits == 7)
                mended = quantised(corrected(model, made, batches(calibration)), ranges, seven_bits=bits == 7)
                saturates = bits == 8 and overflows("x86_64", instructions())
                for biases, file in (("as they are", made), ("corrected", mended)):
                    way = {"ranges": method, "bits": bits, "biases": biases}
                    record({**facts, **way, "arithmetic": "float" if saturates else "int8"}, file, sets)


def arrays(images: object, count: int) -> tuple[np.ndarray, np.ndarray]:
    """So many images and their labels; whole batches."""
    parts = [(x.numpy(), np.asarray(y)) for x, y in images.take(count // BATCH * BATCH).batches(BATCH)]  # type: ignore[attr-defined]
    return np.concatenate([x for x, _ in parts]), np.concatenate([y for _, y in parts])


def batches(images: np.ndarray) -> Iterator[list[np.ndarray]]:
    """As the file takes them."""
    return ([images[start : start + BATCH]] for start in range(0, len(images) - BATCH + 1, BATCH))


def found_ranges(model: onnx.ModelProto, images: np.ndarray, method: str) -> Ranges:
    """Every tensor's range by one of ONNX Runtime's calibrators."""
    if method == "minmax":
        return ranges_of(model, batches(images))
    kind, options = METHODS[method]
    name = model.graph.input[0].name
    with tempfile.TemporaryDirectory() as folder:
        file, augmented = Path(folder) / "float.onnx", str(Path(folder) / "augmented.onnx")
        onnx.save(onnx.shape_inference.infer_shapes(model), file)
        found = calibrate.create_calibrator(
            file, augmented_model_path=augmented, calibrate_method=kind, extra_options=options
        )
        for one in batches(images):  # all at once would hold every tensor of every image
            found.collect_data(iter([{name: one[0]}]))
        ends = found.compute_data()
    return {tensor: tuple(float(np.min(end)) for end in data.range_value) for tensor, data in ends.items()}  # type: ignore[misc]


def by_nncf(model: onnx.ModelProto, images: np.ndarray) -> onnx.ModelProto:
    """The file by NNCF (``pip install nncf``): its own ranges, seven bits, its bias correction."""
    import nncf
    from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters, OverflowFix

    name = model.graph.input[0].name
    found: onnx.ModelProto = nncf.quantize(
        model,
        nncf.Dataset([{name: one[0]} for one in batches(images)]),
        subset_size=len(images) // BATCH,
        preset=nncf.QuantizationPreset.MIXED,
        advanced_parameters=AdvancedQuantizationParameters(overflow_fix=OverflowFix.ENABLE),
    )
    return found


def record(facts: dict[str, object], model: onnx.ModelProto, sets: Judged) -> None:
    """Judge a file and append its row."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    if facts["arithmetic"] == "float":
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    row = dict(facts)
    for part, images in sets.images.items():
        logits = np.concatenate(
            [session.run(None, {session.get_inputs()[0].name: one[0]})[0] for one in batches(images)]
        )
        labels = sets.labels[part]
        among = logits if sets.classes is None else logits[:, sets.classes]
        chosen = among.argmax(1) if sets.classes is None else sets.classes[among.argmax(1)]
        row |= {
            f"{part}_images": len(labels),
            f"{part}_accuracy": round(float((chosen == labels).mean()), 4),
            f"{part}_accuracy_all_classes": round(float((logits.argmax(1) == labels).mean()), 4),
        }
    row |= {"processor": processor_name(), "code": code(), "onnxruntime": versions()["onnxruntime"]}
    append(row, ROWS)
    print(row, flush=True)


def code() -> str:
    """The commit that was measured."""
    told = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=ROWS.parent)
    return told.stdout.strip()


if __name__ == "__main__":
    main()
