"""Sweep files: what they may say, and how each mistake is told, with its line and a remedy."""

import json

import pytest
from typer.testing import CliRunner

from moe_course.batch.plan import make_plan
from moe_course.batch.sweep import SweepError, read_sweep
from moe_course.cli import app
from tests.batch.notebooks import PARAMETERS, plan_of, write_notebook, write_sweep


@pytest.fixture
def folder(tmp_path):
    """A folder with a notebook that records `loss` and `y`."""
    write_notebook(tmp_path, "from moe_course import record\nrecord(loss=rate, y=x)")
    return tmp_path


def test_a_grid_times_seeds_in_order(folder):
    plan = plan_of(folder, "seeds = [3, 5]\n[grid]\nx = [1, 2]\nrate = [0.5, 1]\n")
    assert [tuple(run.given.values()) for run in plan.runs] == [
        *[(1, 0.5, 3), (1, 0.5, 5), (1, 1.0, 3), (1, 1.0, 5)],
        *[(2, 0.5, 3), (2, 0.5, 5), (2, 1.0, 3), (2, 1.0, 5)],
    ]
    assert type(plan.runs[2].given["rate"]) is float
    assert {run.lesson for run in plan.runs} == {"small"}
    assert all(run.id == f"small-{run.key[:12]}" for run in plan.runs)


def test_a_sweep_without_a_grid_runs_lessons_times_seeds(folder):
    assert [run.given for run in plan_of(folder, "seeds = 2").runs] == [{"seed": 0}, {"seed": 1}]
    assert [run.given for run in plan_of(folder, "").runs] == [{}]


def test_single_runs_stand_beside_the_grid_and_share_parameters(folder):
    write_notebook(folder, "1", name="other", parameters="y: int = 1\nrate = 0.1\n")
    text = """
lessons = ["small.ipynb"]
seeds = [1]
[parameters]
rate = 2
[grid]
x = [1]
[[runs]]
x = 9
rate = 3.5
seeds = [7, 8]
[[runs]]
lessons = ["other.ipynb"]
seeds = []
"""
    with pytest.raises(SweepError, match=r"line 14: seeds must be whole numbers"):
        plan_of(folder, text)
    plan = plan_of(folder, text.replace("seeds = []", "y = 5\n[runs.grid]\nrate = [1, 2]").replace("seeds = [1]\n", ""))
    assert [(run.lesson, run.given) for run in plan.runs] == [
        ("small", {"rate": 2.0, "x": 1}),
        ("small", {"rate": 3.5, "x": 9, "seed": 7}),
        ("small", {"rate": 3.5, "x": 9, "seed": 8}),
        ("other", {"rate": 1.0, "y": 5}),
        ("other", {"rate": 2.0, "y": 5}),
    ]


def test_a_run_that_is_there_twice_runs_once(folder):
    plan = plan_of(folder, "[grid]\nx = [1, 2]\n[[runs]]\nx = 2\n")
    assert len(plan.runs) == 2
    assert plan.repeated == 1


def test_a_seed_in_the_grid_is_a_seed(folder):
    assert [run.seed for run in plan_of(folder, "[grid]\nseed = [4, 6]").runs] == [4, 6]


MISTAKES = {
    "x = [1": r"line 2: Unclosed array; .*toml\.io",
    "x = 1\ny = what": r"line 3: Invalid value at column 5; .*toml\.io",
    "grdi = 3": r"line 2: a sweep has no key 'grdi'; did you mean 'grid'\?",
    "alpha = 3": r"line 2: a sweep has no key 'alpha'; .*a notebook's settings belong in \[grid\]",
    "timeout = 0": r"line 2: timeout must be a number of seconds above 0, not 0",
    "memory_mb = 'all'": r"line 2: memory_mb must be a number of megabytes",
    "retries = -1": r"line 2: retries must be a whole number from 0, not -1",
    "seeds = 1.5": r"line 2: seeds must be whole numbers, or how many; write seeds = \[0, 1, 2\] or 3",
    "seeds = [1, 1]": r"line 2: a seed is there twice",
    "record = 3": r"line 2: record must be a list of names",
    "record = ['lss']": r"line 2: none of the lessons records 'lss'; did you mean 'loss'\?",
    "lessons = []": r"line 1: no lessons are named",
    "lessons = ['nowhere.ipynb']": r"line 1: there is no notebook nowhere\.ipynb",
    "lessons = ['nowhere/*.ipynb']": r"line 1: there is no notebook nowhere/\*\.ipynb",
    "lessons = ['rotuer']": r"line 1: no lesson is called 'rotuer'; did you mean 'router'\?",
    "[grid]\n\nrats = [1]": r"line 4: lesson small has no parameter 'rats'; did you mean 'rate'\?",
    "grid.rats = [1]": r"line 2: lesson small has no parameter 'rats'",
    "grid = {x = [1], rats = [1]}": r"line 2: lesson small has no parameter 'rats'",
    "[grid]\nx = 1": r"line 3: x needs a list of values; write x = \[1\]",
    "[grid]\nx = []": r"line 3: x has no values",
    "[grid]\nx = [1, 2.0]": r"line 3: parameter x of small: it is a whole number \(int\), and 2\.0 .*; write 2",
    "[grid]\nx = ['1']": r"line 3: parameter x of small: .*'1' is a text; leave out the quotes",
    "[grid]\nx = [true]": r"line 3: parameter x of small: .*True is true or false",
    "[grid]\nname = [3]": r"line 3: parameter name of small: it is a text \(str\), and 3 is a whole number",
    "[grid]\nsizes = [1]": r"line 3: parameter sizes of small: .* lists themselves: sizes = \[\[1\]\]",
    "[grid]\nx = [2026-01-01]": r"line 3: parameter x of small: a notebook cannot be given .*in quotes",
    "[parameters]\nrats = 1": r"line 3: lesson small has no parameter 'rats'",
    "[[runs]]\nx = 1\n[[runs]]\nrats = 1": r"line 5: lesson small has no parameter 'rats'",
    "[[runs]]\ntimeout = 1": r"line 3: .*`timeout` belongs at the top of the file",
    "seeds = [1]\n[grid]\nseed = [1]": r"line 2: both `seeds` and the parameter `seed` are given",
    "runs = 3": r"line 2: runs must be written as \[\[runs\]\], not 3",
}


