"""Judging candidates: what is kept, what is repeated, what another process makes of it."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import secateurs as sc
from secateurs.data import Data, open_data
from secateurs.errors import DataError, PlanError, StructureError
from secateurs.importance.scoring import scores
from secateurs.judging import evaluator as evaluation
from secateurs.judging.evaluator import NetworkEvaluator, make_evaluator
from secateurs.models import Loaded, load
from secateurs.recover.batch_norm import reestimate
from secateurs.search.rows import FileRows
from secateurs.structure import Graph, apply


@pytest.fixture(scope="module")
def network() -> Loaded:
    return load("digits-resnet", seed=3)


@pytest.fixture(scope="module")
def data(network: Loaded) -> Data:
    data = open_data("digits", network)
    return replace(data, calibration=data.calibration.take(128), validation=data.validation.take(96))


@pytest.fixture(scope="module")
def graph(network: Loaded) -> Graph:
    return sc.trace(network.module, network.example())


def made(graph: Graph, data: Data, **options: object) -> NetworkEvaluator:
    ranked = scores(graph, "l2")
    return make_evaluator(graph, ranked, data.calibration, data.validation, precision="fp32", **options)  # type: ignore[arg-type]


def half(graph: Graph) -> np.ndarray:
    return np.maximum(1, graph.spec.dense_widths // 2)


def test_the_figure_is_that_of_the_cut_and_recalibrated_network(graph: Graph, data: Data, network: Loaded) -> None:
    found = made(graph, data)
    widths = half(graph)
    small = apply(network.module, found.plan(widths), network.example(), check=False).eval()
    reestimate(small, data.calibration.take(64).batches(64))
    with torch.no_grad():
        hits = [(small(x).argmax(1) == y).float() for x, y in data.validation.batches(32)]
    assert found(widths).accuracy == pytest.approx(float(torch.cat(hits).mean()), abs=1.5 / 96)
    assert found.error(widths) == 1 - found(widths).accuracy
    for name, kept in found.plan(widths).groups.items():
        ranked = np.argsort(-scores(graph, "l2")[name], kind="stable")[: len(kept)]
        assert sorted(ranked.tolist()) == list(kept)


def test_the_same_candidate_is_evaluated_once_and_kept(graph: Graph, data: Data, tmp_path) -> None:  # type: ignore[no-untyped-def]
    rows = FileRows(tmp_path / "rows.sqlite3")
    first = made(graph, data, rows=rows)
    assert first.evaluations_per_second == 0
    accuracy = first(half(graph)).accuracy
    assert first(half(graph)).accuracy == accuracy
    assert len(rows) == 1
    assert first.evaluations_per_second > 0
    again = made(graph, data, rows=FileRows(tmp_path / "rows.sqlite3"))
    assert again(half(graph)).accuracy == accuracy
    assert again.evaluations_per_second == 0
    assert made(graph, data)(half(graph)).accuracy == accuracy


def test_folding_the_batch_norms_changes_no_figure(graph: Graph, data: Data) -> None:
    found = made(graph, data)
    plan = found.plan(half(graph), frozenset({0}))
    assert len(found.judge.norms) > 5
    folded, plain = found.judge(plan), replace(found.judge, norms={})(plan)
    assert folded.details["loss"] == pytest.approx(plain.details["loss"], rel=1e-4)
    assert folded.details["loss"] != plain.details["loss"]


def test_groups_inside_a_removed_block_play_no_part(graph: Graph, data: Data) -> None:
    found = made(graph, data)
    block = next(index for index, block in enumerate(graph.blocks) if block.groups)
    widths = half(graph)
    other = widths.copy()
    other[list(graph.blocks[block].groups)] = 1
    assert found.key(widths, frozenset({block})) == found.key(other, frozenset({block}))
    assert found.key(widths) != found.key(other)
    assert 0 <= found(widths, frozenset({block})).accuracy <= 1


def test_everything_that_a_figure_depends_on_is_in_the_identity(graph: Graph, data: Data) -> None:
    plain = made(graph, data)
    others = [
        made(graph, data, repair="none"),
        make_evaluator(graph, scores(graph, "l1"), data.calibration, data.validation, precision="fp32"),
        make_evaluator(graph, scores(graph, "l2"), data.calibration.take(32), data.validation, precision="fp32"),
        make_evaluator(graph, scores(graph, "l2"), data.calibration, data.validation, precision="bf16"),
        plain.on_fewer(32),
    ]
    assert len({plain.identity, *(other.identity for other in others)}) == 1 + len(others)
    assert made(graph, data).identity == plain.identity
    assert others[-1].images == 32
    assert others[-1].key(half(graph)) != plain.key(half(graph))


def test_a_judge_travels_with_its_weights(graph: Graph, data: Data, network: Loaded) -> None:
    found = made(graph, data, source=network.source)
    plan = found.plan(half(graph))
    content = pickle.dumps(found.judge)
    assert b"CifarResNet" not in content
    assert pickle.loads(content)(plan).accuracy == found.judge(plan).accuracy
    assert pickle.loads(pickle.dumps(made(graph, data).judge))(plan).accuracy == found.judge(plan).accuracy


@pytest.fixture(scope="module")
def plain() -> tuple[Graph, Data]:
    """A network without batch norms and images for it."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 16, 3, 4, 1), nn.ReLU(), nn.Conv2d(16, 12, 3), nn.ReLU(), nn.Flatten())
    module.append(nn.Linear(12 * 36, 10))
    return sc.trace(module.eval(), torch.randn(2, 3, 32, 32)), open_data("digits", load("digits-resnet", seed=1))


