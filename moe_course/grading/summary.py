"""The instructor's page: how the class did, where it went wrong and why, and what deserves a second look."""

from collections import Counter, defaultdict
from collections.abc import Iterable

from .files import slug
from .levels import LEVELS, WEAK
from .pages import marked, page, table, text
from .results import STATUSES, ExerciseResult, Result
from .run import Run

BARS = 10  # in the distribution
ALIKE = 0.85  # share of common runs of tokens, from which two submissions are named as alike
LEAST = 60  # runs of tokens that a submission must have to be compared


def summary_page(run: Run) -> str:
    """The page about a whole run."""
    results = sorted(run.results.values(), key=lambda result: (result.student, result.lesson))
    students = {result.student for result in results}
    parts = ["<h1>Grading summary</h1>", f"<p class='soft'>{_about(run, len(students))}</p>"]
    if run.interrupted:
        missing = len(run.submissions) - len(results)
        parts.append(
            f"<p class='warn'><b>Interrupted.</b> {missing} of {len(run.submissions)} submissions are not graded yet. "
            "Run the same command again to go on.</p>"
        )
    parts += [warning(level) for level in run.levels if level == WEAK]
    if results:
        parts += ["<h2>Points</h2>", _distribution(results), "<h2>Exercises</h2>", _exercises(results)]
        parts += ["<h2>Commonest misconceptions</h2>", _misconceptions(results)]
        parts += ["<h2>Worth a second look</h2>", _alike(results), "<h2>Students</h2>", _students(results)]
    return page("Grading summary", "\n".join(parts))


def warning(level: str) -> str:
    """What must be known of results that were had with weak isolation."""
    return (
        f"<p class='warn'><b>Weak isolation ({text(level)}).</b> Student code ran with {text(LEVELS[level])}. "
        "Look at suspicious results yourself, or install bubblewrap and grade again.</p>"
    )


def _about(run: Run, students: int) -> str:
    lessons = ", ".join(run.settings.lessons)
    level = ", ".join(run.levels) or "none, no code was run"
    return (
        f"{students} students, lessons {text(lessons)}. Seed {run.settings.seed}, {run.settings.seconds:g} s for an "
        f"exercise. Isolation: {text(level)}."
    )


