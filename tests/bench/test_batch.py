"""`bench batch`: what the contestants are, how they are measured, and what is made of the measurements."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from moe_course.bench import batch
from moe_course.bench.batch import LOOP_RUNS, run
from moe_course.bench.batch_once import LOOP, ONE_BY_ONE, OURS, POOL, command, measure, threads
from moe_course.bench.batch_ours import between, timed
from moe_course.bench.report import as_json


@pytest.fixture
def contest(monkeypatch):
    """A contest in which a run takes us 0.5 s, the loop 9 and the pool 4; the second round is twice as slow."""
    asked = []

    def measured(who, runs, scratch, round_):
        asked.append((round_, who, runs))
        wall = {OURS: 0.5, ONE_BY_ONE: 0.9, LOOP: 9.0, POOL: 4.0}[who] * runs * round_
        own = {"between": 0.03, "peak_bytes": 10**8 + runs * 10**5}
        return {"who": who, "runs": runs, "round": round_, "wall": wall, "cpu": wall} | own

    monkeypatch.setattr(batch, "_measure", measured)
    return asked


def test_bars_that_hold(contest):
    report = run([], 2, lambda said: None)
    assert contest[:5] == [(1, OURS, 8), (1, OURS, 32), (1, ONE_BY_ONE, 8), (1, LOOP, LOOP_RUNS), (1, POOL, 32)]
    assert contest[5:] == [(2, who, runs) for _, who, runs in contest[:5]]
    assert [(verdict.bar.limit, verdict.state) for verdict in report.verdicts] == [
        (1 / 15, "holds"),
        (1 / 6, "holds"),
        (0.1, "holds"),
        (1.1, "holds"),
    ]
    assert [verdict.measured for verdict in report.verdicts[:2]] == pytest.approx([0.5 / 9, 0.5 / 4])
    assert report.tables[0].rows[1] == [f"{OURS}, 32 runs", "0.75", "0.75", "18.0×"]
    assert "medians of 2 round(s)" in report.tables[0].title
    assert json.loads(as_json(report))["failed"] is False
    assert report.figure().layout.xaxis.title.text == "wall seconds a run"


def test_few_runs_say_nothing_about_memory(contest):
    report = run(["8"], 1, lambda said: None)
    assert [who for _, who, _ in contest] == [OURS, ONE_BY_ONE, LOOP, POOL]
    assert batch.MEMORY_BAR not in [verdict.bar for verdict in report.verdicts]


def test_bars_that_fail():
    def row(who, runs, wall, peak=10**8):
        own = {"between": 0.2, "peak_bytes": peak}
        return {"who": who, "runs": runs, "round": 1, "wall": wall, "cpu": wall} | own

    rows = [row(OURS, 8, 8), row(OURS, 32, 32, 2 * 10**8), row(ONE_BY_ONE, 8, 8), row(LOOP, 4, 40), row(POOL, 32, 128)]
    assert [verdict.state for verdict in batch._judge(rows)] == ["fails"] * 4


def test_the_rivals_are_started_as_their_users_start_them(tmp_path):
    shell = command(LOOP, tmp_path, 2)
    papermill = Path(sys.executable).with_name("papermill")
    assert shell[:2] == ["sh", "-ec"] and papermill.exists()
    assert f"for seed in 0 1; do {papermill} --no-progress-bar {tmp_path}/small.ipynb" in shell[2]
    assert "moe_course" not in Path(command(POOL, tmp_path, 2)[1]).read_text()
    assert threads(POOL) == {"OMP_NUM_THREADS": "1"} and threads(LOOP) == threads(OURS) == {}
    assert command(OURS, tmp_path, 2)[2:] == ["moe_course.bench.batch_ours", str(tmp_path), "2"]
    assert command(ONE_BY_ONE, tmp_path, 2)[-2:] == ["--jobs", "1"]


BURN = "import time\nwhile time.process_time() < 0.5: pass"
ORPHAN = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {BURN!r}])"


def test_processes_that_outlive_the_contestant_are_counted():
    code = (
        "from moe_course.bench.batch_once import measure; import json, os, sys; "
        f"print(json.dumps(measure([sys.executable, '-c', {ORPHAN!r}], dict(os.environ))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    adopted = 0.5 if sys.platform == "linux" else 0  # elsewhere nobody hands them on
    assert adopted < json.loads(done.stdout)["cpu"] < adopted + 5


def test_a_contestant_that_fails_says_why(monkeypatch, tmp_path):
    with pytest.raises(RuntimeError, match="no such luck"):
        measure([sys.executable, "-c", "raise SystemExit('no such luck')"], {})
    monkeypatch.setattr(sys, "executable", "false")
    with pytest.raises(RuntimeError, match="shell loop of papermill failed"):
        batch._measure(LOOP, 1, tmp_path, 1)


def test_time_between_runs_leaves_out_the_runs_themselves():
    spans: list[tuple[float, float]] = []
    sleep = timed(time.sleep, spans)
    for _ in range(3):
        sleep(0.1)
        time.sleep(0.02)
    assert 0.02 <= between(spans) < 0.06
    assert between([(1.0, 2.0), (2.5, 4.0), (4.5, 5.0)]) == 0.5


def test_we_are_measured_from_our_own_command_line(tmp_path):
    """The real thing, with two runs."""
    measured = batch._measure(ONE_BY_ONE, 2, tmp_path, 1)
    assert measured["runs"] == 2 and len(measured["losses"]) == 2 and measured["losses"][0] != measured["losses"][1]
    assert measured["cpu"] > 1 and measured["peak_bytes"] > 5e7
    assert 0 < measured["between"] < measured["wall"]
