"""Traits of weights that a parametrisation computes: what can go is sliced in what they are computed of."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from traits import image, trait


class Two(nn.Module):
    """Two wrapped convolutions and a classifier."""

    def __init__(self, wrap) -> None:
        super().__init__()
        self.a = wrap(nn.Conv2d(3, 16, 3, padding=1))
        self.b = wrap(nn.Conv2d(16, 12, 3, padding=1))
        self.fc = nn.Linear(12, 5)

    def forward(self, x):
        return self.fc(F.relu(self.b(F.relu(self.a(x)))).mean((2, 3)))


def weight_by(module: nn.Module):
    """What registers ``module`` as the parametrisation of a layer's weight."""

    def wrap(layer: nn.Module) -> nn.Module:
        return parametrize.register_parametrization(layer, "weight", module)

    return wrap


@trait(least=0.4)
class SpectralNormParametrised(Two):
    def __init__(self) -> None:
        super().__init__(parametrizations.spectral_norm)


@trait(least=0.4)
class OrthogonalKernels(Two):
    """Of a convolution every kernel is a matrix of its own, so filters and columns may go."""

    def __init__(self) -> None:
        super().__init__(parametrizations.orthogonal)


@trait(least=0.4)
class OrthogonalKernelsCayley(Two):
    def __init__(self) -> None:
        super().__init__(lambda layer: parametrizations.orthogonal(layer, orthogonal_map="cayley"))


@trait(image(2, 6), least=0.01)
class OrthogonalLinear(nn.Module):
    """The rows of the tall matrix go with its base; the wide one's stay: its matrix is taken as a whole."""

    def __init__(self) -> None:
        super().__init__()
        self.a = parametrizations.orthogonal(nn.Linear(6, 16))
        self.b = parametrizations.orthogonal(nn.Linear(16, 12))
        self.fc = nn.Linear(12, 5)

    def forward(self, x):
        return self.fc(F.relu(self.b(F.relu(self.a(x)))))


class Positive(nn.Module):
    """A weight of nothing is not nothing."""

    def forward(self, weight):
        return F.softplus(weight)


class Symmetric(nn.Module):
    """Mirrored kernels."""

    def forward(self, weight):
        return (weight + weight.flip(3)) / 2


class UnitFilters(nn.Module):
    """Filters of length one."""

    def forward(self, weight):
        return weight / (torch.linalg.vector_norm(weight, dim=(1, 2, 3), keepdim=True) + 1e-6)


class Standardised(nn.Module):
    """Weight standardisation."""

    def forward(self, weight):
        mean, std = weight.mean((1, 2, 3), keepdim=True), weight.std((1, 2, 3), keepdim=True)
        return (weight - mean) / (std + 1e-5)


class LowRank(nn.Module):
    """A weight with a correction of rank four."""

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.u, self.v = nn.Parameter(torch.randn(rows, 4)), nn.Parameter(torch.randn(4, columns))

    def forward(self, weight):
        return weight + (self.u @ self.v)[:, :, None, None]


class LargestSingularValue(nn.Module):
    """Divides by what depends on the whole matrix."""

    def forward(self, weight):
        return weight / torch.linalg.svdvals(weight.flatten(1))[0]


@trait(least=0.4)
class PositiveWeights(Two):
    def __init__(self) -> None:
        super().__init__(weight_by(Positive()))


@trait(least=0.4)
class SymmetricKernels(Two):
    def __init__(self) -> None:
        super().__init__(weight_by(Symmetric()))


@trait(least=0.4)
class FiltersOfLengthOne(Two):
    def __init__(self) -> None:
        super().__init__(weight_by(UnitFilters()))


@trait(least=0.4)
class StandardisedWeights(Two):
    def __init__(self) -> None:
        super().__init__(weight_by(Standardised()))


@trait(least=0.4)
class LowRankCorrection(Two):
    def __init__(self) -> None:
        super().__init__(lambda layer: weight_by(LowRank(layer.out_channels, layer.in_channels))(layer))


@trait(pinned="a matrix is taken as a whole")
class ExactSpectralNorm(Two):
    def __init__(self) -> None:
        super().__init__(weight_by(LargestSingularValue()))
