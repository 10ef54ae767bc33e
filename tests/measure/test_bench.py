"""The bench: files that are written and compared with the dense one, and figures that are found again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import nn

import secateurs as sc
from secateurs.errors import ExportError
from secateurs.latency.store import Store
from secateurs.measure import bench as module
from secateurs.measure.bench import Bench, inputs_of
from secateurs.testing.latency import FakeTarget


@pytest.fixture
def bench(graph: sc.Graph, fake: FakeTarget, tmp_path: Path) -> Bench:
    made = Bench.inside(tmp_path, fake, graph.args[0])
    made.export(graph.model, made.dense)
    return made


def half(graph: sc.Graph) -> tuple[nn.Module, sc.Plan]:
    plan = graph.plan({group.name: tuple(range(group.units // 2)) for group in graph.groups}, ())
    return sc.apply(graph.model, plan, graph.args[0]), plan


def deployed(bench: Bench) -> Path:
    return bench.dense.with_name("model.onnx")


def weights(path: Path) -> int:
    return sum(int(torch.Size(tensor.dims).numel()) for tensor in onnx.load(path).graph.initializer)


def test_files_are_named_by_the_format_of_the_target(bench: Bench, tmp_path: Path) -> None:
    assert (bench.dense, bench.candidate) == (tmp_path / "dense.onnx", tmp_path / "candidate.onnx")
    other = Bench.inside(tmp_path, FakeTarget(lambda content: {}, artifact="pt2"), None, 2, 3, 4)
    assert (other.dense.name, other.candidate.name) == ("dense.pt2", "candidate.pt2")
    assert (other.threads, other.batch, other.seed) == (2, 3, 4)


def test_the_exported_file_is_the_network_and_says_how_far_it_is_off(bench: Bench, graph: sc.Graph) -> None:
    report = bench.export(graph.model, bench.dense)
    assert report.max_rel_error < 1e-4
    assert report.size_bytes == bench.dense.stat().st_size
    assert weights(bench.dense) >= sum(p.numel() for p in graph.model.parameters())


def test_a_module_that_cannot_be_exported_is_told(bench: Bench) -> None:
    class Endless(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if float(x.sum()) > 0 else -x

    with pytest.raises(ExportError):
        bench.export(Endless(), deployed(bench))


def test_a_candidate_is_measured_beside_dense_by_the_file(bench: Bench, graph: sc.Graph, fake: FakeTarget) -> None:
    small, plan = half(graph)
    found = bench.export_and_compare(small, plan)
    file = deployed(bench)
    bench.export(small, file, plan)
    costs = {path: fake.base_ms + sum(fake.costs(path.read_bytes()).values()) for path in (bench.dense, file)}
    assert found.latency_ms == pytest.approx(costs[file])
    assert found.ratio == pytest.approx(costs[file] / costs[bench.dense])
    assert found.file_bytes == file.stat().st_size
    assert bench.measure_dense().latency_ms == pytest.approx(costs[bench.dense])
    assert bench.measure_dense().ratio == 1.0


def test_a_candidate_leaves_no_file_behind(bench: Bench, graph: sc.Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    before = sorted(bench.dense.parent.iterdir())
    bench.export_and_compare(half(graph)[0])
    assert sorted(bench.dense.parent.iterdir()) == before

    def broken(*arguments: Any, **settings: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "compare", broken)
    with pytest.raises(KeyboardInterrupt):
        bench.export_and_compare(half(graph)[0])
    assert sorted(bench.dense.parent.iterdir()) == before


def test_what_the_store_knows_is_not_measured_again(
    bench: Bench, graph: sc.Graph, fake: FakeTarget, tmp_path: Path
) -> None:
    small, plan = half(graph)
    with Store(tmp_path / "store.sqlite3") as store:
        first = bench.measure(small, store, "half", plan)
        loads = fake.loads
        assert loads >= 2
        assert bench.measure(small, store, "half", plan) == first
        assert bench.measure(graph.model, store, "half") == first  # the name says which network it is
        assert fake.loads == loads
        other = bench.measure(graph.model, store, "whole")
        assert fake.loads > loads
        assert other.latency_ms > first.latency_ms


@pytest.mark.parametrize("changes", [{"threads": 2}, {"batch": 2}, {"example": torch.zeros(1, 3, 12, 12)}])
def test_other_threads_batches_and_sizes_are_other_measurements(
    bench: Bench, graph: sc.Graph, fake: FakeTarget, tmp_path: Path, changes: dict[str, Any]
) -> None:
    from dataclasses import replace

    other = replace(bench, **changes)
    with Store(tmp_path / "store.sqlite3") as store:
        bench.measure(graph.model, store, "whole")
        loads = fake.loads
        other.measure(graph.model, store, "whole")
        assert fake.loads > loads


def test_the_final_figures_come_from_one_run_of_both_files(bench: Bench, graph: sc.Graph, fake: FakeTarget) -> None:
    small, plan = half(graph)
    bench.export(small, deployed(bench), plan)
    found = bench.final(deployed(bench))
    assert set(found) == {"dense", "pruned"}
    assert found["pruned"].ratio == pytest.approx(found["pruned"].latency_ms / found["dense"].latency_ms)
    assert found["pruned"].runs >= module.FINAL.turns > module.QUICK.turns


def test_inputs_with_a_batch_dimension() -> None:
    image, tokens = torch.zeros(1, 3, 8, 8), torch.zeros(1, 7, dtype=torch.int64)
    example = ((image, {"tokens": tokens}), {"scale": torch.tensor(2.0), "flag": True})
    assert [leaf.shape for leaf in inputs_of(example)] == [image.shape, tokens.shape]
