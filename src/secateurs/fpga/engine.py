"""The engine's parameters, as hardware and packer share them."""

from __future__ import annotations

from dataclasses import dataclass

from secateurs.errors import PlanError

SETTINGS = 12
"""Fixed words of a job's settings; two follow for every column of the kernel, one for every row."""


@dataclass(frozen=True)
class Engine:
    """``p`` lanes of filters, ``q`` of pixels; ``lines``: words of q pixels in the line buffer; ``elements``: of one
    pass in the weight buffer (which holds two); ``bits`` of a sum."""

    p: int = 16
    q: int = 8
    lines: int = 2048
    elements: int = 1024
    bits: int = 32

    def __post_init__(self) -> None:
        if self.p < 4 or self.p > 64:
            raise PlanError(f"The engine has {self.p} lanes of filters. Choose 4 to 64.")
        if self.q < 2 or self.q % 2 or self.q > 32:
            raise PlanError(f"The engine has {self.q} lanes of pixels. Choose an even number from 2 to 32.")
        if self.elements < 8 or self.elements & (self.elements - 1):
            raise PlanError(f"The weight buffer holds {self.elements} elements. Choose a power of two from 8 on.")
        if self.lines < 8 or self.lines > 65536:
            raise PlanError(f"The line buffer holds {self.lines} words. Choose 8 to 65536.")
        if not 20 <= self.bits <= 32:
            raise PlanError(f"Sums have {self.bits} bits. Choose 20 to 32.")

    @property
    def parameters(self) -> dict[str, int]:
        """Of the hardware's module, by name."""
        return {"P": self.p, "Q": self.q, "XD": self.lines, "WD": self.elements, "ACC": self.bits}

    @property
    def multipliers(self) -> int:
        """Hardware multipliers: one for every pair of lanes, two for every lane's requantisation."""
        return self.p * self.q + 2 * self.q

    @property
    def memory_bits(self) -> int:
        """Bits of its buffers: pixels, weights with their indexes twice."""
        return 8 * self.q * self.lines + 2 * self.elements * (8 * self.p + 18)

    @property
    def name(self) -> str:
        """``16x8``."""
        return f"{self.p}x{self.q}"
