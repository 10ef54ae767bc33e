"""The report as one self-contained HTML page: no scripts, no outside references."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from importlib import resources

from secateurs.budgets import ACCURACY
from secateurs.report import wording
from secateurs.report.charts import metric_chart, prediction_chart, widths_chart
from secateurs.report.record import FileRecord, GroupRecord, LayersRecord, Record, Validation
from secateurs.report.searching import sections


def render(record: Record, extra_sections: tuple[tuple[str, str], ...] = ()) -> str:
    """The whole page as HTML text. ``extra_sections``: (heading, HTML) pairs that a strategy adds."""
    style = resources.files("secateurs.report").joinpath("page.css").read_text(encoding="utf-8")
    title, name = wording.title(record), record.metric.name
    body = [
        f"<h1>{escape(title)}</h1>",
        f"<p class='soft'>{escape(record.strategy)} with {escape(record.criterion)} scores, seed {record.seed}, "
        f"{escape(record.created)}</p>",
        f"<p class='verdict{'' if record.pruned_within_budget else ' missed'}'>{escape(wording.verdict(record))}</p>",
        _tiles(record),
        _section("Dense against pruned", _table(record)),
        *([_section("On every target", _targets(record))] if len(record.targets) > 1 else []),
        *([_section("Float and quantised", _files(record, record.files, record.int8_layers))] if record.files else []),
        *(
            _section(f"Float and quantised on {one.name}", _files(record, one.files))
            for one in record.targets[1:]
            if one.files
        ),
        *([_section(f"Networks tried for the {name}", _tried(record, record.validation))] if record.validation else []),
        _section("Needs attention", _notes(record)),
        _section("Units kept per group", _widths(record)),
        "<div class='pair'>",
        _section("Predicted against measured latency", _prediction(record)),
        _section(f"{record.metric.words} on the way", _accuracy(record)),
        "</div>",
        *(_section(heading, content) for heading, content in (*sections(record.search), *extra_sections)),
        _section("Where the time went", _seconds(record)),
        _section("Do it again", _reproduce(record)),
    ]
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{escape(title)}</title><style>{style}</style></head>\n<body><main>\n"
        + "\n".join(body).replace(" %", "\u00a0%")
        + "\n</main></body></html>\n"
    )


def _section(heading: str, content: str) -> str:
    return f"<section><h2>{escape(heading)}</h2>{content}</section>"


def _tiles(record: Record) -> str:
    dense, pruned = record.dense, record.pruned
    factor, _, kind = ("a tie", "", "as fast as dense") if record.latency_tie else wording.speed(record).partition(" ")
    tiles = [
        (factor, f"{kind}, {wording.milliseconds(pruned.latency_ms)} a run"),
        (
            wording.value(record.metric, pruned.accuracy),
            f"{record.metric.name}, {wording.beside_dense(record, 'dense untouched')}",
        ),
        (wording.percent(pruned.macs / max(1, dense.macs), 0), "of the multiply-adds kept"),
        (wording.percent(pruned.params / max(1, dense.params), 0), "of the parameters kept"),
        (wording.size(pruned.file_bytes), f"on disk, was {wording.size(dense.file_bytes)}"),
    ]
    inner = "".join(f"<div class='tile'><b>{escape(big)}</b><span>{escape(small)}</span></div>" for big, small in tiles)
    return f"<div class='tiles'>{inner}</div>"


def _table(record: Record) -> str:
    return (
        f"{_cells(wording.columns(record), wording.rows(record))}"
        f"<p class='soft' style='margin-top:10px'>Latency: median of one interleaved run of both files on "
        f"{escape(record.target.name)} ({record.target.threads} thread{'s' if record.target.threads != 1 else ''}, "
        f"batch {record.batch}, {escape(record.target.precision)}), ± half the interquartile range. "
        f"Ratio to dense {wording.percent(record.latency_ratio, 1)}, at most "
        f"{wording.percent(record.latency_ratio_upper, 1)} (95 %). {escape(_measure(record))} "
        f"on the test set, which nothing was chosen on{_test(record)}.</p>"
    )


def _targets(record: Record) -> str:
    models = [
        f"{one.name} {wording.percent(one.latency_model.mean_abs, 1)} on average, "
        f"{wording.percent(one.latency_model.p95, 1)} at the 95th percentile"
        for one in record.targets
        if one.latency_model is not None
    ]
    errors = f" Errors of the latency models on held-out networks: {escape('; '.join(models))}." if models else ""
    return (
        f"{_cells(wording.target_columns(record.metric), wording.target_rows(record))}"
        f"<p class='soft' style='margin-top:10px'>One network, exported for every target and measured there beside the "
        f"dense one in one interleaved run; the other figures of this page are those of the first target.{errors}</p>"
    )


def _measure(record: Record) -> str:
    """What the metric is."""
    metric = record.metric
    if metric == ACCURACY:
        return f"Accuracy: top-1 over {record.class_count} classes"
    return f"{metric.words} ({metric.better} is better)"


def _files(record: Record, files: Sequence[FileRecord], layers: LayersRecord | None = None) -> str:
    figures = "Accuracies" if record.metric == ACCURACY else f"Figures of {escape(record.metric.name)}"
    return (
        f"{_cells(wording.file_columns(record.metric), wording.file_rows(files, record.metric))}"
        f"<p class='soft' style='margin-top:10px'>All four from one interleaved run. {figures} of quantised files are "
        f"those of the runtime's own answers.{escape(wording.int8_layers(layers))}</p>"
    )


def _tried(record: Record, validation: Validation) -> str:
    metric = record.metric
    return (
        f"{_cells(wording.step_columns(metric), wording.step_rows(validation, metric))}"
        f"<p class='soft' style='margin-top:10px'>In the order of trying, by bisection over the latency, as shares of "
        f"dense. {wording.value(metric, validation.least)} must stay on {validation.samples} validation images.</p>"
    )


def _cells(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in HTML."""
    head = "<tr>" + "".join(f"<th>{escape(name)}</th>" for name in columns) + "</tr>"
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<div class='scroll'><table>{head}{body}</table></div>"


