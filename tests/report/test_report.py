"""The record behind result.json, the wording of figures, and the page drawn from a record."""

from __future__ import annotations

import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from secateurs.errors import DataError
from secateurs.report import Record, console, render, wording
from secateurs.report.charts import prediction_chart, widths_chart
from secateurs.report.record import (
    BudgetRecord,
    Certainty,
    DenseFinetuned,
    GroupRecord,
    ModelError,
    Point,
    PrunedSide,
    Seconds,
    Side,
    TargetRecord,
)

DOCUMENTED_KEYS = {
    *("schema", "model", "strategy", "criterion", "seed", "versions", "target", "budget_ms", "predicted_ms", "dense"),
    *("pruned", "blocks_removed", "classes", "epochs", "speedup", "export_max_rel_error"),
    *("structure_check_rel_error", "seconds"),
}


LATENCY = BudgetRecord(resource="latency", text="60%", unit="ms", limit=1.98, dense=3.3, pruned=1.93, upper=1.95)
FILE_SIZE = BudgetRecord(
    resource="file_size", text="3MB", unit="bytes", limit=3e6, dense=3.47e6, pruned=2.08e6, upper=2.08e6
)


def make_record(**changes: object) -> Record:
    """A plausible run of cifar-resnet56, with any field changed."""
    names = [(stage, block) for stage in (1, 2, 3) for block in range(9)]
    groups = [
        GroupRecord(name=f"layer{s}.{b}.conv1:out", units=8 << s, kept=0 if (s, b) == (1, 4) else 5 * b % (8 << s) + 1)
        for s, b in names
    ]
    held_out = [(1 + 0.1 * i, (1 + 0.1 * i) * (1 + 0.01 * (i % 5 - 2))) for i in range(24)]
    points = [Point(kind="held-out", predicted_ms=predicted, measured_ms=measured) for predicted, measured in held_out]
    points.append(Point(kind="candidate", predicted_ms=1.94, measured_ms=2.03))
    points.append(Point(kind="final", predicted_ms=1.94, measured_ms=1.93))
    record = Record(
        model="cifar-resnet56",
        strategy="knapsack",
        criterion="splamp",
        seed=0,
        versions={"secateurs": "0.1.0", "torch": "2.13.0"},
        target=TargetRecord(name="onnxruntime-cpu", fingerprint="Example CPU", threads=1, precision="fp32"),
        budget="60%",
        budgets=(LATENCY,),
        budget_ms=1.98,
        budget_used=0.976,
        predicted_ms=1.94,
        dense=Side(
            latency_ms=3.3,
            latency_spread=0.021,
            accuracy=0.8979,
            macs=125_485_706,
            params=853_018,
            file_bytes=3_470_112,
        ),
        pruned=PrunedSide(
            latency_ms=1.93,
            latency_spread=0.018,
            accuracy=0.8921,
            accuracy_cut=0.312,
            accuracy_recalibrated=0.8533,
            macs=61_200_000,
            params=501_000,
            file_bytes=2_080_000,
        ),
        blocks_removed=("layer1.4",),
        class_count=10,
        epochs=1,
        speedup=1.71,
        latency_ratio=0.585,
        latency_ratio_upper=0.591,
        export_max_rel_error=3.1e-7,
        structure_check_rel_error=2.2e-13,
        seconds=Seconds(trace=4.1, profile=71, search=1.2, recover=12, finetune=312, measure=20, total=424),
        data="parquet:train,test",
        groups=tuple(groups),
        points=tuple(points),
        latency_model=ModelError(mean_abs=0.014, p95=0.031, spearman=0.998, networks=24),
        gap=0.0004,
        rounds=2,
        notes=("No repair by least squares was done.",),
        command="secateurs prune cifar-resnet56 --data parquet:train,test --latency 60% --epochs 1 -o run56",
        created="2026-11-22 10:00 UTC",
    )
    return record.model_copy(update=changes)


