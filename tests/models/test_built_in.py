from __future__ import annotations

import pytest
import torch

from secateurs import models
from secateurs.errors import DataError
from secateurs.models.cifar_resnet import CifarResNet, OptionAShortcut
from secateurs.models.conv_units import SamePad
from secateurs.models.mobilenet_v1 import MobileNetV1
from secateurs.models.mobilenet_v2 import MobileNetV2
from secateurs.models.resnet import ResNet
from secateurs.models.vgg import Vgg16BatchNorm

# published parameter counts (for the CIFAR networks: the README's rounded 0.27 M and 0.85 M)
PARAMETERS = {
    "cifar-resnet20": 269_722,
    "cifar-resnet56": 853_018,
    "cifar-resnet110": 1_727_962,
    "mobilenet-v1": 4_231_976,
    "mobilenet-v2": 3_504_872,
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
}


@pytest.mark.parametrize("name", sorted(PARAMETERS))
def test_parameter_count(name: str) -> None:
    loaded = models.load(f"{name}?size=64" if "cifar" not in name else name)
    assert sum(p.numel() for p in loaded.module.parameters()) == PARAMETERS[name]
    assert not loaded.module.training


def test_vgg_parameter_count() -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in Vgg16BatchNorm().parameters()) == 138_365_992


def test_every_built_in_name_is_listed() -> None:
    assert set(PARAMETERS) | {"cifar-resnet32", "cifar-resnet44", "digits-resnet", "vgg16-bn"} == set(models.names())


def test_cifar_keys() -> None:
    keys = {key for key in CifarResNet(20).state_dict() if not key.endswith(("running_mean", "running_var", "tracked"))}
    expected = {"conv1.weight", "bn1.weight", "bn1.bias", "linear.weight", "linear.bias"}
    for stage in (1, 2, 3):
        for block in range(3):
            for part in ("conv1.weight", "bn1.weight", "bn1.bias", "conv2.weight", "bn2.weight", "bn2.bias"):
                expected.add(f"layer{stage}.{block}.{part}")
    assert keys == expected


def test_shortcut_matches_its_definition() -> None:
    x = torch.randn(2, 16, 9, 7)
    y = OptionAShortcut(2, (8, 8))(x)
    assert y.shape == (2, 32, 5, 4)
    assert torch.equal(y[:, 8:24], x[:, :, ::2, ::2])
    assert y[:, :8].abs().sum() == 0
    assert y[:, 24:].abs().sum() == 0


def test_shortcut_pad_can_be_patched() -> None:
    shortcut = OptionAShortcut(2, (8, 8))
    shortcut.pad = (3, 5)
    assert shortcut(torch.randn(1, 4, 8, 8)).shape == (1, 12, 4, 4)


@pytest.mark.parametrize("size", [8, 15, 32, 40])
def test_cifar_takes_any_size(size: int) -> None:
    assert CifarResNet(8, classes=7).eval()(torch.randn(2, 3, size, size)).shape == (2, 7)


@pytest.mark.parametrize("length", range(3, 17))
@pytest.mark.parametrize(("kernel", "stride"), [(3, 2), (3, 1), (1, 2), (5, 3)])
def test_same_padding_follows_tensorflow(length: int, kernel: int, stride: int) -> None:
    padded = SamePad(kernel, stride)(torch.ones(1, 1, length, length))
    outputs = -(-length // stride)
    total = max((outputs - 1) * stride + kernel - length, 0)
    assert padded.shape[-1] == length + total
    # the smaller half comes first
    assert torch.equal(padded[0, 0, padded.shape[-2] // 2, : total // 2], torch.zeros(total // 2))
    assert (padded.shape[-1] - kernel) // stride + 1 == outputs


def test_same_padding_on_even_sizes_pads_right_and_bottom_only() -> None:
    x = torch.randn(1, 2, 6, 6)
    assert torch.equal(SamePad(3, 2)(x), torch.nn.functional.pad(x, (0, 1, 0, 1)))


@pytest.mark.parametrize("network", [MobileNetV1, MobileNetV2])
@pytest.mark.parametrize("batch_norm", [True, False])
@pytest.mark.parametrize("same", [True, False])
def test_mobilenet_variants_run(network: type[MobileNetV1], batch_norm: bool, same: bool) -> None:
    module = network(classes=5, width=0.25, batch_norm=batch_norm, same=same).eval()
    assert module(torch.randn(1, 3, 64, 64)).shape == (1, 5)
    has_norm = any(isinstance(child, torch.nn.BatchNorm2d) for child in module.modules())
    assert has_norm is batch_norm
    first = module.conv0 if network is MobileNetV1 else module.stem
    assert (first.bias is None) is batch_norm


def test_resnet50_has_the_usual_places() -> None:
    with torch.device("meta"):
        keys = set(ResNet(50).state_dict())
    assert {"layer1.0.downsample.0.weight", "layer4.2.conv3.weight", "layer3.5.bn2.running_var", "fc.bias"} <= keys


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("nope", "Unknown model 'nope'"),
        ("resnet18?depth=3", "no option 'depth'"),
        ("resnet18?classes=-1", "whole number above zero"),
        ("resnet18?classes=2.5", "whole number above zero"),
        ("resnet18?size=big", "must be pixels"),
        ("resnet18?classes", "not an option"),
        ("cifar-resnet20?width=0.01", "leaves no channel"),
        ("mobilenet-v1?bn=maybe", "true or false"),
    ],
)
def test_wrong_text(text: str, part: str) -> None:
    with pytest.raises(DataError, match=part):
        models.load(text)


def test_options_override() -> None:
    loaded = models.load("mobilenet-v1?width=0.25&size=64&classes=4")
    assert loaded.input_shape == (3, 64, 64)
    assert loaded.classes == 4
    assert loaded.module.conv0.out_channels == 8
    assert models.load("cifar-resnet20", classes=3).classes == 3


def test_same_seed_same_weights() -> None:
    first, second, third = (models.load("cifar-resnet20", seed=seed).module.conv1.weight for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, third)


def test_loading_leaves_the_callers_random_state() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    models.load("cifar-resnet20")
    assert torch.equal(torch.rand(1), expected)
