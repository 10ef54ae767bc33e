from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from secateurs import models
from secateurs.errors import DataError
from secateurs.models.cifar_resnet import CifarResNet
from secateurs.models.mobilenet_v1 import MobileNetV1
from secateurs.models.mobilenet_v2 import MobileNetV2


def test_round_trip_and_deduction(tmp_path: Path) -> None:
    module = CifarResNet(20, classes=4, width=0.5, channels=1).eval()
    models.save_weights(module, tmp_path / "w.safetensors")
    loaded = models.load("cifar-resnet20", weights=tmp_path / "w.safetensors")
    assert loaded.input_shape == (1, 32, 32)
    x = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        assert torch.equal(loaded.module(x), module(x))
    assert any("width=0.5" in note for note in loaded.notes)


@pytest.mark.parametrize(("network", "name"), [(MobileNetV1, "mobilenet-v1"), (MobileNetV2, "mobilenet-v2")])
@pytest.mark.parametrize("batch_norm", [True, False])
@pytest.mark.parametrize("width", [0.25, 0.5, 1.4])
def test_mobilenet_variant_is_deduced(
    tmp_path: Path, network: type[MobileNetV1], name: str, batch_norm: bool, width: float
) -> None:
    module = network(classes=5, width=width, batch_norm=batch_norm, same=not batch_norm).eval()
    models.save_weights(module, tmp_path / "w.safetensors")
    loaded = models.load(f"{name}?size=64", weights=tmp_path / "w.safetensors")
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(loaded.module(x), module(x))


def test_metadata_decides_the_padding(tmp_path: Path) -> None:
    module = MobileNetV1(classes=3, width=0.25, batch_norm=False, same=True)
    for padding, expected in (("TensorFlow SAME", True), ("symmetric", False)):
        models.save_weights(module, tmp_path / "w.safetensors", {"padding": padding})
        assert models.load("mobilenet-v1?size=32", weights=tmp_path / "w.safetensors").module.same is expected
    assert models.load("mobilenet-v1?size=32&same=true", weights=tmp_path / "w.safetensors").module.same


def test_pth_state_dicts(tmp_path: Path) -> None:
    module = CifarResNet(20)
    for held in (
        module.state_dict(),
        {"state_dict": module.state_dict()},
        {"model": {f"module.{key}": value for key, value in module.state_dict().items()}},
    ):
        torch.save(held, tmp_path / "w.pth")
        loaded = models.load("cifar-resnet20", weights=tmp_path / "w.pth")
        assert torch.equal(loaded.module.conv1.weight, module.conv1.weight)


def test_missing_batch_counts_are_no_mistake(tmp_path: Path) -> None:
    state = {key: value for key, value in CifarResNet(20).state_dict().items() if not key.endswith("tracked")}
    save_file(state, tmp_path / "w.safetensors")
    assert models.load("cifar-resnet20", weights=tmp_path / "w.safetensors").classes == 10


def test_whole_models_are_refused(tmp_path: Path) -> None:
    torch.save(CifarResNet(20), tmp_path / "whole.pth")
    with pytest.raises(DataError, match="refused"):
        models.load("cifar-resnet20", weights=tmp_path / "whole.pth")


def test_pickled_code_never_runs(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (str(tmp_path / "ran"),))

    for name in ("evil.pth", "evil.pt"):
        (tmp_path / name).write_bytes(pickle.dumps(Evil()))
        with pytest.raises(DataError, match="cannot be read as plain tensors"):
            models.load("cifar-resnet20", weights=tmp_path / name)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("missing.safetensors", None, "does not exist"),
        ("bad.safetensors", b"not a file of tensors", "not a readable safetensors file"),
        ("bad.dat", b"", "has the ending .dat"),
        ("bad.pth", b"", "cannot be read"),
        ("bad.pth", b"\x80\x04", "cannot be read"),
        ("bad.pth", b"hello", "no file that torch.save wrote"),
        ("bad.pt", b"PK\x03\x04 and no more", "is cut off"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, content: bytes | None, part: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=part):
        models.load("cifar-resnet20", weights=tmp_path / name)


def test_a_list_in_a_pth_is_no_state_dict(tmp_path: Path) -> None:
    torch.save([torch.ones(1)], tmp_path / "w.pth")
    with pytest.raises(DataError, match="no state dict"):
        models.load("cifar-resnet20", weights=tmp_path / "w.pth")


def test_wrong_weights_name_every_difference(tmp_path: Path) -> None:
    state = CifarResNet(20).state_dict()
    del state["layer1.0.conv1.weight"]
    state["surplus"] = torch.ones(1)
    state["layer1.0.conv2.weight"] = torch.ones(16, 8, 3, 3)
    state["layer1.1.bn1.bias"] = torch.ones(16, dtype=torch.int64)
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(DataError) as caught:
        models.load("cifar-resnet20", weights=tmp_path / "w.safetensors")
    message = str(caught.value)
    for part in (
        "1 missing: layer1.0.conv1.weight",
        "1 not in the model: surplus",
        "layer1.0.conv2.weight has 16x8x3x3 but the model has 16x16x3x3",
        "layer1.1.bn1.bias is torch.int64",
        "w.safetensors",
    ):
        assert part in message


def test_weights_of_another_depth(tmp_path: Path) -> None:
    models.save_weights(CifarResNet(20), tmp_path / "w.safetensors")
    with pytest.raises(DataError, match=r"do not fit cifar-resnet56: \d+ missing: layer1\.3"):
        models.load("cifar-resnet56", weights=tmp_path / "w.safetensors")


def test_nan_weights_are_refused(tmp_path: Path) -> None:
    module = CifarResNet(20)
    with torch.no_grad():
        module.linear.weight[0, 0] = float("nan")
    models.save_weights(module, tmp_path / "w.safetensors")
    with pytest.raises(DataError, match=r"NaN.*linear\.weight"):
        models.load("cifar-resnet20", weights=tmp_path / "w.safetensors")