@pytest.mark.parametrize("text", MISTAKES)
def test_a_mistake_is_told_with_its_line_and_a_remedy(folder, text):
    with pytest.raises(SweepError, match=MISTAKES[text]) as told:
        plan_of(folder, text)
    assert str(folder / "sweep.toml") in str(told.value)


def test_a_setting_that_one_of_several_lessons_lacks_is_refused_with_a_way_out(folder):
    write_notebook(folder, "1", name="other", parameters="y: int = 1")
    with pytest.raises(SweepError, match=r"line 3: lesson other has no parameter 'x'; .*a \[\[runs\]\] of their own"):
        plan_of(folder, 'lessons = ["*.ipynb"]\n[grid]\nx = [1]')


def test_a_notebook_without_parameters_takes_none(folder):
    write_notebook(folder, "1", name="bare", parameters=None)
    assert len(plan_of(folder, 'lessons = ["bare.ipynb"]').runs) == 1
    with pytest.raises(SweepError, match="has no cell tagged `parameters`"):
        plan_of(folder, 'lessons = ["bare.ipynb"]\nseeds = 2')


def test_what_is_no_notebook_of_ours_is_told(folder):
    (folder / "text.ipynb").write_text("hello")
    with pytest.raises(SweepError, match="is not a notebook that can be read"):
        plan_of(folder, 'lessons = ["text.ipynb"]')
    foreign = json.loads((folder / "small.ipynb").read_text())
    foreign["metadata"] = {"kernelspec": {"language": "R", "name": "ir"}}
    (folder / "r.ipynb").write_text(json.dumps(foreign))
    with pytest.raises(SweepError, match="is written in R; a batch runs Python notebooks only"):
        plan_of(folder, 'lessons = ["r.ipynb"]')
    broken = PARAMETERS.replace("x: int", "x int")
    write_notebook(folder, "1", name="broken", parameters=broken)
    with pytest.raises(SweepError, match=r"the parameters cell of .* is not valid Python"):
        plan_of(folder, 'lessons = ["broken.ipynb"]')


def test_two_notebooks_of_one_name_are_refused(folder):
    (folder / "more").mkdir()
    write_notebook(folder / "more", "2")
    with pytest.raises(SweepError, match="two notebooks are called small"):
        plan_of(folder, 'lessons = ["small.ipynb", "more/small.ipynb"]')


def test_the_course_lessons_are_found_by_number_name_and_glob(tmp_path):
    names = {run.lesson for run in plan_of(tmp_path, 'lessons = ["2", "04_load_balancing", "0[13]*"]').runs}
    assert names == {"01_dense_ffn", "02_router", "03_expert_layer", "04_load_balancing"}


def test_the_example_that_init_writes_is_a_sweep_that_works(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = CliRunner().invoke(app, ["batch", "init"])
    assert (said.exit_code, said.stdout.split(" is written")[0]) == (0, "sweep.toml")
    plan = make_plan(read_sweep(tmp_path / "sweep.toml"))
    assert (plan.sweep.name, len(plan.runs)) == ("sweep", 8)
    text = (tmp_path / "sweep.toml").read_text()
    # What it says in comments works, too: each of these lines without its mark, the blocks below them included.
    settings, _, single = text.partition("# Single runs")
    for line in ("retries", "memory_mb", "record", "[parameters]", "steps"):
        assert f"# {line}" in settings
        settings = settings.replace(f"# {line}", line)
    wanted = ("# [[", "# lessons", "# seeds", "# alpha")
    single = "\n".join(line[2:] for line in single.splitlines() if line.startswith(wanted))
    every = make_plan(read_sweep(write_sweep(tmp_path, settings + single)))
    assert [run.given for run in every.runs if run.lesson.startswith("04")] == [{"steps": 200, "alpha": 0.5, "seed": 7}]
    again = CliRunner().invoke(app, ["batch", "init"])
    assert "is there already" in str(again.exception)
