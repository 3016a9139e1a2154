"""Shows a verdict: a small table in a notebook, plain text elsewhere."""

import html
import re
from collections.abc import Sequence
from typing import Any

from .judge import Finding, Verdict

GOOD, BAD, TODO = (
    "#2a9d6f",
    "#d1495b",
    "#8a8a8a",
)  # each stands beside a sign, so colour is never the only mark


def show_verdict(verdict: Verdict) -> None:
    """Displays the verdict; its essence goes into the output's metadata, where progress is read from."""
    exercise = verdict.exercise
    metadata = {
        "exercise": exercise.id,
        "status": verdict.status,
        "points": verdict.points,
        "max_points": exercise.points,
        "message": verdict.message,
    }
    _display(verdict_text(verdict), verdict_html(verdict), {"moe_course": metadata})


def show_message(message: str) -> None:
    """Displays a sentence about a call of `check` that belongs to no exercise."""
    _display(message, _box(BAD, html.escape(message)), {})


def verdict_text(verdict: Verdict) -> str:
    """The verdict as plain text."""
    lines = [f"{_sign(verdict)} {_headline(verdict)}"]
    if verdict.misconception:
        lines.append(f"  Diagnosis: {verdict.misconception.says}")
    for finding in _causes(verdict)[:SHOWN]:
        lines.append(f"  ✗ {finding.check}: {finding.message}")
    lines += [f"  {rest}" for rest in _rest(verdict)]
    if verdict.status != "passed":
        lines.append(f"  {_FALLBACK}")
    return "\n".join(lines)


def verdict_html(verdict: Verdict) -> str:
    """The verdict as HTML that reads in light and dark themes."""
    parts = [f"<div style='font-weight:600'>{_sign(verdict)} {html.escape(_headline(verdict))}</div>"]
    if verdict.misconception:
        parts.append(
            f"<div style='margin:6px 0;padding:6px 10px;background:rgba(209,73,91,.12);border-radius:4px'>"
            f"<b>Diagnosis.</b> {_marked(verdict.misconception.says)}</div>"
        )
    parts.append(_table(_causes(verdict)[:SHOWN]))
    parts += [f"<div style='opacity:.75'>{html.escape(rest)}</div>" for rest in _rest(verdict)]
    if verdict.findings:
        parts.append(_details(f"All {len(verdict.findings)} checks", _table(verdict.findings)))
    if verdict.printed:
        printed = f"<pre style='margin:4px 0'>{html.escape(verdict.printed)}</pre>"
        parts.append(_details("What your code printed", printed))
    if verdict.status != "passed":
        for number, hint in enumerate(verdict.exercise.hints, 1):
            parts.append(_details(f"Hint {number} of {len(verdict.exercise.hints)}", _marked(hint)))
        parts.append(f"<div style='margin-top:4px;opacity:.75'>{_FALLBACK}</div>")
    colour = {"passed": GOOD, "failed": BAD}.get(verdict.status, TODO)
    return _box(colour, "".join(parts))


SHOWN = 4  # failing checks shown at once: a learner mends one at a time
_FALLBACK = "The rest of the lesson uses the reference implementation until yours passes."


def _headline(verdict: Verdict) -> str:
    exercise = verdict.exercise
    if verdict.status == "not attempted":
        return f"{exercise.entry}: not attempted yet ({exercise.points} points)"
    if verdict.passed:
        return f"{exercise.entry}: all checks pass, {exercise.points} of {exercise.points} points"
    passed, checks = sum(finding.passed for finding in verdict.findings), len(verdict.findings)
    points = f"{verdict.points:g} of {exercise.points} points"
    return f"{exercise.entry}: {passed} of {checks} checks pass, {points}"


def _sign(verdict: Verdict) -> str:
    return {"passed": "✓", "failed": "✗"}.get(verdict.status, "○")


def _causes(verdict: Verdict) -> list[Finding]:
    """The failing checks that are not mere consequences of others, and of those that say the same the first."""
    causes: dict[str, Finding] = {}
    for finding in verdict.findings:
        if not (finding.passed or finding.consequence):
            causes.setdefault(re.sub(r"\d+", "0", finding.message), finding)
    return list(causes.values())


def _rest(verdict: Verdict) -> list[str]:
    """How many checks the short table leaves out."""
    failing = sum(not finding.passed for finding in verdict.findings) - len(_causes(verdict)[:SHOWN])
    return [f"{failing} more checks fail." if failing > 1 else "1 more check fails."] if failing else []


def _table(findings: Sequence[Finding]) -> str:
    rows = "".join(_row(finding) for finding in findings)
    return f"<table style='border-collapse:collapse;margin:4px 0;font-size:13px'>{rows}</table>" if rows else ""


def _row(finding: Finding) -> str:
    colour, sign = (GOOD, "✓") if finding.passed else (BAD, "✗")
    cell = "padding:2px 10px 2px 0;text-align:left;vertical-align:top;background:none"
    message = html.escape(finding.message)
    if finding.message and finding.inputs and not finding.consequence:
        message += f"<div style='opacity:.7'>called with {html.escape(finding.inputs)}</div>"
    return (
        f"<tr style='background:none'><td style='{cell};color:{colour};font-weight:700'>{sign}</td>"
        f"<td style='{cell};white-space:normal;min-width:11em'>{_marked(finding.check)}</td>"
        f"<td style='{cell};white-space:normal'>{message}</td></tr>"
    )


def _details(summary: str, body: str) -> str:
    return f"<details style='margin:2px 0'><summary style='cursor:pointer'>{summary}</summary>{body}</details>"


def _box(colour: str, body: str) -> str:
    return f"<div style='border-left:4px solid {colour};padding:4px 12px;max-width:900px'>{body}</div>"


def _marked(text: str) -> str:
    """Escaped, with `code` between backticks set as code."""
    parts = html.escape(text).split("`")
    return "".join(f"<code>{part}</code>" if index % 2 else part for index, part in enumerate(parts))


def _display(text: str, page: str, metadata: dict[str, Any]) -> None:
    try:
        from IPython import get_ipython
        from IPython.display import display
    except ImportError:
        get_ipython = None
    if get_ipython is None or get_ipython() is None:
        print(text)
    else:
        display({"text/plain": text, "text/html": page}, raw=True, metadata=metadata)
