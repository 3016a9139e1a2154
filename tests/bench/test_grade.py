"""`bench grade`: the class that it grades, and what it makes of measurements."""

import json

import pytest

from moe_course.bench import grade
from moe_course.bench.grade import OURS, THEIRS, run
from moe_course.bench.grade_class import LESSON, hand_in
from moe_course.bench.report import as_json
from moe_course.exercises import LESSONS
from moe_course.grading.answers import Program
from moe_course.grading.notebook import read_notebook


def test_the_class_is_right_slips_and_stops_half_way(tmp_path):
    hand_in(tmp_path, 6)
    paths = sorted(tmp_path.glob(f"*/{LESSON}.ipynb"))
    texts = []
    for path in paths:
        program = Program(read_notebook(path.read_bytes()))
        texts.append([program.answer(exercise).text for exercise in LESSONS["02"]])
    assert len({path.read_bytes() for path in paths}) == 6
    assert texts[0] == texts[3] == texts[4] and "NotImplementedError" not in "".join(texts[0])
    assert "if False:" in "".join(texts[1]) and "minlength" not in "".join(texts[1])
    assert "NotImplementedError" in "".join(texts[2]) and texts[2][0] == texts[0][0]


def measured(who: str, name: str, cpu: float, peak: int) -> dict:
    students = 3 if who == THEIRS else int(name)
    return {"who": who, "size": name, "round": 1, "students": students, "cpu": cpu, "wall": cpu, "peak_bytes": peak}


@pytest.fixture
def contest(monkeypatch):
    """A contest in which we take 0.1 s a submission and they take 4."""

    def measure(who, name, scratch, round_):
        assert len(list((scratch / name).iterdir())) == int(name)
        return measured(who, name, *((12.0, 10**8) if who == THEIRS else (0.1 * int(name), 10**8 + int(name))))

    monkeypatch.setattr(grade, "_measure", measure)


def test_bars_that_hold(contest):
    report = run([], 1, lambda said: None)
    assert [(verdict.bar.limit, verdict.state) for verdict in report.verdicts] == [
        (0.2, "holds"),
        (0.125, "holds"),
        (1.1, "holds"),
    ]
    assert report.verdicts[1].measured == pytest.approx(0.1 / 4)
    assert [row[0] for row in report.tables[0].rows] == [
        f"{OURS}, 20 graded",
        f"{OURS}, 100 graded",
        f"{THEIRS}, 3 graded",
    ]
    assert report.tables[0].rows[1][1:] == ["0.100", "600", "100"]
    assert json.loads(as_json(report))["failed"] is False
    assert report.figure().layout.xaxis.title.text == "CPU seconds a submission"


def test_a_small_class_is_held_against_nbgrader_alone(contest):
    assert [verdict.bar for verdict in run(["20"], 1, lambda said: None).verdicts] == [grade.PEER_BAR]


def test_bars_that_fail():
    rows = [measured(OURS, "20", 8, 10**8), measured(OURS, "100", 40, 2 * 10**8), measured(THEIRS, "100", 6, 10**8)]
    assert [verdict.state for verdict in grade._judge(rows)] == ["fails", "fails", "fails"]


def test_a_contestant_that_fails_says_why(tmp_path):
    with pytest.raises(RuntimeError, match="nbgrader autograde failed"):
        grade._measure(THEIRS, "20", tmp_path, 1)
