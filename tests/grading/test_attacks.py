"""Nothing that is handed in cheats, hangs or crashes the grader, moves another's score, or leaves something behind."""

import csv
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from moe_course.grading.report import write_report
from moe_course.grading.run import Run, grade
from tests.grading.attacks import ATTACKS, Attack
from tests.grading.conftest import ROOT, hand_in, notebook

EXERCISE = "02.tokens_per_expert"
NOTHING = 0.2  # the points of an answer that returns None: it changes no input, and answers the same twice


@pytest.fixture(scope="module")
def listener() -> Iterator[tuple[int, list[str]]]:
    """A port and a name that someone listens on, and who connected."""
    connected: list[str] = []
    tcp, local = socket.create_server(("127.0.0.1", 0)), socket.socket(socket.AF_UNIX)
    port = tcp.getsockname()[1]
    local.bind(f"\0moe-course-{port}")
    local.listen()

    def listen(server: socket.socket, name: str) -> None:
        while True:
            try:
                server.accept()
            except OSError:
                return
            connected.append(name)

    for server, name in ((tcp, "tcp"), (local, "abstract")):
        threading.Thread(target=listen, args=(server, name), daemon=True).start()
    yield port, connected
    for server in (tcp, local):
        server.shutdown(socket.SHUT_RDWR)
        server.close()


@pytest.fixture(scope="module")
def graded(tmp_path_factory, solved, listener) -> tuple[Run, Path, Path]:
    """All attacks, and three honest students, graded in one run."""
    folder = tmp_path_factory.mktemp("attacked")
    canary, report = folder / "canary", folder / "report"
    canary.mkdir()
    (canary / "secret").write_text("not yours")
    for path in (folder, canary):  # the student's user could enter, were it not for the sandbox
        path.chmod(0o777)
    places = {"canary": str(canary), "root": str(ROOT), "port": listener[0], "report": str(report)}
    for each in ATTACKS:
        source = each.source
        for name, place in places.items():
            source = source.replace("{" + name + "}", str(place))
        answers = {
            EXERCISE: source.replace("{{", "{").replace("}}", "}"),
            "02.router_logits": solved["02.router_logits"],
        }
        hand_in(folder / "class", each.name, notebook(answers))
    hand_in(folder / "class", "ada", notebook(solved))
    hand_in(folder / "class", "zoe", notebook(solved))
    hand_in(folder / "class", "mia", notebook({}))
    run = grade(folder / "class", report, seconds=1.5, jobs=2)
    write_report(run, report)
    return run, report, canary


def test_the_sandbox_is_the_strong_one(graded):
    assert graded[0].levels == ["bubblewrap"]


@pytest.mark.parametrize("each", ATTACKS, ids=lambda each: each.name)
def test_each_gets_what_it_deserves(graded, each: Attack):
    rows = {row.id: row for row in graded[0].results[each.name, "02"].exercises}
    row = rows[EXERCISE]
    assert each.status in ("", row.status), (row.status, row.message)
    if each.earns == "all":
        assert row.points == 1, row.message
    elif each.earns == "nothing":
        assert row.points <= NOTHING, row.findings
    else:
        assert NOTHING < row.points < 1
    assert (rows["02.router_logits"].status, rows["02.router_logits"].points) == ("graded", 1)
    assert rows["02.route"].status == "not attempted"


def test_nobody_elses_score_moved(graded):
    points = {student: graded[0].results[student, "02"].points for student in ("ada", "mia", "zoe")}
    assert points == {"ada": 12, "mia": 0, "zoe": 12}


def test_no_process_is_left(graded):
    left = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            command = Path("/proc", pid, "cmdline").read_bytes()
        except OSError:
            continue
        if b"987654" in command or (b"zygote.py" in command and str(graded[1].parent).encode() in command):
            left.append(command)
    assert left == []


def test_no_file_was_written_outside_the_report(graded):
    _, report, canary = graded
    assert [path.name for path in canary.iterdir()] == ["secret"]
    assert sorted(path.name for path in report.parent.iterdir()) == ["canary", "class", "report"]
    assert {path.name for path in report.iterdir()} == {
        *("feedback", "gradescope", "results", "grades.csv", "junit.xml", "run.json", "summary.html"),
    }
    with (report / "grades.csv").open(encoding="utf-8", newline="") as file:
        assert len(list(csv.DictReader(file))) == 7 * len(graded[0].submissions)


def test_nobody_came_through_the_network(graded, listener):
    assert listener[1] == []


def test_pages_hold_no_script_and_no_control_characters(graded):
    for page in (graded[1] / "feedback").iterdir():
        text = page.read_text(encoding="utf-8")
        assert "<script" not in text and "\x1b" not in text and "\0" not in text
