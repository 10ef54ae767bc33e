"""Numbers as people read them: milliseconds, counts, bytes, shares. One place, so that every page says it alike."""

from __future__ import annotations

from collections.abc import Sequence

from secateurs.budgets import ACCURACY, Metric
from secateurs.report.record import BudgetRecord, FileRecord, LayersRecord, Record, TargetRow, Validation


def milliseconds(value: float) -> str:
    """``0.412 ms``, ``3.41 ms``, ``128 ms``: three significant digits."""
    return f"{significant(value)} ms"


def significant(value: float, digits: int = 3) -> str:
    """``value`` with that many significant digits and no exponent."""
    if value == 0:
        return "0"
    text = f"{value:.{digits}g}"
    if abs(value) >= 1000:
        return f"{float(text):,.0f}"
    if "e" in text:
        return f"{value:.{digits + 5}f}"
    whole, _, fraction = text.partition(".")
    missing = digits - len((whole + fraction).lstrip("-0"))
    return text if missing <= 0 else f"{whole}.{fraction}{'0' * missing}"


def count(value: int) -> str:
    """``855 k``, ``126 M``, ``4.09 G``."""
    for limit, unit in ((1_000_000_000, " G"), (1_000_000, " M"), (1_000, " k")):
        if value >= limit:
            return f"{significant(value / limit)}{unit}"
    return str(value)


def size(value: int) -> str:
    """``3.41 MB``; decimal units."""
    for limit, unit in ((1_000_000_000, " GB"), (1_000_000, " MB"), (1_000, " kB")):
        if value >= limit:
            return f"{significant(value / limit)}{unit}"
    return f"{value} B"


def amount(value: float, unit: str) -> str:
    """``3.41 ms``, ``3.41 MB`` or ``126 M multiply-adds``."""
    if unit == "ms":
        return milliseconds(value)
    return size(round(value)) if unit == "bytes" else f"{count(round(value))} multiply-adds"


def percent(fraction: float, digits: int = 2) -> str:
    """``89.79 %``."""
    return f"{100 * fraction:.{digits}f} %"


def points(difference: float) -> str:
    """A difference of two accuracies: ``−0.41 points``."""
    sign = "−" if difference < 0 else "+"
    return f"{sign}{100 * abs(difference):.2f} points"


def value(metric: Metric, found: float) -> str:
    """``89.79 %``, ``31.52 dB``: what networks are judged by."""
    return percent(found) if metric.unit == "%" else metric.said(found)


def apart(metric: Metric, difference: float) -> str:
    """``−0.41 points``, ``+0.3 dB``: a difference of two values."""
    return points(difference) if metric.unit == "%" else metric.change(difference)


def proxy(metric: Metric, error: float) -> str:
    """What a search judged a network by: its error, of other tasks than classification their metric."""
    return percent(error, 1) if metric == ACCURACY else value(metric, metric.value_of(1.0 - error))


def proxy_name(metric: Metric) -> str:
    """What :func:`proxy` shows."""
    return "error" if metric == ACCURACY else metric.name


