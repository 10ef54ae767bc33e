"""Which criterion should choose the units: the same widths under several, after our repair and with statistics alone.

    python benchmarks/selection.py resnet20 75 50     rows; networks and budgets as in accuracy_at_latency.py
    python benchmarks/selection.py table              what the rows say

The widths are those of ``secateurs`` in ``accuracy_at_latency.py`` (its ``match`` comes first). Judged on validation
images, which are a part of the training file: accuracy, and the Kullback-Leibler divergence to the dense network's
answers among the classes of the data. May run under load: nothing is timed.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path

import numpy as np
import torch
from accuracy_at_latency import NETWORKS, OURS, WORK, Bench
from matching import Candidates, chosen
from torch import Tensor, nn

from secateurs.importance.context import Context
from secateurs.importance.scoring import scores
from secateurs.importance.statistics import gather
from secateurs.planning.planner import make_plan
from secateurs.provenance import versions
from secateurs.recover.batch_norm import reestimate
from secateurs.recover.repair import repair
from secateurs.structure import apply

ROWS = Path(__file__).parent / "results" / "selection.csv"
CRITERIA = ("fisher", "obs", "reconstruction")
JUDGED = 1500


def answers(bench: Bench, model: nn.Module) -> Tensor:
    """Logits of the data's classes over the validation images."""
    model.eval()
    with torch.inference_mode():
        found = torch.cat([model(inputs).float() for inputs, _ in bench.data.validation.take(JUDGED).batches(100)])
    return found if bench.data.classes is None else found[:, torch.tensor(bench.data.classes)]


def judged(bench: Bench, model: nn.Module, dense: Tensor) -> tuple[float, float]:
    """Accuracy on the validation images, and divergence from ``dense``, the dense network's answers."""
    found = answers(bench, model)
    labels = torch.as_tensor(bench.data.validation.take(JUDGED).labels)
    if bench.data.classes is not None:
        labels = torch.searchsorted(torch.tensor(bench.data.classes), labels)
    right = float((found.argmax(1) == labels).double().mean())
    apart = nn.functional.kl_div(found.log_softmax(1), dense.log_softmax(1), log_target=True, reduction="batchmean")
    return round(right, 4), round(float(apart), 4)


def run(bench: Bench, budgets: list[int]) -> None:
    """One row per budget and criterion that has none yet."""
    small_images = "cifar" in NETWORKS[bench.name][2]
    batches = list(bench.data.calibration.take(1024 if small_images else 512).batches(64 if small_images else 32))
    context = Context(0, gather(bench.graph, batches, ("outputs", "norms", "moments")))
    found = {name: scores(bench.graph, name, context) for name in CRITERIA}
    spec, model = bench.graph.spec, bench.loaded.module
    dense = answers(bench, model)
    entries = Candidates(WORK / bench.name / "candidates.json").read()
    for budget in budgets:
        entry = chosen(entries, OURS, [OURS], budget)[OURS]
        gone = [spec.blocks[block].name for block in sorted(entry["removed"])]
        inside = {spec.groups[g].name for block in entry["removed"] for g in spec.blocks[block].groups}
        widths = {g.name: w for g, w in zip(spec.groups, entry["widths"], strict=True) if g.name not in inside}
        for name in CRITERIA:
            key = {"network": bench.name, "budget": budget, "units_by": name}
            if any(all(row[part] == str(value) for part, value in key.items()) for row in rows()):
                continue
            plan = make_plan(bench.graph, found[name], widths, gone, {})
            small = apply(model, plan, bench.loaded.example(), check=False).eval()
            reestimate(small, bench.data.calibration.take(bench.images).batches(64))
            bare = judged(bench, small, dense)
            small = apply(model, plan, bench.loaded.example(), check=False).eval()
            repair(model, small, plan, bench.data, images=bench.images)
            whole = judged(bench, small, dense)
            append(
                {
                    **key,
                    "accuracy_statistics": bare[0],
                    "divergence_statistics": bare[1],
                    "accuracy_repaired": whole[0],
                    "divergence_repaired": whole[1],
                    "images": min(JUDGED, len(bench.data.validation)),
                    "versions": json.dumps(versions()),
                }
            )


def rows() -> list[dict[str, str]]:
    """What is measured."""
    if not ROWS.exists():
        return []
    with ROWS.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def append(row: dict[str, object]) -> None:
    """Add one row at the file's end."""
    fresh = not ROWS.exists()
    with ROWS.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(row))
        if fresh:
            writer.writeheader()
        writer.writerow(row)
    print({name: value for name, value in row.items() if name != "versions"}, flush=True)


def table() -> None:
    """Accuracy and divergence of every row, one line per network and budget, means last."""
    held = rows()
    for key in dict.fromkeys((row["network"], row["budget"]) for row in held):
        own = {row["units_by"]: row for row in held if (row["network"], row["budget"]) == key}
        cells = (f"{n} {float(r['accuracy_repaired']):.1%} ({r['divergence_repaired']})" for n, r in own.items())
        print(*key, *cells, sep="  ")
    for name in CRITERIA:
        own_rows = [row for row in held if row["units_by"] == name]
        if own_rows:
            print("mean", name, f"{np.mean([float(row['accuracy_repaired']) for row in own_rows]):.2%}")


def main() -> None:
    """Run one network, or show the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=(*sorted(NETWORKS), "table"))
    parser.add_argument("budgets", nargs="*", type=int, default=[75, 60, 50], help="per cent of dense")
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data")
    given = parser.parse_args()
    if given.network == "table":
        table()
    else:
        run(Bench(given.network, given.data), given.budgets)


if __name__ == "__main__":
    main()
