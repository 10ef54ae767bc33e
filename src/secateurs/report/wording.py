"""Numbers as people read them: milliseconds, counts, bytes, shares. One place, so that every page says it alike."""

from __future__ import annotations

from secateurs.report.record import Record


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


def verdict(record: Record) -> str:
    """Were the budgets met (or what was picked), how much faster, at what accuracy."""
    change = points(record.pruned.accuracy - record.dense.accuracy)
    tail = f"{record.speedup:.2f}× faster than dense, accuracy {percent(record.pruned.accuracy)} ({change})."
    if not record.budgets:
        model = "" if record.predicted_ms is None else f", {milliseconds(record.predicted_ms)} by the model"
        return (
            f"{record.budget[:1].upper()}{record.budget[1:]}: {milliseconds(record.pruned.latency_ms)} measured, "
            f"{percent(record.latency_ratio, 1)} of dense{model}. {tail}"
        )
    parts = [
        f"{amount(one.pruned, one.unit)} {WHAT[one.resource]}, {percent(one.used, 1)} of the budget of "
        f"{amount(one.limit, one.unit)} ({one.text})"
        for one in record.budgets
    ]
    if all(one.met for one in record.budgets):
        head = "Budget met" if len(parts) == 1 else "Budgets met"
    else:
        head = "Budget missed"
    return f"{head}: {'; '.join(parts)}. {tail}"


def rows(record: Record) -> list[tuple[str, str, str, str]]:
    """The table dense against pruned: (figure, dense, pruned, change)."""
    dense, pruned = record.dense, record.pruned

    def latency(side_ms: float, spread: float) -> str:
        return f"{milliseconds(side_ms)} ± {percent(spread / 2, 1)}"

    def kept(before: float, after: float) -> str:
        return f"{percent(after / before, 1)} kept" if before else "–"

    table = [
        (
            "Latency, measured",
            latency(dense.latency_ms, dense.latency_spread),
            latency(pruned.latency_ms, pruned.latency_spread),
            f"{record.speedup:.2f}× faster",
        ),
        ("Accuracy after the cut", "", percent(pruned.accuracy_cut), points(pruned.accuracy_cut - dense.accuracy)),
        (
            "Accuracy after recalibration",
            "",
            percent(pruned.accuracy_recalibrated),
            points(pruned.accuracy_recalibrated - dense.accuracy),
        ),
    ]
    name = f"Accuracy after {record.epochs} epoch{'s' if record.epochs != 1 else ''}" if record.epochs else "Accuracy"
    table.append((name, percent(dense.accuracy), percent(pruned.accuracy), points(pruned.accuracy - dense.accuracy)))
    table.append(("Multiply-adds", count(dense.macs), count(pruned.macs), kept(dense.macs, pruned.macs)))
    table.append(("Parameters", count(dense.params), count(pruned.params), kept(dense.params, pruned.params)))
    table.append(("File", size(dense.file_bytes), size(pruned.file_bytes), kept(dense.file_bytes, pruned.file_bytes)))
    if dense.memory_bytes and pruned.memory_bytes:
        memory = (size(dense.memory_bytes), size(pruned.memory_bytes), kept(dense.memory_bytes, pruned.memory_bytes))
        table.append(("Peak memory", *memory))
    return table
