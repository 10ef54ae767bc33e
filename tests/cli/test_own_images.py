"""A factory and a folder of images of one's own, as the README has it: sizes, pixels, chance."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from typer.testing import CliRunner, Result

import secateurs as sc
from secateurs.cli.app import app

FACTORY = """
import torch
from torch import nn
def make_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 12, 3, padding=1), nn.ReLU(),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 3))
"""
SHADES = (60, 120, 180)


def call(*words: str | Path) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def said(result: Result) -> str:
    return " ".join((result.stderr + result.stdout).split())


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three shades of grey on 10x14 pixels, and a network trained on them with mean 0.5 and standard deviation 0.1."""
    root = tmp_path_factory.mktemp("own")
    (root / "net.py").write_text(FACTORY)
    rng = np.random.default_rng(0)
    images, labels = [], []
    for label, shade in enumerate(SHADES):
        for number in range(45):
            pixels = np.clip(rng.normal(shade, 12, (10, 14, 3)), 0, 255).astype(np.uint8)
            folder = root / "photos" / ("test" if number < 15 else "train") / f"shade{label}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / f"{number}.png")
            images.append(pixels)
            labels.append(label)
    space: dict[str, object] = {}
    exec(FACTORY, space)
    net: nn.Module = space["make_net"]()  # type: ignore[operator]
    inputs = (torch.tensor(np.stack(images)).permute(0, 3, 1, 2) / 255 - 0.5) / 0.1
    optimizer = torch.optim.Adam(net.parameters(), 0.02)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(inputs), torch.tensor(labels)).backward()
        optimizer.step()
    save_file(net.state_dict(), root / "net.safetensors")
    return root


@pytest.fixture(scope="module")
def words(place: Path) -> tuple[str, ...]:
    return (
        f"{place}/net.py:make_net",
        "--weights",
        f"{place}/net.safetensors",
        "--data",
        f"imagefolder:{place}/photos",
    )


def test_the_size_comes_from_the_images(words: tuple[str, ...], place: Path, fake_target: str) -> None:
    result = call("doctor", *words, "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["input_shape"] == [1, 3, 10, 14]
    assert "Input 1,3,10,14, as the images of imagefolder:" in said(result)
    assert call("profile", *words, "--target", fake_target).exit_code == 0
    plan = place / "plan.json"
    made = call("plan", *words, "--normalize", "0.5/0.1", "--macs", "50%", "--criterion", "l2", "-o", plan)
    assert made.exit_code == 0, made.stderr
    assert sc.Plan.load(plan).example_shapes[0][0][1:] == [3, 10, 14]
    # a plan knows the shape, too
    for more in ((), words[3:]):
        out = place / "small.onnx"
        assert call("export", words[0], plan, "-o", out, *more).exit_code == 0
        assert call("apply", words[0], plan, "-o", place / "small.safetensors", *more).exit_code == 0
        assert call("compare", words[0], plan, "--target", fake_target, *more).exit_code == 0
    assert "does not say its input size" in said(call("doctor", words[0]))


def test_pixels_are_not_guessed(words: tuple[str, ...], run_folder: Path) -> None:
    result = call("prune", *words, "--latency", "60%", "-o", run_folder)
    assert result.exit_code == 1
    assert "does not say how pixels reach it" in said(result)
    assert not run_folder.exists()
    assert "does not say how pixels reach it" in said(call("plan", *words, "--macs", "60%", "-o", run_folder))


def test_a_network_at_chance_stops_before_anything_is_measured(
    words: tuple[str, ...], run_folder: Path, fake_target: str
) -> None:
    job = (*words, "--normalize", "0-255", "--target", fake_target, "--criterion", "l2", "-o", run_folder)
    result = call("prune", *job, "--latency", "80%", "--epochs", "0")
    assert result.exit_code == 1
    assert "at chance" in said(result)
    assert "normalisation (now 0-255" in said(result)
    assert "profile" not in said(result)
    assert not run_folder.exists()
    assert "at chance" in said(call("plan", *words, "--normalize", "0-255", "--macs", "60%", "-o", run_folder))
    result = call("prune", *job, "--latency", "80%", "--epochs", "0", "--allow-chance", "--json")
    assert result.exit_code == 0, result.stderr
    assert any("at chance" in note for note in json.loads(result.stdout)["notes"])
    assert call("prune", "--resume", "-o", run_folder).exit_code == 0


def test_a_front_stops_too(words: tuple[str, ...], run_folder: Path, fake_target: str) -> None:
    pytest.importorskip("pymoo")
    result = call("front", *words, "--normalize", "0-255", "--target", fake_target, "-o", run_folder)
    assert result.exit_code == 1
    assert "at chance" in said(result)


def test_the_right_normalisation_says_no_word(words: tuple[str, ...], run_folder: Path, fake_target: str) -> None:
    job = ("--normalize", "0.5/0.1", "--target", fake_target, "--latency", "80%", "--criterion", "l2", "--epochs", "0")
    result = call("prune", *words, *job, "-o", run_folder, "--json")
    assert result.exit_code == 0, result.stderr
    assert "normalize" not in said(result).partition('"command"')[0]
    assert not any("pixel" in note or "chance" in note for note in json.loads(result.stdout)["notes"])
    assert json.loads(result.stdout)["dense"]["accuracy"] > 0.9