def test_tied_weights_need_one_entry(tmp_path: Path) -> None:
    class Tied(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = torch.nn.Linear(4, 4, bias=False)
            self.second = torch.nn.Linear(4, 4, bias=False)
            self.second.weight = self.first.weight

    wanted = torch.randn(4, 4)
    save_file({"first.weight": wanted}, tmp_path / "w.safetensors")
    module = Tied()
    models.load_into(module, models.read_weights(tmp_path / "w.safetensors"), "tied")
    assert torch.equal(module.second.weight, wanted)


def test_source_rebuilds_the_network(tmp_path: Path) -> None:
    models.save_weights(CifarResNet(20, width=0.5), tmp_path / "w.safetensors")
    loaded = models.load("cifar-resnet20", weights=tmp_path / "w.safetensors", normalize="0.5/0.25")
    again = models.rebuild(json.loads(json.dumps(loaded.source)))
    assert again.preprocessing == loaded.preprocessing
    assert again.input_shape == loaded.input_shape
    for key, value in loaded.module.state_dict().items():
        assert torch.equal(value, again.module.state_dict()[key])
    moved = tmp_path / "moved.safetensors"
    (tmp_path / "w.safetensors").rename(moved)
    models.rebuild(loaded.source, weights=moved)
    models.save_weights(CifarResNet(20, width=0.5), moved)
    with pytest.raises(DataError, match="has changed"):
        models.rebuild(loaded.source, weights=moved)


def test_random_weights_rebuild_by_seed() -> None:
    loaded = models.load("cifar-resnet20", seed=5)
    again = models.rebuild(loaded.source)
    assert torch.equal(loaded.module.conv1.weight, again.module.conv1.weight)


def test_real_networks(stored: Path) -> None:
    for name, file in {
        "cifar-resnet20": "resnet20_cifar10",
        "cifar-resnet56": "resnet56_cifar10_jpeg",
        "mobilenet-v1?size=128": "mobilenet_v1_0.25_128",
        "mobilenet-v1": "mobilenet_v1_1.0_224",
        "mobilenet-v2": "mobilenet_v2_1.0_224",
    }.items():
        loaded = models.load(name, weights=stored / f"{file}.safetensors")
        assert loaded.classes in (10, 1000)
        if "mobilenet" in name:
            assert loaded.module.same
            assert not loaded.module.batch_norm


class Stranger:
    """No tensor."""


def _saved(kind: str, path: Path) -> None:
    """A file of this kind, as people have them."""
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU())
    state = network.state_dict()
    example = (torch.randn(1, 3, 8, 8),)
    if kind == "whole network":
        torch.save(network, path)
    elif kind == "whole network, old form":
        torch.save(network, path, _use_new_zipfile_serialization=False)
    elif kind == "other objects":
        torch.save({"state_dict": state, "args": Stranger()}, path)
    elif kind == "network in a dict":
        torch.save({"epoch": 3, "model": network}, path)
    elif kind == "torchscript":
        torch.jit.trace(network, example).save(path)
    elif kind == "exported program":
        torch.export.save(torch.export.export(network, example), path.with_suffix(".pt2"))
        path.with_suffix(".pt2").rename(path)
    elif kind == "safetensors":
        save_file(state, path)
    elif kind == "cut off":
        torch.save(state, path)
        path.write_bytes(path.read_bytes()[:300])
    elif kind == "pointer":
        path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    elif kind == "page":
        path.write_text("\n<!doctype html><html>404</html>")
    elif kind == "archive":
        np.savez(path.with_suffix(".npz"), a=np.zeros(3))
        path.with_suffix(".npz").rename(path)


@pytest.mark.parametrize(
    ("kind", "parts"),
    [
        ("whole network", ("whole pickled object of class torch.nn.modules.container.Sequential", ".state_dict(), '")),
        ("whole network, old form", ("whole pickled object of class torch.nn", ".state_dict(), '")),
        ("other objects", ("other Python objects beside tensors", "Stranger", "['state_dict'], '")),
        ("network in a dict", ("torch.nn.modules", "['model'].state_dict(), '")),
        ("torchscript", ("TorchScript program", "torch.jit.load", ".state_dict(), '")),
        ("exported program", ("exported program", "torch.export.load")),
        ("safetensors", ("holds safetensors", "ending .safetensors")),
        ("cut off", ("cut off", "Copy it again")),
        ("pointer", ("Git LFS pointer", "git lfs pull")),
        ("page", ("web page",)),
        ("archive", ("archive of a.npy",)),
    ],
)
def test_a_refused_file_is_described(tmp_path: Path, kind: str, parts: tuple[str, ...]) -> None:
    """What it is and how to save a safe one, in whole sentences, without terminal codes; nothing of it is run."""
    path = tmp_path / "w.pth"
    _saved(kind, path)
    with pytest.raises(DataError) as caught:
        models.read_weights(path)
    message = str(caught.value)
    assert "\x1b" not in message
    assert "options" not in message
    for part in parts:
        assert part in message


@pytest.mark.parametrize("kind", ["whole network", "other objects", "network in a dict", "torchscript"])
def test_the_advice_works(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The line that the message gives writes a file that is then read."""
    monkeypatch.setitem(sys.modules, "test_weights", sys.modules[__name__])
    path = tmp_path / "w.pth"
    _saved(kind, path)
    with pytest.raises(DataError) as caught:
        models.read_weights(path)
    code = str(caught.value).partition("once: ")[2]
    exec(code, {})
    assert set(models.read_weights(tmp_path / "w.safetensors").tensors) == {"0.weight", "0.bias"}
