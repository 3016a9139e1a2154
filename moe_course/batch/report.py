"""The page about a batch: each recorded number against each swept parameter, failures, slow cells, all runs.

One file without a network: plotly.js is in it once. The page draws what is asked for in the browser (`report.js`), so
thirty numbers and four parameters are thirty folded cards, not 120 plots.
"""

import json
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import quote

from moe_course.batch.report_runs import all_runs, failures, slow_cells
from moe_course.batch.results import DONE, NOT_STARTED
from moe_course.batch.swept import SEED, Swept, label, number, scale, setting, swept
from moe_course.grading.pages import STYLE, details, text

OPEN = 4  # cards of a lesson that are drawn at once
SCRIPT = Path(__file__).with_name("report.js")

MORE_STYLE = """
body { max-width: 88rem; } .controls { position: sticky; top: 0; z-index: 2; background: var(--page); padding: .6rem 0;
  display: flex; flex-wrap: wrap; gap: .5rem 1.4rem; border-bottom: 1px solid var(--line); margin: .8rem 0; }
.controls label { color: var(--soft); } select { font: inherit; color: var(--ink); background: var(--panel);
  border: 1px solid var(--line); border-radius: 6px; padding: .15rem .4rem; max-width: 16rem; }
[hidden] { display: none !important; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 32rem), 1fr)); gap: 1rem;
  align-items: start; }
.cards.wide { grid-template-columns: 1fr; }
.plot-card { border: 1px solid var(--line); border-radius: 6px; background: var(--panel); margin: 0; min-width: 0; }
.plot-card > summary { padding: .6rem 1rem; color: var(--ink); } .plot-card > summary b { margin-right: .6rem; }
td.share button { all: unset; cursor: pointer; display: block; padding: .3rem .6rem; width: 100%;
  box-sizing: border-box; text-align: right; background: rgba(26, 127, 196, var(--share)); }
td.share button:focus-visible, td.share button:hover { outline: 2px solid var(--accent); outline-offset: -2px; }
.overview table { width: auto; } .overview td, .overview th { padding-right: 1.2rem; }
.overview td.share { padding: 0; } .overview th.number { padding: .3rem .6rem .3rem 1.6rem; }
.plot .infolayer text, .plot .xtick text, .plot .ytick text { fill: var(--ink) !important; }
.status { display: flex; flex-wrap: wrap; gap: .4rem 1.6rem; font-size: 1.1rem; margin: .8rem 0; }
"""


def report_page(rows: list[dict[str, Any]], plan: dict[str, Any], sweep: str) -> str:
    """The page.

    Args:
        rows: what `read_rows` gives.
        plan: what plan.json holds, or nothing.
        sweep: the sweep file, or nothing.
    """
    found = swept(rows, plan.get("record", ()))
    title = f"Batch: {plan.get('sweep')}" if plan.get("sweep") else "Batch"
    parts = [f"<h1>{text(title)}</h1>", _about(rows, plan)]
    drawn = [each.lesson for each in found if each.numbers]
    parts += [_section(drawn.index(each.lesson) if each.numbers else 0, each) for each in found]
    if rows and not found:
        parts.append("<p class='warn'>No run is done yet, so there is nothing to draw.</p>")
    parts += [failures(rows), slow_cells(rows), all_runs(rows)]
    if sweep:
        parts.append(details("The sweep file", f"<pre>{text(sweep)}</pre>"))
    return _page(title, "\n".join(parts), [_data(each) for each in found if each.numbers])


def _page(title: str, body: str, data: list[dict[str, Any]]) -> str:
    from plotly.offline import get_plotlyjs

    from moe_course.figures import style

    template = style.pio.templates["moe_course"].to_plotly_json()
    # "<" would end the script early; JSON has another way to write it.
    values = json.dumps({"lessons": data, "template": template}, allow_nan=False).replace("<", "\\u003c")
    policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data: blob:"
    scripts = (
        f"<script>{get_plotlyjs()}</script>\n<script type='application/json' id='data'>{values}</script>\n"
        f"<script>\n{SCRIPT.read_text(encoding='utf-8')}</script>\n"
        if data
        else ""
    )
    return (
        f"<!DOCTYPE html>\n<html lang='en'>\n<head>\n<meta charset='utf-8'>\n"
        f"<meta name='viewport' content='width=device-width, initial-scale=1'>\n"
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f"<title>{text(title)}</title>\n<style>{STYLE}{MORE_STYLE}</style>\n</head>\n<body>\n{body}\n"
        f"{scripts}</body>\n</html>\n"
    )


def _about(rows: list[dict[str, Any]], plan: dict[str, Any]) -> str:
    statuses = Counter(row["status"] for row in rows)
    signs = {DONE: ("good", "✓"), NOT_STARTED: ("wait", "○")}
    counts = []
    for status, count in sorted(statuses.items(), key=lambda item: (item[0] != DONE, -item[1])):
        colour, sign = signs.get(status, ("bad", "✗"))
        shown = f"{sign} {count} {text(status)}"
        bad = f"<a class='bad' href='#failures'>{shown}</a>"
        counts.append(bad if colour == "bad" else f"<span class='{colour}'>{shown}</span>")
    seconds = sum(row["seconds"] or 0.0 for row in rows)
    facts = [f"{len(rows)} runs", f"{_time(seconds)} of computing in all"]
    memory = max((row["peak_memory_mb"] or 0.0 for row in rows), default=0.0)
    if memory:
        facts.append(f"at most {memory:.0f} MB a run")
    if plan.get("created"):
        facts.append(f"planned {text(str(plan['created'])[:16].replace('T', ' '))} UTC")
    if plan.get("package"):
        facts.append(f"MoE Course {text(plan['package'])}")
    tables = "<a href='results.csv'>results.csv</a>, <a href='results.parquet'>results.parquet</a>"
    return (
        f"<p class='soft'>{' · '.join(facts)}</p><div class='status'>{''.join(counts)}</div>"
        f"<p class='soft'>The same as a table: {tables}, or <code>moe_course.batch.load(…)</code> in Python.</p>"
    )


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


