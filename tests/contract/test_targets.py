"""Every registered target keeps the contract that plug-ins are held to; a new name is tested on arrival."""

from __future__ import annotations

import pytest

from secateurs.latency.targets import Target, make_target
from secateurs.registry import names
from secateurs.testing.latency import FakeTarget
from secateurs.testing.targets import TargetContract

PRECISIONS = ["onnxruntime-cpu:int8", "openvino-cpu:bf16", "openvino-cpu:int8", "torch-cuda:bf16", "tensorrt:fp16"]
PRECISIONS += ["tensorrt:int8", "onnxruntime-cuda:fp16"]


class TestRegisteredTargets(TargetContract):
    name: str

    @pytest.fixture(autouse=True, params=[*names("targets"), *PRECISIONS])
    def named(self, request: pytest.FixtureRequest) -> None:
        self.name = request.param

    def target(self) -> Target:
        return make_target(self.name)

    def others(self) -> list[Target]:
        every = [make_target(name) for name in (*names("targets"), *PRECISIONS) if name != self.name]
        return [target for target in every if target.available() is None]


class TestFakeTarget(TargetContract):
    @pytest.fixture(autouse=True)
    def registered(self, fake_target: str) -> None:
        self.name = fake_target

    def target(self) -> Target:
        found = make_target(self.name)
        assert isinstance(found, FakeTarget)
        return found
