"""front.html: the front as one self-contained page. Hover or focus shows a network, click copies the command for it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from importlib import resources

from secateurs.cost import quantity
from secateurs.report import wording
from secateurs.report.front_charts import front_chart, hypervolume_chart, quota_chart
from secateurs.report.front_record import Front, FrontPoint


def render_front(front: Front) -> str:
    """The whole page as HTML text."""
    package = resources.files("secateurs.report")
    style = package.joinpath("page.css").read_text(encoding="utf-8")
    style += package.joinpath("front.css").read_text(encoding="utf-8")
    script = package.joinpath("front.js").read_text(encoding="utf-8")
    title = f"Pareto front of {front.model} on {front.target}"
    key = (
        "<p class='key'><i style='background:var(--kept)'></i>front<i style='background:var(--accent)'></i>after "
        "fine-tuning (test error, measured)<i style='background:var(--soft)'></i>before the search: uniform, knapsack"
        "<i style='background:var(--blue)'></i>dense</p>"
    )
    body = [
        f"<h1>{escape(title)}</h1><p class='soft'>hamp with {escape(front.criterion)} scores, seed {front.seed}, "
        f"{front.evaluations} real evaluations on {front.images} images ({escape(front.data)}), ended by "
        f"{escape(front.stopped)}; {escape(front.created)}</p>",
        f"<section><h2>Error against {escape(front.main)}</h2>{key}<div class='stage'>{front_chart(front)}"
        "<aside id='card'><p class='soft'>Point at a network to see what it keeps. Click copies the command that makes "
        "it.</p></aside></div></section>",
        _section("Carried to the end and measured", _tuned(front)),
        "<div class='pair'>",
        _section("Hypervolume", hypervolume_chart(front)),
        _section("Portfolio", quota_chart(front)),
        "</div>",
        _section("All points", _table(front)),
        _section("Do it again", f"<pre>{escape(front.command)}</pre>"),
    ]
    # "<" must not end the script element from inside a string.
    held = json.dumps(_held(front)).replace("<", "\\u003c")
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{escape(title)}</title><style>{style}</style></head>\n<body><main>\n"
        + "\n".join(body)
        + f"\n</main><script>const FRONT = {held};\n{script}</script></body></html>\n"
    )


def _section(heading: str, content: str) -> str:
    return f"<section><h2>{escape(heading)}</h2>{content}</section>"


def command_for(front: Front, point: FrontPoint) -> str:
    """The command line that carries a point through repair, fine-tuning and measurement."""
    return f"{front.resume} --pick point={point.number}"


def _held(front: Front) -> dict[str, object]:
    """What the page's script needs."""
    return {
        "sizes": front.group_sizes,
        "points": {
            point.number: {
                "title": f"Point {point.number}: {_figures(front, point)}",
                "widths": point.widths,
                "removed": point.removed,
                "command": command_for(front, point),
            }
            for point in front.points
        },
    }


def _figures(front: Front, point: FrontPoint) -> str:
    costs = ", ".join(
        f"{quantity(point.costs[name], front.units[name])} ({wording.percent(point.costs[name] / dense, 0)} of dense)"
        for name, dense in front.dense_costs.items()
    )
    return f"{wording.proxy_name(front.metric)} {wording.proxy(front.metric, point.error)}, {costs}"


def _table(front: Front) -> str:
    knee = front.knee().number
    timed = any(point.measured_ms is not None for point in front.points)
    weighed = any(point.measured_memory_bytes is not None for point in front.points)
    measured = [*(["latency, measured"] if timed else []), *(["memory, measured"] if weighed else [])]
    names = [*front.dense_costs, *measured, "blocks removed"]
    rows = []
    for point in front.points:
        cells = [f"{point.number}{' (knee)' if point.number == knee else ''}", wording.proxy(front.metric, point.error)]
        cells += [quantity(point.costs[name], front.units[name]) for name in front.dense_costs]
        if timed:
            cells.append("" if point.measured_ms is None else wording.milliseconds(point.measured_ms))
        if weighed:
            seen = point.measured_memory_bytes
            cells.append("" if seen is None else quantity(seen, front.units["memory"]))
        rows.append([*cells, str(len(point.removed))])
    return _grid(["point", wording.proxy_name(front.metric), *names], rows, "scroll tall")


def _tuned(front: Front) -> str:
    """Proxy beside the deployed networks' figures, and how well the proxy ranked."""
    tuned = [point for point in front.points if point.tuned is not None]
    if not tuned:
        return f"<p class='soft'>None yet. Pick one: <code>{escape(front.resume)} --pick knee</code></p>"
    names = [name for name in front.dense_costs if name not in ("latency", "macs")]
    head = [
        "point",
        f"validation {wording.proxy_name(front.metric)} in the search",
        f"test {front.metric.name}, deployed",
        "what that is",
        "latency by the model",
        "measured",
        "of dense",
    ]
    rows = []
    for point in tuned:
        assert point.tuned is not None
        predicted = point.costs.get("latency")
        cells = [
            str(point.number),
            wording.proxy(front.metric, point.error),
            wording.value(front.metric, point.tuned.accuracy),
            point.tuned.how,
            "" if predicted is None else wording.milliseconds(predicted),
            wording.milliseconds(point.tuned.latency_ms),
            wording.percent(point.tuned.latency_ratio, 1),
        ]
        for name in names:
            found = point.tuned.measured(name)
            cells.append(quantity(point.costs[name], front.units[name]))
            cells.append("" if found is None else quantity(found, front.units[name]))
        rows.append(cells)
    head += [text for name in names for text in (f"{name.replace('_', ' ')} by the model", "measured")]
    note = ""
    if front.rank_correlation is not None:
        note = (
            f"<p class='soft'>Rank correlation (Spearman) between the search's {wording.proxy_name(front.metric)} and "
            f"the deployed test {wording.proxy_name(front.metric)}: "
            f"{front.rank_correlation:.2f} over {len(tuned)} networks.</p>"
        )
    return _grid(head, rows, "scroll") + note


def _grid(head: Sequence[str], rows: Sequence[Sequence[str]], name: str) -> str:
    lines = ["<tr>" + "".join(f"<th>{escape(cell)}</th>" for cell in head) + "</tr>"]
    lines += ["<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows]
    return f"<div class='{name}'><table>{''.join(lines)}</table></div>"