def _test(record: Record) -> str:
    """How much the test images tell."""
    test = record.test
    if test is None:
        return ""
    if record.metric != ACCURACY:
        if test.standard_error is None:
            return f": {test.samples} samples; how far it is to be trusted is not known of this metric"
        return (
            f": {test.samples} samples, standard error {record.metric.distance(test.standard_error)}, by leaving out "
            f"blocks of samples (jackknife). Differences are taken block by block, ± two standard errors; one within "
            f"them is a tie"
        )
    return (
        f": {test.samples} images, standard error {100 * (test.standard_error or 0.0):.2f} points. Differences are "
        f"taken image by image, ± two standard errors; one within them is a tie"
    )


def _notes(record: Record) -> str:
    if not record.notes:
        return "<p class='soft'>Nothing.</p>"
    return "<ul>" + "".join(f"<li>{escape(note)}</li>" for note in record.notes) + "</ul>"


def _widths(record: Record) -> str:
    gone: list[GroupRecord] = [group for group in record.groups if group.kept == 0]
    key = "<p class='key'><i style='background:var(--kept)'></i>kept<i style='background:var(--frame)'></i>dense</p>"
    blocks = ""
    if record.blocks_removed:
        names = ", ".join(escape(name) for name in record.blocks_removed)
        blocks = f"<p>Whole blocks removed: {names}.</p>"
    tall = " class='tall'" if len(record.groups) > 40 else ""
    return f"{key}{blocks}<div{tall}>{widths_chart(record.groups, gone)}</div>"


def _prediction(record: Record) -> str:
    kinds = {point.kind for point in record.points}
    names = {
        "held-out": ("--blue", "held-out network"),
        "candidate": ("--accent", "candidate plan"),
        "final": ("--kept", "final"),
    }
    key = "".join(
        f"<i style='background:var({colour})'></i>{name}" for kind, (colour, name) in names.items() if kind in kinds
    )
    error = ""
    if record.latency_model is not None:
        model = record.latency_model
        error = (
            f"<p class='soft'>Latency model on {model.networks or 'its'} held-out networks: mean error "
            f"{wording.percent(model.mean_abs, 1)}, 95th percentile {wording.percent(model.p95, 1)}, "
            f"rank correlation {model.spearman:.3f}.</p>"
        )
    return f"<p class='key'>{key}</p>{prediction_chart(record.points)}{error}"


def _accuracy(record: Record) -> str:
    stages = [
        ("dense", record.dense.accuracy),
        ("cut", record.pruned.accuracy_cut),
        ("repaired", record.pruned.accuracy_recalibrated),
    ]
    if record.kept == "tuned":
        stages.append((wording.epochs(record.tuned_epochs), record.pruned.accuracy))
    elif record.pruned.accuracy != record.pruned.accuracy_recalibrated:
        stages.append(("deployed", record.pruned.accuracy))
    return metric_chart(stages, record.metric)


def _seconds(record: Record) -> str:
    seconds = record.seconds
    stages = {
        "Trace": seconds.trace,
        "Latency model": seconds.profile,
        "Search": seconds.search,
        "Repair": seconds.recover,
        "Fine-tune": seconds.finetune,
        "Fine-tune dense": seconds.dense_finetune,
        "Export and measure": seconds.measure,
    }
    items = "".join(f"<dt>{name}</dt><dd>{wording.duration(value)}</dd>" for name, value in stages.items())
    return f"<dl>{items}<dt>Total</dt><dd><b>{wording.duration(seconds.total)}</b></dd></dl>"


def _reproduce(record: Record) -> str:
    facts = {
        "Device": f"{record.target.fingerprint}",
        "Data": record.data,
        "Weights": record.weights or "none given",
        "Versions": ", ".join(f"{name} {version}" for name, version in record.versions.items()),
        "Export": f"differs from PyTorch by at most {record.export_max_rel_error:.1e} (relative)",
        "Cut": f"differs from the dense network with the same units ignored by at most "
        f"{record.structure_check_rel_error:.1e} (relative, fp64, redrawn weights)",
        "Closed loop": f"{record.rounds} plan{'s' if record.rounds != 1 else ''} measured",
    }
    if record.gap is not None:
        facts["Search"] = f"within {wording.percent(record.gap, 3)} of the best plan the latency model knows of"
    items = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts.items() if value)
    command = f"<pre>{escape(record.command)}</pre>" if record.command else ""
    return f"{command}<dl>{items}</dl>"
