"""Batch normalisation folded into the layer before it."""

from __future__ import annotations

import pytest
import torch
from networks import ResNet, close, image
from torch import nn

from secateurs.structure import trace
from secateurs.structure.fold import batch_norm_pairs, fold_batch_norm
from secateurs.testing.structure import redrawn


def test_pairs_of_a_resnet() -> None:
    pairs = batch_norm_pairs(trace(ResNet(), image()))
    assert pairs["stem.0.weight"] == "stem.1"
    assert pairs["blocks.1.short.0.weight"] == "blocks.1.short.1"
    assert len(pairs) == 8


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(3, 8, 3, bias=False), (2, 3, 9, 9)),
        (nn.Conv2d(6, 8, 3, groups=2), (2, 6, 9, 9)),
        (nn.ConvTranspose2d(3, 8, 3), (2, 3, 9, 9)),
        (nn.ConvTranspose2d(6, 8, 3, groups=2, bias=False), (2, 6, 9, 9)),
        (nn.Conv1d(3, 8, 3), (2, 3, 9)),
        (nn.Conv3d(3, 8, 3), (2, 3, 5, 5, 5)),
        (nn.Linear(3, 8), (4, 3)),
    ],
    ids=lambda item: type(item).__name__ if isinstance(item, nn.Module) else "",
)
def test_folded_layers_compute_the_same(layer: nn.Module, shape: tuple[int, ...]) -> None:
    norm = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}[len(shape)](8)
    model = redrawn(nn.Sequential(layer, norm, nn.ReLU()), 1)
    example = torch.randn(*shape, dtype=torch.float64)
    folded = fold_batch_norm(trace(model, example))
    assert isinstance(folded[1], nn.Identity)
    with torch.no_grad():
        assert close(folded(example), model(example), 1e-12)


def test_a_whole_network_folds_and_keeps_its_names() -> None:
    model = redrawn(ResNet(), 2)
    graph = trace(model, image().double())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    folded = fold_batch_norm(graph)
    with torch.no_grad():
        assert close(folded(image().double()), model(image().double()), 1e-12)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert {name for name, _ in folded.named_parameters() if name.endswith("weight")} == {
        name for name, p in model.named_parameters() if p.dim() > 1
    }
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_other_weights_of_the_same_network() -> None:
    graph = trace(redrawn(ResNet(), 2), image().double())
    other = redrawn(ResNet(), 7)
    with torch.no_grad():
        assert close(fold_batch_norm(graph, other)(image().double()), other(image().double()), 1e-12)


def test_norms_that_stand_elsewhere_stay() -> None:
    class Apart(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.norm, self.shared = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.BatchNorm2d(8)
            self.b, self.c = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.a(x)
            return self.norm(x) + x + self.shared(self.b(x)) + self.shared(self.c(x))

    model = redrawn(Apart(), 1)
    graph = trace(model, image().double())
    assert batch_norm_pairs(graph) == {}
    with torch.no_grad():
        assert close(fold_batch_norm(graph)(image().double()), model(image().double()), 1e-12)