def test_without_batch_norm_means_are_corrected(plain: tuple[Graph, Data]) -> None:
    graph, data = plain
    images = data.calibration.take(64)
    ranked = scores(graph, "l2")
    corrected = make_evaluator(graph, ranked, images, data.validation.take(32), repair="statistics", precision="fp32")
    plan = corrected.plan(half(graph))
    assert set(corrected.judge.means) == {"0", "2", "5"}
    wanted = corrected.judge._targets(plan)
    assert len(wanted["0"]) == 8
    assert 0 <= corrected.judge(plan).accuracy <= 1


def test_without_batch_norm_layers_are_refitted_by_default(plain: tuple[Graph, Data]) -> None:
    graph, data = plain
    default, corrected, none = (
        make_evaluator(
            graph, scores(graph, "l2"), data.calibration, data.validation.take(200), repair=repair, precision="fp32"
        )
        for repair in (None, "statistics", "none")
    )
    assert default.judge.repair == "least-squares"
    plan, dense = default.plan(half(graph)), default.judge(graph.plan({}, ())).details["loss"]
    refitted = default.judge(plan)
    wrong = {one.judge.repair: abs(one.judge(plan).details["loss"] - dense) for one in (default, corrected, none)}
    assert wrong["least-squares"] < 0.5 * min(wrong["statistics"], wrong["none"])
    assert default.judge(plan).details == refitted.details
    assert pickle.loads(pickle.dumps(default.judge))(plan).details == refitted.details
    sizes = {len(batch) for batch in default.judge.refitted}
    assert (len(default.judge.refitted), len(sizes)) == (4, 1)


class Untraceable(nn.Module):
    """A network that the export for the refit cannot take."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3072, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x.flatten(1)) if float(x.sum()) < 1e9 else x


def test_networks_that_cannot_be_refitted_have_their_means_corrected(plain: tuple[Graph, Data]) -> None:
    assert evaluation._exports(plain[0].model, torch.zeros(4, 3, 32, 32))
    assert not evaluation._exports(Untraceable(), torch.zeros(4, 3, 32, 32))


def test_by_default_too(plain: tuple[Graph, Data], monkeypatch: pytest.MonkeyPatch) -> None:
    graph, data = plain
    monkeypatch.setattr(evaluation, "_exports", lambda module, inputs: False)
    judge = make_evaluator(graph, scores(graph, "l2"), data.calibration, data.validation.take(32)).judge
    assert judge.repair == "statistics"
    assert set(judge.means) == {"0", "2", "5"}


def test_a_cut_that_cannot_be_refitted_is_judged_all_the_same(
    plain: tuple[Graph, Data], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*arguments: object, **settings: object) -> None:
        raise StructureError("no")

    graph, data = plain
    default = make_evaluator(graph, scores(graph, "l2"), data.calibration, data.validation.take(32))
    monkeypatch.setattr("secateurs.judging.judge.least_squares", refused)
    assert 0 <= default.judge(default.plan(half(graph))).accuracy <= 1


def test_wrong_settings_are_refused(graph: Graph, data: Data) -> None:
    with pytest.raises(PlanError, match="Repair 'magic'"):
        made(graph, data, repair="magic")
    with pytest.raises(DataError, match="without calibration and validation"):
        make_evaluator(graph, scores(graph, "l2"), data.calibration.take(0), data.validation)
