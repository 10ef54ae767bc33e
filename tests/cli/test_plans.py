"""Plans from the command line: budgets without a runtime, differences, and every format of the pruned network."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from typer.testing import CliRunner, Result

import secateurs as sc
from secateurs.cli.app import app
from secateurs.cli.compare import _labels
from secateurs.models import load


def call(*words: str | Path) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two plans of one network, by multiply-adds and by file size: none needs a runtime."""
    folder = tmp_path_factory.mktemp("plans")
    found = []
    for budget, words in {"half": ("--macs", "50%"), "small": ("--macs", "60%", "--file-size", "30%")}.items():
        path = folder / f"{budget}.json"
        result = call("plan", "digits-resnet", *words, "--criterion", "l2", "--no-blocks", "-o", path, "--json")
        assert result.exit_code == 0, result.stderr
        told = json.loads(result.stdout)
        assert told["macs"] <= 0.6 * told["dense_macs"]
        assert told["dense_ms"] is None
        found.append(path)
    return found


def test_the_plan_is_within_its_budgets(plans: list[Path]) -> None:
    plan = sc.Plan.load(plans[1])
    assert plan.provenance["budget"] == "file size 30%, macs 60%"
    small = sc.apply(load("digits-resnet").module, plan)
    dense = sum(parameter.numel() for parameter in load("digits-resnet").module.parameters())
    assert sum(parameter.numel() for parameter in small.parameters()) <= 0.3 * dense


def test_a_budget_out_of_reach_exits_3_with_figures(tmp_path: Path) -> None:
    words = ("--file-size", "0.1%", "--min-width", "4", "--no-blocks")
    result = call("plan", "digits-resnet", *words, "-o", tmp_path / "plan.json")
    assert result.exit_code == 3
    assert "smallest legal network" in result.stderr
    assert "minimum width" in result.stderr
    assert not (tmp_path / "plan.json").exists()


@pytest.mark.parametrize("words", [("--macs", "20MB"), ("--memory", "0"), ("--file-size", "100%")])
def test_a_budget_that_is_none(words: tuple[str, str], tmp_path: Path) -> None:
    result = call("plan", "digits-resnet", *words, "-o", tmp_path / "plan.json")
    assert result.exit_code == 1
    assert words[1] in result.stderr.strip().splitlines()[-1]


def test_min_width_barrier_and_keep_reach_the_plan(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    words = (
        "--macs",
        "50%",
        "--criterion",
        "l2",
        "--min-width",
        "8",
        "--keep",
        "layer3.*",
        "--barrier",
        "layer2.0.conv1",
    )
    result = call("plan", "digits-resnet", *words, "-o", path)
    assert result.exit_code == 0, result.stderr
    plan = sc.Plan.load(path)
    assert min(len(kept) for kept in plan.groups.values() if kept) >= 8
    assert not [name for name in plan.removed() if name.startswith("layer3.") and name.endswith("weight")]
    assert 0 not in plan.removed().get("layer2.0.conv1.weight", {})


def test_two_plans_are_told_apart(plans: list[Path]) -> None:
    found = json.loads(call("compare", *plans, "--json").stdout)
    assert found["same_network"]
    first, second = (sc.Plan.load(path) for path in plans)
    assert set(found["groups"]) == set(first.diff(second)["groups"])
    name, group = next(iter(found["groups"].items()))
    assert group["kept"] == [len(first.groups[name]), len(second.groups[name])]
    assert name in call("compare", *plans).stdout
    same = call("compare", plans[0], plans[0])
    assert "0 groups differ" in same.stdout
    three = call("compare", *plans, plans[0])
    assert three.exit_code == 1
    assert "MODEL" in three.stderr


def test_every_format_computes_the_same(plans: list[Path], tmp_path: Path) -> None:
    loaded = load("digits-resnet", seed=0)
    small = sc.apply(loaded.module, sc.Plan.load(plans[0]), loaded.example()).eval()
    image = torch.randn(1, *loaded.input_shape)
    with torch.no_grad():
        wanted = small(image).numpy()
    for name, words in {
        "a.onnx": (),
        "a.pt2": (),
        "b.bin.pt2": ("--to", "torch"),
        "c.xml": ("--format", "openvino"),
    }.items():
        result = call("export", "digits-resnet", plans[0], "-o", tmp_path / name, *words, "--json")
        assert result.exit_code == 0, (name, result.stderr)
        assert json.loads(result.stdout)["max_rel_error"] < 1e-4
    session = onnxruntime.InferenceSession(tmp_path / "a.onnx", providers=["CPUExecutionProvider"])
    program = torch.export.load(tmp_path / "a.pt2").module()
    openvino = pytest.importorskip("openvino")
    compiled = openvino.compile_model(str(tmp_path / "c.xml"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    scale = float(np.abs(wanted).max())
    for found in (
        session.run(None, {session.get_inputs()[0].name: image.numpy()})[0],
        program(image).detach().numpy(),
        next(iter(compiled([image.numpy()]).values())),
    ):
        assert float(np.abs(found - wanted).max()) <= 1e-4 * scale


def test_a_format_that_is_none(plans: list[Path], tmp_path: Path) -> None:
    result = call("export", "digits-resnet", plans[0], "-o", tmp_path / "network.tflite")
    assert result.exit_code == 1
    assert "onnx, pt2" in result.stderr
    result = call("export", "digits-resnet", plans[0], "-o", tmp_path / "network.onnx", "--to", "coreml")
    assert "'coreml'" in result.stderr


def test_the_same_plan_twice_is_measured_twice() -> None:
    assert _labels([Path("a"), Path("b"), Path("a"), Path("a")]) == ["a", "b", "a #2", "a #3"]
    assert _labels([Path("dense")]) == ["dense #2"]
