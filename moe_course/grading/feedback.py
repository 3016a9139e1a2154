"""A student's page: each exercise with its points, what is wrong, why, and hints. Never an answer or a hidden input."""

from .pages import details, marked, page, table, text
from .results import ExerciseResult, Result

SHOWN = 4  # failing checks shown at once; the rest is folded away
STATUS = {
    "graded": "",
    "not attempted": "Not attempted. The cell still raises NotImplementedError.",
    "timeout": "Stopped: it took longer than the time limit. Is there a loop that never ends?",
    "out of memory": "Stopped: it used more memory than there is for one answer.",
    "crashed": "The process that ran it ended.",
    "unreadable": "It could not be read as Python, so it could not be run.",
    "missing": "There is no answer in the notebook.",
}


def feedback_page(student: str, results: list[Result]) -> str:
    """The page of one student.

    Args:
        student: who.
        results: theirs, one a lesson.
    """
    points = sum(result.points for result in results)
    most = sum(result.max_points for result in results)
    parts = [f"<h1>Feedback for {text(student)}</h1>", f"<p class='total'>{points:g} of {most} points</p>"]
    for result in results:
        parts.append(f"<h2>Lesson {text(result.lesson)}: {result.points:g} of {result.max_points} points</h2>")
        if result.name:
            parts.append(f"<p class='soft'>{text(result.name)}</p>")
        parts += [f"<p class='soft'>Note: {text(note)}.</p>" for note in result.notes]
        parts += [_exercise(exercise) for exercise in result.exercises]
    parts.append(
        "<p class='soft'>Your answers ran on inputs drawn for this grading. Each exercise's points are shared out "
        "evenly over its checks. To see the checks on inputs you can read, run the cell below the exercise in the "
        "notebook, or <code>moe-course check</code>.</p>"
    )
    return page(f"Feedback for {student}", "\n".join(parts))


def exercise_text(exercise: ExerciseResult) -> str:
    """The same for systems that show plain text."""
    lines = []
    if STATUS[exercise.status]:
        lines.append(STATUS[exercise.status])
    if exercise.message and exercise.status not in ("graded", "not attempted", "timeout"):
        lines.append(exercise.message)
    if exercise.says:
        lines.append(f"Diagnosis: {exercise.says}")
    failing = _failing(exercise)
    lines += [f"✗ {finding['check']}: {finding['message']}" for finding in failing[:SHOWN]]
    rest = sum(not finding["passed"] for finding in exercise.findings) - len(failing[:SHOWN])
    if rest > 0:
        lines.append(f"{rest} more checks fail." if rest > 1 else "1 more check fails.")
    if not lines and exercise.findings:
        lines.append("All checks pass.")
    lines += [f"In your code, {where}, line {line}: {source.strip()}" for where, line, source in exercise.frames]
    lines += [f"Note: {note}." for note in exercise.notes]
    return "\n".join(lines)


def _exercise(exercise: ExerciseResult) -> str:
    colour, sign = mark(exercise)
    parts = [
        f"<div class='head'><h3><span class='{colour}'>{sign}</span> {text(exercise.title)} "
        f"<span class='soft'>· <code>{text(exercise.id)}</code></span></h3>"
        f"<b>{exercise.points:g} of {exercise.max_points}</b></div>"
    ]
    if STATUS[exercise.status]:
        parts.append(f"<p>{text(STATUS[exercise.status])}</p>")
    if exercise.message and exercise.status in ("crashed", "unreadable", "missing", "out of memory"):
        parts.append(f"<p><code>{text(exercise.message)}</code></p>")
    if exercise.says:
        parts.append(f"<p class='says'><b>Diagnosis.</b> {marked(exercise.says)}</p>")
    failing = _failing(exercise)
    if failing:
        parts.append(_checks(failing[:SHOWN]))
    if exercise.frames:
        parts.append(_trace(exercise))
    if exercise.findings and not all(finding["passed"] for finding in exercise.findings):
        passed = sum(finding["passed"] for finding in exercise.findings)
        parts.append(details(f"All {len(exercise.findings)} checks, {passed} pass", _checks(exercise.findings)))
    for number, hint in enumerate(exercise.hints, 1):
        parts.append(details(f"Hint {number} of {len(exercise.hints)}", f"<p>{marked(hint)}</p>"))
    parts += [f"<p class='soft'>Note: {text(note)}.</p>" for note in exercise.notes]
    return f"<div class='card {colour}'>{''.join(parts)}</div>"


def mark(exercise: ExerciseResult) -> tuple[str, str]:
    """How an exercise went, as a colour's name and a sign."""
    if exercise.points >= exercise.max_points:
        return "good", "✓"
    return ("wait", "○") if exercise.status in ("not attempted", "missing") else ("bad", "✗")


def _failing(exercise: ExerciseResult) -> list[dict]:
    """The failing checks that are not mere consequences, those with the same message once."""
    causes: dict[str, dict] = {}
    for finding in exercise.findings:
        if not (finding["passed"] or finding["consequence"]):
            causes.setdefault(finding["message"], finding)
    return list(causes.values())


def _checks(findings: list[dict]) -> str:
    rows = []
    for finding in findings:
        sign = "<span class='good'>✓</span>" if finding["passed"] else "<span class='bad'>✗</span>"
        rows.append([sign, marked(finding["check"]), text(finding["message"])])
    return table(["", "check", "what it says"], rows)


def _trace(exercise: ExerciseResult) -> str:
    lines = "\n".join(f"{where}, line {line}\n    {source}" for where, line, source in exercise.frames)
    return f"<p>It was in your own code here:</p><pre>{text(lines)}</pre>"
