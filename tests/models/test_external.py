from __future__ import annotations

import importlib
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from secateurs import models
from secateurs.errors import DataError
from secateurs.models.external import optional

FACTORY = """
import torch

def make(width=4, classes=3):
    return torch.nn.Sequential(torch.nn.Conv2d(3, width, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(),
                               torch.nn.Linear(width, classes))

def text():
    return "no module"

def broken():
    raise ValueError("out of paint")

number = 3
"""


@pytest.fixture
def factory(tmp_path: Path) -> str:
    (tmp_path / "mine.py").write_text(FACTORY)
    return str(tmp_path / "mine.py")


def test_factory_with_options(factory: str) -> None:
    loaded = models.load(f"{factory}:make?width=6&size=20", input_shape=None)
    assert loaded.input_shape == (3, 20, 20)
    assert loaded.module[0].out_channels == 6
    assert loaded.outputs == (3,)
    assert loaded.preprocessing == models.Preprocessing()
    again = models.rebuild(loaded.source)
    assert again.module[0].out_channels == 6


def test_package_factory() -> None:
    loaded = models.load("secateurs.models.cifar_resnet:CifarResNet?depth=8&classes=4", input_shape=(3, 16, 16))
    assert loaded.classes == 4


def test_size_is_needed(factory: str) -> None:
    with pytest.raises(DataError, match="does not say its input size"):
        models.load(f"{factory}:make")


@pytest.mark.parametrize(
    ("attribute", "part"),
    [
        ("text?size=8", "returned str"),
        ("broken?size=8", "ValueError: out of paint"),
        ("number?size=8", "no callable 'number'"),
        ("absent?size=8", "It defines make, text, broken"),
        ("make?height=3&size=8", "unexpected keyword argument"),
    ],
)
def test_wrong_factories(factory: str, attribute: str, part: str) -> None:
    with pytest.raises(DataError, match=part):
        models.load(f"{factory}:{attribute}")


def test_missing_places(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        models.load(f"{tmp_path}/none.py:make?size=8")
    with pytest.raises(DataError, match="cannot be imported"):
        models.load("no_such_package_here:make?size=8")
    (tmp_path / "raises.py").write_text("raise RuntimeError('half way')")
    with pytest.raises(DataError, match="RuntimeError: half way"):
        models.load(f"{tmp_path}/raises.py:make?size=8")


def test_wrong_input_shape(factory: str) -> None:
    with pytest.raises(DataError, match="does not run on an input of shape 1x1x20x20"):
        models.load(f"{factory}:make", input_shape=(1, 20, 20))
    with pytest.raises(DataError, match="must be three sizes from 1"):
        models.load(f"{factory}:make", input_shape=(3, 0, 20))
    with pytest.raises(DataError, match="Give one of the two"):
        models.load(f"{factory}:make?size=30", input_shape=(3, 20, 20))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("imagenet", ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 255.0)),
        ("centered", ((128.0,), (128.0,), 1.0)),
        ("unit", ((0.0,), (1.0,), 255.0)),
        ("0.5/0.25", ((0.5,), (0.25,), 255.0)),
        ("0.1,0.2,0.3/1,1,1", ((0.1, 0.2, 0.3), (1.0, 1.0, 1.0), 255.0)),
    ],
)
def test_normalize(text: str, expected: tuple[tuple[float, ...], tuple[float, ...], float]) -> None:
    found = models.parse_normalize(text)
    assert (found.mean, found.std, found.scale) == expected
    assert models.Preprocessing.from_dict(found.to_dict()) == found


@pytest.mark.parametrize("text", ["", "half", "0.5", "0.5/0", "0.5/-1", "1,2/1,2,3", "nan/1", "a/b", "0.5/0.5/0.5"])
def test_wrong_normalize(text: str) -> None:
    with pytest.raises(DataError, match="--normalize"):
        models.parse_normalize(text)


def test_normalize_must_fit_the_channels(factory: str) -> None:
    with pytest.raises(DataError, match="2 mean values"):
        models.load(f"{factory}:make?size=8", normalize="0.5,0.5/1,1")


def test_normalisation_values() -> None:
    pixels = torch.tensor([[[[0, 128, 255]]]], dtype=torch.uint8)
    assert torch.allclose(
        models.parse_normalize("centered").normalize(pixels).flatten(), torch.tensor([-1, 0, 127 / 128])
    )
    expected = (torch.tensor([0, 128, 255]) / 255 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor(
        [0.229, 0.224, 0.225]
    )
    assert torch.allclose(models.parse_normalize("imagenet").normalize(pixels).flatten(), expected, atol=1e-6)


zoo = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("timm", "torchvision")), reason="the extra zoo is not there"
)


@zoo
def test_torchvision_names_and_keys() -> None:
    get_model = optional("torchvision.models", "A test").get_model

    for ours, theirs in (("resnet18", "resnet18"), ("resnet50", "resnet50")):
        module, reference = models.load(f"{ours}?size=64").module, get_model(theirs, weights=None).eval()
        assert list(module.state_dict()) == list(reference.state_dict())
        reference.load_state_dict(module.state_dict())
        x = torch.randn(1, 3, 64, 64)
        with torch.no_grad():
            assert torch.allclose(module(x), reference(x), atol=1e-5)
    with torch.device("meta"):
        assert list(get_model("vgg16_bn", weights=None).state_dict()) == list(
            models.vgg.Vgg16BatchNorm().state_dict()  # type: ignore[attr-defined]
        )
    loaded = models.load("torchvision:mobilenet_v3_small?num_classes=7&size=64")
    assert loaded.classes == 7


@zoo
def test_timm_carries_its_preprocessing() -> None:
    loaded = models.load("timm:resnet10t", classes=5)
    assert loaded.classes == 5
    assert loaded.input_shape == (3, 176, 176)
    assert len(loaded.mean) == 3
    with pytest.raises(DataError, match="Unknown model"):
        models.load("timm:no_such_network")


@zoo
@pytest.mark.slow
def test_a_fresh_process_opens_both_as_a_user_does() -> None:
    """Nothing is imported or registered before the command line is."""
    code = (
        "from secateurs.cli.app import app\n"
        "from secateurs.models import load\n"
        "app(['doctor', 'timm:test_resnet', '--json'], standalone_mode=False)\n"
        "assert load('torchvision:squeezenet1_1?size=64').classes == 1000\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["groups"]


@zoo
def test_no_part_of_a_torchvision_network_is_downloaded() -> None:
    assert models.load("torchvision:lraspp_mobilenet_v3_large?size=32").outputs is None


def test_absent_package_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> None:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr("secateurs.models.external.importlib.import_module", refuse)
    with pytest.raises(DataError, match="pip install timm"):
        models.load("timm:resnet10t")