class _Outline(HTMLParser):
    """Collects open tags that are never closed and every reference to the outside."""

    VOID = frozenset({"meta", "br", "link", "img"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.references: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.references += [value or "" for name, value in attrs if name in {"src", "href"}]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.references += [value or "" for name, value in attrs if name in {"src", "href"}]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_result_json_has_every_key_of_the_contract() -> None:
    raw = json.loads(make_record().to_json())
    assert set(raw) >= DOCUMENTED_KEYS
    assert set(raw["target"]) >= {"name", "fingerprint", "threads", "precision"}
    assert set(raw["dense"]) >= {"latency_ms", "latency_spread", "accuracy", "macs", "params", "file_bytes"}
    assert set(raw["pruned"]) >= set(raw["dense"]) | {"accuracy_cut", "accuracy_recalibrated"}
    assert set(raw["seconds"]) >= {"trace", "profile", "search", "recover", "finetune", "total"}


def test_record_round_trip(tmp_path: Path) -> None:
    record = make_record()
    (tmp_path / "result.json").write_text(record.to_json())
    assert Record.load(tmp_path / "result.json") == record


@pytest.mark.parametrize("text", ["", "[]", "{", '{"schema": "other/1"}', '{"schema": "secateurs.result/1"}'])
def test_damaged_result_is_one_clear_message(tmp_path: Path, text: str) -> None:
    path = tmp_path / "result.json"
    path.write_text(text)
    with pytest.raises(DataError, match=re.escape(str(path))):
        Record.load(path)


def test_page_is_well_formed_and_self_contained() -> None:
    page = render(make_record())
    outline = _Outline()
    outline.feed(page)
    assert outline.open == []
    assert outline.references == []
    assert "<script" not in page
    assert "url(" not in page


def test_page_escapes_what_users_named() -> None:
    page = render(make_record(model="<b>x</b>", notes=("a < b",), command="secateurs prune 'a&b.py:f'"))
    assert "<b>x</b>" not in page
    assert "&lt;b&gt;x" in page
    assert "a &lt; b" in page


def test_page_says_when_the_budget_is_missed() -> None:
    missed = make_record(budgets=(LATENCY.model_copy(update={"upper": 2.08}),))
    assert "Budget missed" in render(missed)
    assert "Budget met" in render(make_record())


def test_every_budget_is_told_and_one_missed_is_enough() -> None:
    both = make_record(budgets=(LATENCY, FILE_SIZE))
    assert both.pruned_within_budget
    assert "Budgets met: 1.93 ms measured, 97.5 % of the budget of 1.98 ms (60%); 2.08 MB on disk" in wording.verdict(
        both
    )
    over = FILE_SIZE.model_copy(update={"pruned": 3.1e6, "upper": 3.1e6})
    assert not make_record(budgets=(LATENCY, over)).pruned_within_budget
    without = make_record(budgets=(FILE_SIZE,), budget_ms=None, predicted_ms=None, latency_model=None, points=())
    assert "3MB" in render(without)


def test_widths_chart_names_every_group_and_marks_removed_ones() -> None:
    record = make_record()
    gone = [group for group in record.groups if group.kept == 0]
    chart = widths_chart(record.groups, gone)
    assert chart.count("<title>") == len(record.groups)
    assert chart.count("removed with its block") == 1
    assert "No group" in widths_chart(())


def test_prediction_chart_copes_with_one_point() -> None:
    chart = prediction_chart([Point(kind="final", predicted_ms=2.0, measured_ms=2.0)])
    assert "nan" not in chart
    assert chart.count("<circle") == 1


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0123, "0.0123"), (1.9, "1.90"), (12, "12.0"), (123.4, "123"), (0, "0"), (12345.0, "12,300"), (1000, "1,000")],
)
def test_significant(value: float, text: str) -> None:
    assert wording.significant(value) == text


def test_counts_sizes_durations() -> None:
    assert wording.count(853_018) == "853 k"
    assert wording.count(4_089_000_000) == "4.09 G"
    assert wording.size(999) == "999 B"
    assert wording.size(3_470_112) == "3.47 MB"
    assert [wording.duration(s) for s in (0.84, 41.2, 200, 3720)] == ["0.8 s", "41 s", "3 min 20 s", "1 h 02 min"]


def test_console_shows_three_accuracies_and_the_notes() -> None:
    stream = io.StringIO()
    console.show(make_record(), Console(file=stream, width=120, color_system=None))
    text = stream.getvalue()
    for piece in ("31.20 %", "85.33 %", "89.21 %", "1.71× faster", "Budget met", "Note:"):
        assert piece in text


TEST = Certainty(
    samples=2000,
    standard_error=0.0069,
    dense_standard_error=0.0068,
    difference=-0.0058,
    difference_standard_error=0.004,
    tie=True,
)
TUNED = DenseFinetuned(
    epochs=1,
    accuracy=0.9012,
    standard_error=0.0067,
    seconds=30.0,
    difference=-0.0091,
    difference_standard_error=0.003,
    tie=False,
)


def table_of(record: Record) -> dict[str, tuple[str, ...]]:
    """Rows by their name."""
    assert all(len(row) == len(wording.columns(record)) for row in wording.rows(record))
    return {row[0]: row[1:] for row in wording.rows(record)}


def pruned(**changes: object) -> PrunedSide:
    return make_record().pruned.model_copy(update={"repaired_by": "least squares", **changes})