def duration(seconds: float) -> str:
    """``0.8 s``, ``41 s``, ``3 min 20 s``, ``1 h 02 min``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


WHAT = {
    "latency": "measured",
    "memory": "of memory at the peak, measured",
    "file_size": "on disk",
    "macs": "left",
}


REPAIRS = {
    "batch norm": "batch-norm statistics",
    "least squares and batch norm": "least squares and batch-norm statistics",
}
"""Repairs whose names do not say enough."""


def speed(record: Record | TargetRow) -> str:
    """``1.71× faster``, ``1.08× slower``, or that the measurement tells no difference."""
    if record.latency_tie:
        return "as fast, a tie"
    return f"{record.speedup:.2f}× faster" if record.speedup >= 1 else f"{1 / record.speedup:.2f}× slower"


def change(difference: float, error: float | None, whom: str = "", *, tie: bool, metric: Metric = ACCURACY) -> str:
    """``−0.41 ± 0.60 points, a tie``: a difference of accuracies with two standard errors; ``whom``: against whom."""
    text, unit = apart(metric, difference), " points" if metric.unit == "%" else f" {metric.unit}".rstrip()
    if error is not None:
        text = f"{text.removesuffix(unit)} ± {metric.distance(2 * error)}"
    return f"{text}{f' against {whom}' if whom else ''}{', a tie' if tie else ''}"


def beside_dense(record: Record, whom: str = "") -> str:
    """The pruned network's accuracy against the untouched dense one's."""
    test = record.test
    if test is None:
        difference = record.pruned.accuracy - record.dense.accuracy
        return apart(record.metric, difference) + (f" against {whom}" if whom else "")
    return change(test.difference, test.difference_standard_error, whom, tie=test.tie, metric=record.metric)


def beside_tuned(record: Record, whom: str = "") -> str:
    """The same against the dense one that was fine-tuned equally; "" where it was not."""
    tuned = record.dense_finetuned
    if tuned is None:
        return ""
    return change(tuned.difference, tuned.difference_standard_error, whom, tie=tuned.tie, metric=record.metric)


def epochs(count: int) -> str:
    """``1 epoch``, ``3 epochs``."""
    return f"{count} epoch{'s' if count != 1 else ''}"


def verdict(record: Record) -> str:
    """Were the budgets met (or what was picked), how much faster, at what accuracy."""
    tuned = record.dense_finetuned
    equally = "" if tuned is None else f"; {beside_tuned(record, f'dense fine-tuned for {epochs(tuned.epochs)}')}"
    pace = "As fast as dense (a tie)" if record.latency_tie else f"{speed(record)} than dense"
    if len(record.targets) > 1:
        pace = f"Beside dense {', '.join(f'{speed(one)} on {one.name}' for one in record.targets)}"
    reached = f"{record.metric.name} {value(record.metric, record.pruned.accuracy)}"
    tail = f"{pace}, {reached}: {beside_dense(record, 'dense untouched')}{equally}."
    if record.validation is not None:
        return f"{_held(record, record.validation)}. {tail}"
    if not record.budgets:
        model = "" if record.predicted_ms is None else f", {milliseconds(record.predicted_ms)} by the model"
        return (
            f"{record.budget[:1].upper()}{record.budget[1:]}: {milliseconds(record.pruned.latency_ms)} measured, "
            f"{percent(record.latency_ratio, 1)} of dense{model}. {tail}"
        )
    parts = [
        f"{amount(one.pruned, one.unit)} {_what(one)}, {percent(one.used, 1)} of the budget of "
        f"{amount(one.limit, one.unit)} ({one.text})"
        for one in record.budgets
    ]
    if all(one.met for one in record.budgets):
        head = "Budget met" if len(parts) == 1 else "Budgets met"
    else:
        head = "Budget missed"
    return f"{head}: {'; '.join(parts)}. {tail}"


def _what(budget: BudgetRecord) -> str:
    """``measured``, ``measured on openvino-cpu``."""
    return WHAT[budget.resource] + (f" on {budget.target}" if budget.target else "")


def title(record: Record) -> str:
    """What was asked, on which targets."""
    where = "" if len(record.targets) > 1 else f" on {record.target.name}"
    return f"{record.model} at {record.budget}{where}"


def _held(record: Record, validation: Validation) -> str:
    """Whether the accuracy that was asked for is held, and how fast the network is that holds it."""
    parts = [
        f"Bound {'held' if validation.held else 'missed'}: {record.budget}",
        f"validation {record.metric.name} {value(record.metric, validation.repaired)} repaired, "
        f"{value(record.metric, validation.dense)} dense",
        f"{milliseconds(record.pruned.latency_ms)} measured, {percent(record.latency_ratio, 1)} of dense",
    ]
    missed = [_what(one) for one in record.budgets if not one.met]
    parts += [f"over the budget {text}" for text in missed]
    return "; ".join(parts)


def step_columns(metric: Metric) -> tuple[str, ...]:
    """Headings of :func:`step_rows`."""
    return ("network", "latency by the model", "measured", f"validation {metric.name}, repaired", "against dense", "")


def step_rows(validation: Validation, metric: Metric) -> list[tuple[str, ...]]:
    """Networks that were tried for an accuracy, one row each."""
    return [
        (
            str(number),
            percent(one.predicted_ratio, 1),
            "" if one.latency_ratio is None else percent(one.latency_ratio, 1),
            value(metric, one.accuracy),
            apart(metric, one.accuracy - validation.dense),
            "chosen" if one.chosen else "enough" if one.holds else "too little",
        )
        for number, one in enumerate(validation.steps, 1)
    ]


def columns(record: Record) -> tuple[str, ...]:
    """Headings of :func:`rows`: the dense network trained equally has a column of its own where there is one."""
    tuned = record.dense_finetuned
    equally = () if tuned is None else (f"dense, {epochs(tuned.epochs)}",)
    return ("", "dense, untouched", *equally, "pruned", "")


def rows(record: Record) -> list[tuple[str, ...]]:
    """The table dense against pruned; see :func:`columns`."""
    dense, pruned = record.dense, record.pruned

    def latency(side_ms: float, spread: float) -> str:
        return f"{milliseconds(side_ms)} ± {percent(spread / 2, 1)}"

    def kept(before: float, after: float) -> str:
        return f"{percent(after / before, 1)} kept" if before else "–"

    measured = (latency(dense.latency_ms, dense.latency_spread), latency(pruned.latency_ms, pruned.latency_spread))
    table = [
        ("Latency, measured", measured[0], "", measured[1], speed(record)),
        *_accuracies(record),
        ("Multiply-adds", count(dense.macs), "", count(pruned.macs), kept(dense.macs, pruned.macs)),
        ("Parameters", count(dense.params), "", count(pruned.params), kept(dense.params, pruned.params)),
        ("File", size(dense.file_bytes), "", size(pruned.file_bytes), kept(dense.file_bytes, pruned.file_bytes)),
    ]
    if dense.memory_bytes and pruned.memory_bytes:
        memory = (size(dense.memory_bytes), size(pruned.memory_bytes))
        table.append(("Peak memory", memory[0], "", memory[1], kept(dense.memory_bytes, pruned.memory_bytes)))
    with_tuned = record.dense_finetuned is not None
    return [row if with_tuned else (*row[:2], *row[3:]) for row in table]


def _accuracies(record: Record) -> list[tuple[str, str, str, str, str]]:
    """What was done to which network, one row per step, and the deployed one beside dense."""
    dense, pruned, tuned = record.dense, record.pruned, record.dense_finetuned
    before, after = in_float(record)
    metric, words = record.metric, record.metric.words
    cut, recalibrated = pruned.accuracy_cut, pruned.accuracy_recalibrated
    found = [(f"{words}, cut", "", "", value(metric, cut), apart(metric, cut - before))]
    if pruned.repaired_by:
        how = REPAIRS.get(pruned.repaired_by, pruned.repaired_by)
        change_now = apart(metric, recalibrated - before)
        found.append((f"{words}, repaired: {how}", "", "", value(metric, recalibrated), change_now))
    elif recalibrated != cut:
        change_now = apart(metric, recalibrated - before)
        found.append((f"{words}, repaired", "", "", value(metric, recalibrated), change_now))
    trained = record.kept == "tuned"
    if trained or tuned is not None:
        lengths = {record.tuned_epochs} if trained else set()
        lengths |= set() if tuned is None else {tuned.epochs}
        name = f"{words}, fine-tuned {epochs(lengths.pop())}" if len(lengths) == 1 else f"{words}, fine-tuned"
        shown = value(metric, after) if trained else "thrown away" if record.kept == "repaired" else ""
        beside = beside_tuned(record, "that dense") if trained and not record.files else ""
        found.append((name, "", "" if tuned is None else value(metric, tuned.accuracy), shown, beside))
    if record.validation is not None:
        seen = record.validation
        limit = "≥" if metric.better == "higher" else "≤"
        name = f"Validation {metric.name}, repaired ({limit} {value(metric, seen.least)})"
        error = change(seen.difference, seen.difference_standard_error, tie=seen.tie, metric=metric)
        found.append((name, value(metric, seen.dense), "", value(metric, seen.repaired), error))
    both = (value(metric, dense.accuracy), "", value(metric, pruned.accuracy))
    found.append((f"{words}, as deployed", *both, beside_dense(record)))
    return found


def target_columns(metric: Metric) -> tuple[str, ...]:
    """Headings of :func:`target_rows`."""
    return ("target", "dense", "pruned", "", "of the budget", metric.name, "by the model", "file")


def target_rows(record: Record) -> list[tuple[str, ...]]:
    """The network on every target, one row each; see :func:`target_columns`."""
    return [
        (
            one.name,
            milliseconds(one.dense.latency_ms),
            milliseconds(one.pruned.latency_ms),
            speed(one),
            _of_budget(one),
            value(record.metric, one.pruned.accuracy),
            "" if one.predicted_ms is None else milliseconds(one.predicted_ms),
            f"{one.file}, {size(one.pruned.file_bytes)}",
        )
        for one in record.targets
    ]


def _of_budget(row: TargetRow) -> str:
    """``97.4 % of 60%``, with ``missed`` where it is; "" without a budget."""
    if row.budget_ms is None:
        return ""
    used = percent(row.latency_ratio * row.dense.latency_ms / row.budget_ms, 1)
    return f"{used} of {row.budget}{'' if row.met else ', missed'}"


def file_columns(metric: Metric) -> tuple[str, ...]:
    """Headings of :func:`file_rows`."""
    return ("file", "latency", "beside dense float", metric.name, "size")


def in_float(record: Record) -> tuple[float, float]:
    """Accuracies of the dense and the pruned network in float numbers, before a file of them was quantised."""
    known = {one.network: one.accuracy for one in record.files if one.precision == "f32"}
    return known.get("dense", record.dense.accuracy), known.get("pruned", record.pruned.accuracy)


def int8_layers(layers: LayersRecord | None) -> str:
    """How many layers of a quantised file are quantised, and which are not."""
    if layers is None:
        return ""
    left = f"; in float: {', '.join(layers.in_float)}" if layers.in_float else ""
    return f" Layers of the pruned file in int8: {layers.quantised} of {layers.count}{left}."


def file_rows(files: Sequence[FileRecord], metric: Metric = ACCURACY) -> list[tuple[str, ...]]:
    """The four files of a quantised target, one row each; see :func:`file_columns`."""
    first = next((one.ratio for one in files if (one.network, one.precision) == ("dense", "f32")), 1.0)
    return [
        (
            f"{one.network}, {one.precision}",
            milliseconds(one.latency_ms),
            "" if one.ratio == first else _beside(first / one.ratio),
            value(metric, one.accuracy),
            size(one.file_bytes),
        )
        for one in files
    ]


def _beside(factor: float) -> str:
    return f"{factor:.2f}× faster" if factor > 1 else f"{1 / factor:.2f}× slower"