def _distribution(results: list[Result]) -> str:
    """A histogram of the students' shares of the points."""
    shares: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for result in results:
        shares[result.student][0] += result.points
        shares[result.student][1] += result.max_points
    percent = [100 * points / most if most else 0 for points, most in shares.values()]
    counts = [0] * BARS
    for each in percent:
        counts[min(int(each * BARS / 100), BARS - 1)] += 1
    most, width, height = max(counts), 56, 150
    parts = []
    for index, count in enumerate(counts):
        x, tall = 40 + index * width, height * count / most
        label = f"{index * 100 // BARS}–{(index + 1) * 100 // BARS}"
        parts.append(f"<rect class='bar' x='{x + 3}' y='{30 + height - tall}' width='{width - 6}' height='{tall}'/>")
        middle = x + width / 2
        if count:
            parts.append(f"<text x='{middle}' y='{24 + height - tall}' text-anchor='middle'>{count}</text>")
        parts.append(f"<text x='{middle}' y='{48 + height}' text-anchor='middle'>{label}</text>")
    line = f"<line class='axis' x1='40' x2='{40 + BARS * width}' y1='{30 + height}' y2='{30 + height}'/>"
    axis = f"<text x='{40 + BARS * width / 2}' y='{72 + height}' text-anchor='middle'>share of the points, %</text>"
    side = f"<text transform='translate(18 {30 + height / 2}) rotate(-90)' text-anchor='middle'>students</text>"
    mean = sum(percent) / len(percent)
    median = sorted(percent)[len(percent) // 2]
    return (
        f"<p>Mean {mean:.0f} %, median {median:.0f} % of the points.</p>"
        f"<div class='wide'><svg width='{60 + BARS * width}' height='{90 + height}' role='img' "
        f"aria-label='Histogram of the points'>{''.join(parts)}{line}{axis}{side}</svg></div>"
    )


def _rows(results: list[Result]) -> dict[str, list[ExerciseResult]]:
    rows: dict[str, list[ExerciseResult]] = defaultdict(list)
    for result in results:
        for exercise in result.exercises:
            rows[exercise.id].append(exercise)
    return rows


def _exercises(results: list[Result]) -> str:
    rows = []
    for key, mine in _rows(results).items():
        solved = sum(each.points >= each.max_points for each in mine)
        points = sum(each.points for each in mine) / (len(mine) * mine[0].max_points)
        statuses = Counter(each.status for each in mine)
        others = ", ".join(f"{statuses[s]} {s}" for s in STATUSES if s != "graded" and statuses[s])
        name = f"<code>{text(key)}</code> {text(mine[0].title)}"
        rows.append([name, f"{solved} of {len(mine)}", f"{100 * points:.0f} %", text(others)])
    return table(["exercise", "solved", "of its points", "not graded as usual"], rows, (1, 2))


def _misconceptions(results: list[Result]) -> str:
    counts: Counter[tuple[str, str, str]] = Counter()
    for key, mine in _rows(results).items():
        counts.update((key, each.misconception, each.says) for each in mine if each.misconception)
    if not counts:
        return "<p class='soft'>None was recognised.</p>"
    rows = [[str(n), f"<code>{text(key)}</code>", marked(says)] for (key, _, says), n in counts.most_common(12)]
    return table(["students", "exercise", "diagnosis"], rows, (0,))


def _alike(results: list[Result]) -> str:
    same: dict[str, list[str]] = defaultdict(list)
    for result in results:
        for exercise in result.exercises:
            if exercise.like_reference:
                same[exercise.id].append(result.student)
    groups = list(alike(results))
    parts = [
        "<p class='soft'>Short answers are often the same for good reasons. This is information, it changes no "
        "score.</p>"
    ]
    if groups:
        rows = [[text(_listed(names)), text(lesson), f"{100 * share:.0f} %"] for lesson, names, share in groups]
        parts.append("<h3>Submissions that are nearly the same, names apart</h3>")
        parts.append(table(["students", "lesson", "in common"], rows, (2,)))
    if same:
        rows = [[f"<code>{text(key)}</code>", str(len(who)), text(_listed(who))] for key, who in same.items()]
        parts.append("<h3>Answers that are the reference, names apart</h3>")
        parts.append(table(["exercise", "answers", "students"], rows, (1,)))
    return "\n".join(parts) if groups or same else "<p class='soft'>Nothing.</p>"


def _listed(names: list[str], most: int = 12) -> str:
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


def alike(results: Iterable[Result]) -> list[tuple[str, list[str], float]]:
    """Groups of students whose submissions to a lesson share most of their code: lesson, students, least share."""
    found = []
    by_lesson: dict[str, list[tuple[str, set[int]]]] = defaultdict(list)
    for result in results:
        # Answers that are the reference say nothing about who wrote from whom.
        runs = {run for each in result.exercises if not each.like_reference for run in each.shingles}
        if len(runs) >= LEAST:
            by_lesson[result.lesson].append((result.student, runs))
    for lesson, entries in by_lesson.items():
        left = list(entries)
        while left:
            name, runs = left.pop(0)
            near = [(o, _share(runs, r)) for o, r in left]
            group = [(other, share) for other, share in near if share >= ALIKE]
            if group:
                names = {other for other, _ in group}
                left = [entry for entry in left if entry[0] not in names]
                found.append((lesson, [name, *sorted(names)], min(share for _, share in group)))
    return found


def _share(first: set[int], second: set[int]) -> float:
    small, large = sorted((len(first), len(second)))
    return len(first & second) / len(first | second) if small >= ALIKE * large else 0.0


def _students(results: list[Result]) -> str:
    rows = []
    for result in results:
        link = f"<a href='feedback/{slug(result.student)}.html'>{text(result.student)}</a>"
        odd = Counter(each.status for each in result.exercises if each.status != "graded")
        said = ", ".join(f"{n} {status}" for status, n in odd.items())
        notes = "; ".join([*result.notes, *(f"{e.id}: {note}" for e in result.exercises for note in e.notes)])
        points = f"{result.points:g} of {result.max_points}"
        rows.append([link, text(result.lesson), points, text(said), text(notes[:300])])
    return table(["student", "lesson", "points", "not graded as usual", "notes"], rows, (2,))