def test_rows_say_what_was_done_to_which_network() -> None:
    record = make_record(pruned=pruned(), test=TEST, dense_finetuned=TUNED, kept="tuned", tuned_epochs=1)
    assert wording.columns(record) == ("", "dense, untouched", "dense, 1 epoch", "pruned", "")
    table = table_of(record)
    assert table["Accuracy, cut"] == ("", "", "31.20 %", "−58.59 points")
    assert table["Accuracy, repaired: least squares"][2] == "85.33 %"
    assert table["Accuracy, fine-tuned 1 epoch"] == (
        "",
        "90.12 %",
        "89.21 %",
        "−0.91 ± 0.60 points against that dense",
    )
    assert table["Accuracy, as deployed"] == ("89.79 %", "", "89.21 %", "−0.58 ± 0.80 points, a tie")
    assert not any("recalibration" in name for name in table)
    for name, row in table.items():
        if "epoch" in name:
            assert "89.79 %" not in row  # the untouched network was not trained


def test_training_that_was_thrown_away_is_not_told_as_training() -> None:
    kept = pruned(accuracy=0.8533)
    record = make_record(pruned=kept, test=TEST, dense_finetuned=TUNED, kept="repaired", tuned_epochs=1)
    assert table_of(record)["Accuracy, fine-tuned 1 epoch"] == ("", "90.12 %", "thrown away", "")
    assert table_of(record)["Accuracy, as deployed"][2] == "85.33 %"
    alone = make_record(pruned=kept, kept="repaired", tuned_epochs=1)
    assert not any("fine-tuned" in name for name in table_of(alone))
    page = render(alone)
    assert ">1 epoch<" not in page
    untrained = make_record(pruned=pruned(accuracy=0.8533), epochs=0)
    assert [name for name in table_of(untrained) if "Accuracy" in name] == [
        "Accuracy, cut",
        "Accuracy, repaired: least squares",
        "Accuracy, as deployed",
    ]


@pytest.mark.parametrize(
    ("repair", "words"),
    [
        ("batch norm", "Accuracy, repaired: batch-norm statistics"),
        ("least squares and batch norm", "Accuracy, repaired: least squares and batch-norm statistics"),
        ("bias correction", "Accuracy, repaired: bias correction"),
    ],
)
def test_the_repair_is_named(repair: str, words: str) -> None:
    assert words in table_of(make_record(pruned=pruned(repaired_by=repair)))


def test_no_repair_has_no_row() -> None:
    nothing = pruned(repaired_by="", accuracy_recalibrated=0.312)
    assert not any("repaired" in name for name in table_of(make_record(pruned=nothing)))


@pytest.mark.parametrize(
    ("speedup", "ratio", "upper", "words"),
    [
        (1.71, 0.585, 0.591, "1.71× faster"),
        (1.005, 0.995, 0.999, "as fast, a tie"),
        (0.97, 1.03, 1.08, "as fast, a tie"),
        (0.8, 1.25, 1.26, "1.25× slower"),
    ],
)
def test_faster_is_said_of_what_is_faster(speedup: float, ratio: float, upper: float, words: str) -> None:
    record = make_record(speedup=speedup, latency_ratio=ratio, latency_ratio_upper=upper)
    assert table_of(record)["Latency, measured"][-1] == words
    shown = io.StringIO()
    console.show(record, Console(file=shown, width=160))
    for text in (wording.verdict(record), render(record), shown.getvalue()):
        assert ("faster" in text) == ("faster" in words)
        assert ("slower" in text) == ("slower" in words)
        assert "tie" in text or "tie" not in words


def test_the_verdict_names_both_dense_networks_and_ties() -> None:
    record = make_record(pruned=pruned(), test=TEST, dense_finetuned=TUNED, kept="tuned", tuned_epochs=1)
    told = wording.verdict(record)
    assert "−0.58 ± 0.80 points against dense untouched, a tie" in told
    assert "−0.91 ± 0.60 points against dense fine-tuned for 1 epoch." in told
    page = render(record)
    assert "2000 images, standard error 0.69 points" in page
    assert "Fine-tune dense" in page


def test_files_of_older_versions_are_read(tmp_path: Path) -> None:
    raw = json.loads(make_record().to_json())
    for name in ("test", "dense_finetuned", "kept", "tuned_epochs"):
        del raw[name]
    del raw["pruned"]["repaired_by"]
    (tmp_path / "result.json").write_text(json.dumps(raw))
    old = Record.load(tmp_path / "result.json")
    assert old.test is None
    assert "85.33 %" in table_of(old)["Accuracy, repaired"]
    assert "against dense untouched" in wording.verdict(old)
    assert "<svg" in render(old)
