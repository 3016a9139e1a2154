"""Plans: what makes a run stale and what does not, how long a batch takes, and plans of ten thousand runs."""

import time

import pytest

import moe_course
from moe_course.batch import lessons
from moe_course.batch.drive import Options, drive
from moe_course.batch.executors import executor
from moe_course.batch.folder import Folder
from moe_course.batch.plan import estimate
from moe_course.batch.work import Outcome
from moe_course.commands.batch import _package_changed
from tests.batch.notebooks import PARAMETERS, plan_of, write_notebook

GRID = "[grid]\nx = [1, 2]\n"


@pytest.fixture
def folder(tmp_path):
    """One notebook that uses the package, and one that does not."""
    write_notebook(tmp_path, "import moe_course\nimport pandas as pd\nx")
    write_notebook(tmp_path, "x", name="plain")
    return tmp_path


def keys(folder, text=GRID):
    plan = plan_of(folder, f'lessons = ["small.ipynb", "plain.ipynb"]\n{text}')
    return {(run.lesson, run.given["x"]): run.key for run in plan.runs}


def changed(before, after):
    """Which runs have another key than before."""
    return sorted({each for each in before.keys() & after.keys() if before[each] != after[each]})


def test_a_change_makes_stale_what_it_touches_and_only_that(folder, monkeypatch):
    first = keys(folder)
    assert keys(folder) == first
    assert keys(folder, "timeout = 5\n" + GRID) == first
    more = keys(folder, "[grid]\nx = [1, 2, 3]")
    assert (changed(first, more), len(more)) == ([], 6)
    fixed = keys(folder, "[parameters]\nrate = 0.1\n" + GRID)
    assert len(changed(first, fixed)) == 4
    write_notebook(folder, "x + 1", name="plain")
    edited = keys(folder)
    assert changed(first, edited) == [("plain", 1), ("plain", 2)]
    write_notebook(folder, "x + 1", name="plain", parameters=PARAMETERS.replace("0.5", "0.6"))
    assert changed(edited, keys(folder)) == [("plain", 1), ("plain", 2)]


@pytest.mark.parametrize("what", ["version", "code", "pandas"])
def test_another_package_makes_stale_the_notebooks_that_import_it(folder, monkeypatch, what):
    first = keys(folder)
    if what == "version":
        monkeypatch.setattr(moe_course, "__version__", "9.9")
    elif what == "code":
        monkeypatch.setattr(lessons, "package_digest", lambda: "edited")
    else:
        monkeypatch.setattr(lessons, "version", lambda name: "9.9")
    assert changed(first, keys(folder)) == [("small", 1), ("small", 2)]


def test_outputs_and_prose_of_a_notebook_do_not_matter(folder):
    first = keys(folder)
    path = folder / "plain.ipynb"
    path.write_text(path.read_text().replace('"outputs": []', '"outputs": [{"output_type": "stream", "text": "1"}]'))
    assert keys(folder) == first


def test_the_package_digest_covers_the_code_that_notebooks_use():
    lessons.package_digest.cache_clear()
    digest = lessons.package_digest()
    assert len(digest) == 64
    for part in lessons.USED_BY_NOTEBOOKS:
        assert (lessons.PACKAGE / part).exists(), part


def test_an_estimate_needs_an_earlier_run_of_each_lesson(folder):
    plan = plan_of(folder, 'lessons = ["small.ipynb", "plain.ipynb"]\n' + GRID)
    assert estimate(plan, plan.runs, {"small": [2.0, 4.0]}, jobs=2) is None
    assert estimate(plan, plan.runs, {"small": [2.0, 4.0], "plain": [1.0]}, jobs=2) == (3 + 3 + 1 + 1) / 2


def test_ten_thousand_runs_are_planned_and_start_within_seconds(folder):
    start = time.process_time()
    hundred = list(range(100))
    plan = plan_of(folder, f"seeds = {hundred}\n[grid]\nx = {hundred}\n")
    batch = Folder(folder / "out")
    with batch.open(plan), executor(1) as pool:
        todo = [run for run in plan.runs if not batch.is_done(run)]
        failing = {"status": "error", "id": "none", "seconds": 0.0, "error": None}
        tally = drive(plan, todo, batch, pool, Options(1, fail_fast=True), do=lambda job: Outcome(dict(failing), None))
    assert tally.total == 10_000
    assert 1 <= tally.failed <= 4  # those that were handed out before the first had failed
    assert time.process_time() - start < 5


def test_code_that_changes_during_a_batch_is_noticed(folder, monkeypatch):
    before = lessons.package_digest()
    user, plain = (plan_of(folder, f'lessons = ["{name}.ipynb"]') for name in ("small", "plain"))
    assert not _package_changed(user)
    monkeypatch.setattr(lessons.Path, "read_bytes", lambda path: b"edited")
    assert lessons.package_digest() == before
    assert (_package_changed(user), _package_changed(plain)) == (True, False)