# A lesson's results ---------------------------------------------------------------------------------------------------


def _section(index: int, lesson: Swept) -> str:
    """Overview, controls and a card for each number; report.js fills the cards from its data of that index."""
    head = f"<h2>Results of {text(lesson.lesson)}</h2>"
    if not lesson.numbers:
        return f"{head}<p class='soft'>Its runs recorded no number. Call <code>record(name=value)</code> in it.</p>"
    cards = "".join(_card(lesson, place, name) for place, name in enumerate(lesson.numbers))
    return (
        f"<section class='lesson' data-lesson='{index}'>{head}{_overview(lesson)}{_controls(lesson)}"
        "<p class='soft'>A point is a run; click it to open the notebook. Lines go through the means, bands from the "
        f"lowest run to the highest.</p><div class='cards'>{cards}</div></section>"
    )


def _overview(lesson: Swept) -> str:
    """Which number varies with which parameter, as a table whose cells lead to the plots."""
    rows = []
    for place, (name, shares) in enumerate(lesson.numbers.items()):
        cells = "".join(_share(place, parameter, shares[parameter]) for parameter in lesson.parameters)
        rows.append(f"<tr><td><code>{text(name)}</code></td><td>{_range(lesson, name)}</td>{cells}</tr>")
    heads = "".join(f"<th class='number'>{text(name)}</th>" for name in lesson.parameters)
    runs = f"{len(lesson.rows)} run{'' if len(lesson.rows) == 1 else 's'}"
    return (
        f"<p class='soft'>What varies with what, in {runs}: the share of a number's variance that goes with "
        "a parameter, less what chance would give. Choose a cell to see the plot.</p>"
        f"<div class='wide overview'><table><tr><th>recorded</th><th>range</th>{heads}</tr>"
        f"{''.join(rows)}</table></div>"
    )


def _range(lesson: Swept, name: str) -> str:
    values = [value for row in lesson.rows if (value := number(row, name)) is not None]
    lost = sum(isinstance(row["results"].get(name), float) for row in lesson.rows if number(row, name) is None)
    ends = list(dict.fromkeys(f"{value:.4g}" for value in (min(values), max(values)))) if values else []
    return ", ".join([" to ".join(ends)] * bool(ends) + [f"<span class='bad'>NaN or ∞ in {lost}</span>"] * bool(lost))


def _share(place: int, parameter: str, share: float | None) -> str:
    shown = "?" if share is None else f"{share:.0%}"
    why = " title='One run for each value: chance cannot be told from effect.'" if share is None else ""
    return (
        f"<td class='share'><button data-card='{place}' data-x='{text(parameter)}'{why} "
        f"style='--share: {0.55 * (share or 0.0):.2f}'>{shown}</button></td>"
    )


def _controls(lesson: Swept) -> str:
    names = list(lesson.parameters)
    parts = [_select("across", "x", names, names[0])]
    if len(names) > 1:
        parts.append(_select("colours", "colour", ["", *names], names[1]))
        parts.append(_select("panels", "panels", ["", *names], names[2] if len(names) > 2 else ""))
        for name, values in lesson.parameters.items():
            options = [("", "all, pooled"), *((str(index), label(value)) for index, value in enumerate(values))]
            inner = "".join(f"<option value='{key}'>{text(shown)}</option>" for key, shown in options)
            parts.append(f"<label hidden>{text(name)} <select data-only='{text(name)}'>{inner}</select></label>")
    return f"<div class='controls'>{''.join(parts)}</div>"


def _select(says: str, role: str, names: list[str], chosen: str) -> str:
    options = "".join(
        f"<option value='{text(name)}'{' selected' if name == chosen else ''}>{text(name) or 'none'}</option>"
        for name in names
    )
    return f"<label>{says} <select data-role='{role}'>{options}</select></label>"


def _card(lesson: Swept, place: int, name: str) -> str:
    shares = {p: share for p, share in lesson.numbers[name].items() if share is not None and share >= 0.1}
    best = sorted(shares, key=lambda p: -shares[p])[:2]
    says = ", ".join(f"{text(p)} {shares[p]:.0%}" for p in best)
    opened = " open" if place < OPEN else ""
    return (
        f"<details class='plot-card' data-card='{place}'{opened}><summary><b>{text(name)}</b>"
        f"<span class='soft'>{says}</span></summary><div class='plot'></div></details>"
    )


def _data(lesson: Swept) -> dict[str, Any]:
    """What report.js draws, column by column."""
    parameters = []
    for name, values in lesson.parameters.items():
        labels = [label(value) for value in values]
        at = [labels.index(label(setting(row, name))) for row in lesson.rows]
        kind = scale(values)
        places = [float(value) for value in values] if kind in ("linear", "log") else list(range(len(values)))
        parameters.append({"name": name, "labels": labels, "scale": kind, "places": places, "at": at})
    return {
        "parameters": parameters,
        "numbers": [{"name": n, "values": [number(row, n) for row in lesson.rows]} for n in lesson.numbers],
        "seeds": [label(setting(row, SEED)) for row in lesson.rows],
        "paths": [quote(row["path"] or "") for row in lesson.rows],
    }
