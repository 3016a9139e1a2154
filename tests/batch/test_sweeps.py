"""The sweeps that come with the course fit its lessons, and every lesson records what it found."""

import re
import tomllib
from pathlib import Path

import nbformat
import pytest

from moe_course.batch.plan import make_plan
from moe_course.batch.record import recorded
from moe_course.batch.sweep import read_sweep

ROOT = Path(__file__).parents[2]
SWEEPS = sorted((ROOT / "sweeps").glob("*.toml"))
SOLVED = sorted((ROOT / "solutions").glob("[0-9][0-9]_*.ipynb"))


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_a_sweep_asks_for_what_its_lesson_can_be_set_to_and_records(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    plan = make_plan(read_sweep(path))
    assert 12 <= len(plan.runs) <= 120
    assert plan.repeated == 0
    assert all(run.parameters["num_seeds"] == 1 for run in plan.runs)  # a run is one setting and one seed
    assert len({run.seed for run in plan.runs}) >= 3  # or there would be no error bars
    for lesson in {run.lesson for run in plan.runs}:
        assert set(plan.sweep.record) <= set(recorded(nbformat.read(ROOT / f"solutions/{lesson}.ipynb", as_version=4)))


def test_there_are_sweeps():
    assert {path.stem for path in SWEEPS} >= {"04_balance", "05_noise"}


@pytest.mark.parametrize("path", SOLVED, ids=lambda path: path.stem)
def test_every_lesson_records_its_key_results(path):
    found = recorded(nbformat.read(path, as_version=4))
    assert any(isinstance(value, float | int) for value in found.values())


def test_the_readme_shows_a_sweep_as_it_is():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    [shown] = [tomllib.loads(block) for block in re.findall(r"```toml\n(.*?)```", readme, re.DOTALL)]
    whole = tomllib.loads((ROOT / "sweeps/04_balance.toml").read_text(encoding="utf-8"))
    assert shown == {key: whole[key] for key in ("lessons", "seeds", "parameters", "grid")}
