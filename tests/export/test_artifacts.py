"""Files by their format: the built-in ones, unknown ones, and one of a plug-in."""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

import secateurs as sc
from secateurs import registry
from secateurs.cli.export import chosen_format
from secateurs.errors import DataError, ExportError, SecateursError
from secateurs.export import artifacts
from secateurs.export import variants as onnx_files
from secateurs.export.artifacts import export_artifact, formats, variants
from secateurs.export.onnx import ExportReport
from secateurs.measure.bench import Bench
from secateurs.testing.latency import FakeTarget

NETWORK = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
EXAMPLE = torch.randn(1, 3, 8, 8)
PLUGIN = """
from pathlib import Path

from secateurs.export.onnx import ExportReport

def write(module, example, path, *, batch=1):
    Path(path).write_text(" ".join(str(p.numel()) for p in module.parameters()))
    return ExportReport(0.0, Path(path).stat().st_size)

class Texts:
    operators = ()

    def __init__(self, graph, batch):
        self.graph, self.batch = graph, batch
        self.dense_bytes = self.build(graph.spec.dense_widths)

    def build(self, widths, removed=frozenset(), rng=None):
        return " ".join(map(str, widths)).encode()
"""


@pytest.fixture
def text_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An installed package that writes files of its own format."""
    (tmp_path / "text_files.py").write_text(PLUGIN)
    described = tmp_path / "text_files-1.dist-info"
    described.mkdir()
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: text-files\nVersion: 1\n")
    points = "[secateurs.exporters]\ntxt = text_files:write\n[secateurs.variants]\ntxt = text_files:Texts\n"
    (described / "entry_points.txt").write_text(points)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("text_files", None)


def test_every_built_in_format_can_be_written_and_sliced_or_only_written() -> None:
    assert formats() == ["onnx", "pt2", "pte", "xml"]
    quantised = {"onnx:int8", "onnx:int8-signed", "onnx:fp16", "pte:int8"}
    assert set(registry.names("variants")) == {"onnx", "pt2", "pte", *quantised}
    for kind in ("exporters", "variants"):
        for name in registry.names(kind):
            assert callable(registry.load(kind, name))


def test_a_graphs_variants_are_exported_once_and_go_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    exported: list[object] = []
    real = onnx_files._export
    monkeypatch.setattr(onnx_files, "_export", lambda *given: exported.append(given) or real(*given))
    graph = sc.trace(NETWORK, EXAMPLE)
    first = variants("onnx", graph)
    assert variants("onnx", graph) is first
    assert len(exported) == 1
    quantised, pairs = variants("onnx:int8", graph), variants("onnx", graph, 2)
    assert len({id(found) for found in (first, quantised, pairs)}) == len(exported) == 3
    assert (first.batch, pairs.batch) == (1, 2)
    assert variants("onnx", sc.trace(NETWORK, EXAMPLE)) is not first
    gone = weakref.ref(graph)
    del graph, first, quantised, pairs
    exported.clear()
    gc.collect()
    assert gone() is None


def test_large_ones_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifacts, "MOST_KEPT", 100)
    graph = sc.trace(NETWORK, EXAMPLE)
    assert variants("onnx", graph) is not variants("onnx", graph)


def test_an_unknown_format_is_told_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(
        ExportError, match=r"writes 'tflite' files. Known are onnx, onnx:int8, .*pt2, pte, pte:int8, xml"
    ):
        export_artifact("tflite", NETWORK, EXAMPLE, tmp_path / "m")
    with pytest.raises(ExportError, match=r"writes 'xml' files. Known are onnx, onnx:int8, .*pt2, pte"):
        variants("xml", sc.trace(NETWORK, EXAMPLE))


def test_a_format_of_a_plug_in(text_format: None, tmp_path: Path) -> None:
    assert formats()[-1] == "txt"
    report = export_artifact("txt", NETWORK, EXAMPLE, tmp_path / "m.txt")
    assert isinstance(report, ExportReport)
    assert (tmp_path / "m.txt").read_text() == "216 8 288 4"
    graph = sc.trace(NETWORK, EXAMPLE)
    assert variants("txt", graph).build(graph.spec.dense_widths // 2) == b"4"
    assert chosen_format("txt", tmp_path / "any") == chosen_format(None, tmp_path / "m.txt") == ("txt", "")


def test_a_target_measures_files_of_a_plug_ins_format(text_format: None, tmp_path: Path) -> None:
    target = FakeTarget(lambda content: {"all": float(sum(map(int, content.split())))}, 0.0, artifact="txt")
    bench = Bench.inside(tmp_path, target, EXAMPLE)
    bench.export(NETWORK, bench.dense)
    graph = sc.trace(NETWORK, EXAMPLE)
    small = sc.apply(NETWORK, graph.plan({graph.groups[0].name: (0, 1, 2, 3)}), EXAMPLE)
    assert bench.export_and_compare(small).ratio == pytest.approx((108 + 4 + 144 + 4) / (216 + 8 + 288 + 4))


def test_what_a_format_needs_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(registry._BUILT_IN["exporters"], "onnx", "no_such_package.onnx:write")
    with pytest.raises(SecateursError, match="Exporter 'onnx' needs no_such_package"):
        export_artifact("onnx", NETWORK, EXAMPLE, tmp_path / "m")
    with pytest.raises(DataError, match="not a format that can be written"):
        chosen_format("tflite", tmp_path / "m")


@pytest.mark.parametrize(
    ("to", "found"),
    [
        (None, ("onnx", "")),
        ("onnx:int8", ("onnx", "int8")),
        ("openvino:int8", ("xml", "int8")),
        ("executorch", ("pte", "")),
    ],
)
def test_a_precision_stands_behind_the_format(to: str | None, found: tuple[str, str], tmp_path: Path) -> None:
    assert chosen_format(to, tmp_path / "m.onnx") == found


@pytest.mark.parametrize("to", ["torch:int8", "onnx:int4", "onnx:"])
def test_a_precision_that_a_format_has_not_is_refused(to: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot be written in .*There are onnx:int8, .*pte:int8, xml:int8"):
        chosen_format(to, tmp_path / "m")
