"""A run from the command line: its report, and that it resumes, repeats itself and ends well when it is stopped."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

import jsonschema
import pytest
from typer.testing import CliRunner

from moe_course.cli import app
from moe_course.commands import CommandError
from moe_course.exercises import LESSONS
from moe_course.grading import run
from moe_course.grading.files import result_file, slug
from moe_course.grading.gradescope import not_graded
from moe_course.grading.levels import WEAK
from moe_course.grading.results import Result, read_result
from moe_course.grading.summary import alike
from tests.grading.conftest import hand_in, notebook

COMMAND = [sys.executable, "-m", "moe_course", "grade"]


@pytest.fixture(scope="module")
def school(tmp_path_factory, solved) -> Path:
    """Five students: one solves all, one has a misconception, one copied, one did nothing, one handed in rubbish."""
    folder = tmp_path_factory.mktemp("school") / "class"
    wrong = solved["02.tokens_per_expert"].replace(", minlength=num_experts", "")
    raises = "def gate_jacobian(*args, **kwargs):\n    raise ValueError('<b>no</b>')"
    hand_in(folder, "ada", notebook(solved))
    hand_in(folder, "bob", notebook(solved | {"02.tokens_per_expert": wrong, "02.gate_jacobian": raises}))
    copied = {k: v.replace("weights", "w_") for k, v in solved.items() if k != "02.route"}
    slow = "import time\nwaited = time.sleep(3)\n" + copied["02.router_logits"].replace("### BEGIN SOLUTION", "waited")
    hand_in(folder, "cy", notebook(copied | {"02.router_logits": slow}))  # there is time to stop a run at it
    hand_in(folder, "=dora+1", notebook({}))
    hand_in(folder, "eve..", "rubbish")
    return folder


@pytest.fixture(scope="module")
def report(school) -> Path:
    """The report on them, which a run wrote that was first killed, then interrupted, then let go on."""
    out = school.parent / "report"
    command = [*COMMAND, str(school), "--out", str(out), "--jobs", "1"]
    (school.parent / "scratch").mkdir()
    scratch = str(school.parent / "scratch")
    for how, when in ((signal.SIGKILL, "ada"), (signal.SIGINT, "bob")):
        process = subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"TMPDIR": scratch},
            preexec_fn=lambda: signal.signal(
                signal.SIGINT, signal.SIG_DFL
            ),  # ignored where tests run in the background
        )
        deadline = time.monotonic() + 200
        while not result_file(out, when, "02").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(how)
        _, errors = process.communicate(timeout=60)
        assert "Traceback" not in errors
        assert process.returncode == (-signal.SIGKILL if how == signal.SIGKILL else 130)
    assert "Interrupted" in (out / "summary.html").read_text(encoding="utf-8")
    assert 0 < len(rows(out)) < 5 * 7
    # What a killed run could leave half-written does not count.
    half = sorted(out.glob("results/*.json"))[0]
    half.write_text(half.read_text(encoding="utf-8")[:200], encoding="utf-8")
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "5 of 5 submissions graded" in done.stdout and "from an earlier run" in done.stdout
    return out


def test_a_run_that_was_killed_leaves_no_files_behind(report):
    deadline = time.monotonic() + 60
    while list((report.parent / "scratch").iterdir()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert list((report.parent / "scratch").iterdir()) == []


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "grades.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_grades(report):
    totals = {row["student"]: float(row["points"]) for row in rows(report) if row["exercise"] == "total"}
    assert totals["ada"] == 12 and totals["cy"] == 9 and totals["'=dora+1"] == 0 and totals["eve.."] == 0
    assert 6 < totals["bob"] < 12
    assert {row["isolation"] for row in rows(report) if row["student"] == "ada"} == {"bubblewrap"}
    assert len(rows(report)) == 5 * 7


def test_an_interrupted_run_and_a_repetition_have_the_same_scores(report, school):
    before = (report / "grades.csv").read_bytes()
    done = CliRunner().invoke(app, ["grade", str(school), "--out", str(report), "--recheck", "--jobs", "1"])
    assert done.exit_code == 0, done.output
    assert "0 differences" in done.output
    assert (report / "grades.csv").read_bytes() == before


def test_what_is_handed_in_again_gets_other_inputs(solved, tmp_path):
    """An answer can put its inputs into an error message; the next one that knows their answers gains nothing."""
    counts = "02.tokens_per_expert"
    school, out = tmp_path / "class", tmp_path / "report"
    arguments = ["grade", str(school), "--out", str(out), "--jobs", "1"]
    source = (
        "def tokens_per_expert(expert_ids, num_experts):\n    raise ValueError(f'{num_experts} {expert_ids.tolist()}')"
    )
    hand_in(school, "ada", notebook(solved))
    hand_in(school, "eve", notebook({counts: source}))
    assert CliRunner().invoke(app, arguments).exit_code == 0
    (exercise,) = [each for each in LESSONS["02"] if each.id == counts]
    inputs = exercise.inputs(run.read_settings(out).seed).values()
    assert str(next(iter(inputs))["expert_ids"].tolist()) in (out / "feedback" / "eve.html").read_text()

    known = {(str(i["expert_ids"].tolist()), i["num_experts"]): exercise.reference(**i).tolist() for i in inputs}
    answer = f"torch.tensor({known}.get((str(expert_ids.tolist()), num_experts), [99] * num_experts))"
    source = f"import torch\ndef tokens_per_expert(expert_ids, num_experts):\n    return {answer}"
    hand_in(school, "eve", notebook({counts: source}))
    for recheck in ([], ["--recheck"]):
        done = CliRunner().invoke(app, [*arguments, *recheck])
        assert done.exit_code == 0, done.output
    assert "0 differences" in done.output
    points = {name: read_result(result_file(out, name, "02")).points for name in ("ada", "eve")}
    assert points["ada"] == 12 and points["eve"] < 0.8  # some inputs are the same in every run
    assert [read_result(result_file(out, name, "02")).before for name in ("ada", "eve")] == [0, 1]


def test_a_students_page_teaches_and_gives_nothing_away(report):
    page = (report / "feedback" / "bob.html").read_text(encoding="utf-8")
    assert "Diagnosis." in page and "Hint 3 of 3" in page
    assert "&lt;b&gt;no&lt;/b&gt;" in page and "raise ValueError" in page and "line 2" in page
    assert "; expected 0" not in page and "called with" not in page and "got " not in page
    assert "prefers-color-scheme: dark" in page
    assert "http" not in page.replace("http-equiv", "")


def test_the_summary_names_what_an_instructor_wants_to_know(report):
    page = (report / "summary.html").read_text(encoding="utf-8")
    assert "5 students" in page and "Commonest misconceptions" in page and "Interrupted" not in page
    assert "Weak isolation" not in page
    bob = read_result(report / "results" / "bob.02.json")
    assert bob is not None and any(row.misconception for row in bob.exercises)
    said = next(row.says for row in bob.exercises if row.misconception)
    assert said.split("`")[0][:40] in page


def test_gradescopes_results_have_the_documented_form(report):
    data = json.loads((report / "gradescope" / "bob" / "results.json").read_text(encoding="utf-8"))
    assert check_gradescope(data) == 6
    assert data["score"] == pytest.approx(sum(test["score"] for test in data["tests"]))


def check_gradescope(data: dict) -> int:
    """The number of tests in a results.json; fails where Gradescope's specification is not kept."""
    schema = json.loads((Path(__file__).parent / "gradescope_schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator(schema).validate(data)
    assert all(0 <= test["score"] <= test["max_score"] for test in data.get("tests", []))
    return len(data.get("tests", []))


@pytest.mark.parametrize(
    "wrong",
    [{}, {"score": "1"}, {"score": 1, "tests": [{"status": "ok"}]}, {"score": 1, "visible": True}, {"tests": [{}]}],
)
def test_the_schema_refuses_what_gradescope_would(wrong):
    with pytest.raises(jsonschema.ValidationError):
        check_gradescope(wrong)
    assert check_gradescope(not_graded("<b>why</b>")) == 0 and not_graded("")["output_format"] == "text"


def test_junit_xml_counts_what_failed(report):
    root = ElementTree.parse(report / "junit.xml").getroot()
    failures = {suite.get("name"): int(suite.get("failures")) for suite in root}
    assert failures["ada: lesson 02"] == 0 and failures["bob: lesson 02"] == 2
    assert sum(len(suite.findall("testcase")) for suite in root) == 5 * 6


def test_copies_are_named_though_names_were_changed(report):
    results = [read_result(path) for path in sorted((report / "results").glob("*.json"))]
    groups = alike([result for result in results if result is not None])
    assert all({"ada", "bob"} & set(names) for _, names, _ in groups)


def test_a_damaged_or_foreign_result_does_not_count(tmp_path):
    for text in ("", "[]", "{", '{"exercises": [3]}', '{"exercises": []}'):
        (tmp_path / "x.json").write_text(text)
        assert read_result(tmp_path / "x.json") is None


def test_file_names_of_students_stay_apart_and_inside():
    names = ["ada", "Ada", "../ada", "ada/", "a" * 300, "", "ada\0", "αδα", "CON.."]
    slugs = [slug(name) for name in names]
    assert len(set(slugs)) == len(names)
    assert all(each and not set(each) & set("/\\.\0") and len(each) < 80 for each in slugs)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nowhere", "--out", "{tmp}/r"], "there is no nowhere"),
        (["{tmp}/empty", "--out", "{tmp}/r"], "holds no notebook"),
        (["{class}", "--out", "{tmp}/full"], "something else than a grading run"),
        (["{class}", "--out", "{tmp}/r", "--recheck"], "holds no grading run to recheck"),
        (["{class}", "--out", "{tmp}/r", "--lesson", "77"], "there is no lesson 77"),
        (["{class}", "--out", "{report}", "--seed", "5"], "holds a run with seed"),
    ],
)
def test_what_the_user_got_wrong_is_told(tmp_path, school, report, arguments, says):
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("x")
    places = {"{tmp}": tmp_path, "{class}": school, "{report}": report}
    for name, place in places.items():
        arguments = [each.replace(name, str(place)) for each in arguments]
    result = CliRunner().invoke(app, ["grade", *arguments])
    assert isinstance(result.exception, CommandError) and says in str(result.exception)


def test_weak_isolation_grades_and_warns_loudly(tmp_path, solved, monkeypatch):
    hand_in(tmp_path / "class", "ada", notebook(solved))
    orphan = "import subprocess\ndef tokens_per_expert(expert_ids, num_experts):\n"
    orphan += "    subprocess.Popen(['sleep', '876543'], start_new_session=True)\n"
    hand_in(tmp_path / "class", "eve", notebook({"02.tokens_per_expert": orphan}))
    monkeypatch.setattr(run, "grade", partial(run.grade, levels=(WEAK,)))
    done = CliRunner().invoke(app, ["grade", str(tmp_path / "class"), "--out", str(tmp_path / "report"), "--jobs", "1"])
    assert done.exit_code == 0, done.output
    assert f"Weak isolation ({WEAK})" in done.output
    assert f"Weak isolation ({WEAK})" in (tmp_path / "report" / "summary.html").read_text(encoding="utf-8")
    ada: Result | None = read_result(tmp_path / "report" / "results" / "ada.02.json")
    assert ada is not None and ada.points == 12 and ada.level == WEAK
    assert b"876543" not in b"".join(commands())


def commands() -> list[bytes]:
    """The command lines of all processes."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(path.read_bytes())
        except OSError:
            continue
    return found
