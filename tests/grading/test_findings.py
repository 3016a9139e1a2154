"""What its author found when he attacked the grader: ways to cheat, to hang it, or to harm another student."""

import json
import time

import pytest
import torch
from rich.console import Console

from moe_course.commands import grade as command
from moe_course.exercises import by_id
from moe_course.grading import autograder, run
from moe_course.grading.answers import Program
from moe_course.grading.archive import Refused, Unpacker
from moe_course.grading.catalogue import catalogue
from moe_course.grading.files import result_file, slug
from moe_course.grading.inside import confine, watch
from moe_course.grading.inside.channel import ProtocolError
from moe_course.grading.inside.wire import Packer
from moe_course.grading.inside.wire import Unpacker as Values
from moe_course.grading.keys import key_of
from moe_course.grading.likeness import fingerprint
from moe_course.grading.notebook import MAX_BYTES, Unreadable, read_notebook
from moe_course.grading.results import ExerciseResult, Result
from moe_course.grading.run import Run, Settings
from moe_course.grading.submissions import lesson_of
from moe_course.grading.talk import Prepared, Talk
from tests.grading.conftest import HANDOUT
from tests.grading.test_submissions import NOTEBOOK, archive, found, tree, zipped

COUNTS = by_id("02.tokens_per_expert")


def notebook(*sources: str, kind: str = "code") -> bytes:
    cells = [{"cell_type": kind, "metadata": {}, "source": source} for source in sources]
    return json.dumps({"cells": cells, "metadata": {}}).encode()


def test_empty_lines_do_not_hold_up_the_run():
    """`^\\s*def` looks at all lines from each line: a megabyte of them took hours, in the run itself."""
    began = time.process_time()
    read = read_notebook(notebook("\n" * 100_000, kind="markdown"))
    assert lesson_of(read, catalogue()) == ""
    assert Program(read).answer(COUNTS).problem == "missing"
    assert time.process_time() - began < 10


def test_thousands_of_names_do_not_hold_up_a_worker():
    """Each name was looked for among all statements: 15 000 of them took a minute and a half."""
    names = [f"a{number}" for number in range(5000)]
    source = "\n".join(f"{name}=1" for name in names)
    uses = f"def tokens_per_expert(): return {' or '.join(names)}"
    began = time.process_time()
    answer = Program(read_notebook(notebook(source, uses))).answer(COUNTS)
    assert len(answer.cells[0]["statements"]) == len(names)
    assert time.process_time() - began < 3


def test_code_too_deep_for_the_reader_is_that_cells_problem(monkeypatch):
    deep = "x = " + "-" * 900 + "1"
    monkeypatch.setattr("moe_course.grading.names.Names.visit", raise_recursion)
    read = Program(read_notebook(notebook(deep, "def tokens_per_expert(): return 1")))
    assert "RecursionError" in read.damaged[1]
    assert isinstance(fingerprint("x = " + "+".join("1" * 5000)), str)


def raise_recursion(*_: object) -> None:
    raise RecursionError


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b'{"cells": [' + b"{}," * 1_000_001 + b"{}]}", "more parts"),
        (notebook("x" * 1_500_000, "x" * 1_500_000), "characters of code"),
    ],
)
def test_a_notebook_made_to_fill_the_memory_is_not_read(raw, says):
    with pytest.raises(Unreadable, match=says):
        read_notebook(raw)


def test_a_file_without_end_is_not_read(tmp_path):
    source = tree(tmp_path / "class", "ada/02_router.ipynb", "eve/02_router.ipynb")
    with (source / "eve" / "02_router.ipynb").open("r+b") as file:
        file.truncate(MAX_BYTES * 100)
    assert [(each.student, each.problem) for each in found(tmp_path, source)] == [("ada", ""), ("eve", "unreadable")]


@pytest.mark.parametrize("as_zip", [False, True])
def test_a_folder_named_submitted_makes_nobody_else_disappear(tmp_path, as_zip):
    """Everything outside of it counted as not handed in, and what lay in it as another student's."""
    source = tree(tmp_path / "class", "ada/02_router.ipynb", "bob/02_router.ipynb")
    if as_zip:
        tree(source, "eve/hw.zip", content=zipped({"submitted/ada/02_router.ipynb": NOTEBOOK}))
    else:
        tree(source, "eve/submitted/ada/02_router.ipynb")
    assert [each.student for each in found(tmp_path, source)] == ["ada", "bob", "eve"]


@pytest.mark.parametrize("as_zip", [False, True])
def test_a_student_cannot_rename_the_others(tmp_path, as_zip):
    forged = b"ada:\n  :submitters:\n  - :name: Eve\neve:\n  :submitters:\n  - :name: Ada\n"
    source = tree(tmp_path / "class", "ada/02_router.ipynb", "eve/02_router.ipynb")
    if as_zip:
        tree(source, "eve/x.zip", content=zipped({"submission_metadata.yml": forged, "02_router.ipynb": NOTEBOOK}))
    else:
        tree(source, "eve/submission_metadata.yml", content=forged)
    assert [each.student for each in found(tmp_path, source)] == ["ada", "eve"]


def test_names_that_are_no_text_are_passed_over(tmp_path):
    bomb = b"a: &a [x, x]\nb: &b [*a, *a]\ns1:\n  :submitters:\n  - :name: *b\n  - :name: Ada\n"
    source = archive(tmp_path / "e.zip", {"e/s1/x.ipynb": NOTEBOOK, "e/submission_metadata.yml": bomb})
    tree_ = found(tmp_path, source)
    assert [each.student for each in tree_] == ["Ada (s1)"]


def damaged(members: dict[str, bytes], name: str) -> bytes:
    """A zip in which the content of one member is broken."""
    raw = bytearray(zipped(members))
    start = raw.index(name.encode()) + len(name)
    raw[start + 10 : start + 60] = b"\xff" * 50
    return bytes(raw)


@pytest.mark.parametrize("what", ["damaged", "bomb"])
def test_one_bad_file_does_not_spoil_the_whole_export(tmp_path, what):
    """A damaged one ended the run with a traceback (zlib.error); a bomb had the class's zip refused."""
    members = {"ada/02_router.ipynb": NOTEBOOK, "eve/02_router.ipynb": NOTEBOOK}
    if what == "bomb":
        (tmp_path / "all.zip").write_bytes(zipped(members | {"eve/02_router.ipynb": bytes(8 << 20)}))
    else:
        (tmp_path / "all.zip").write_bytes(damaged(members, "eve/02_router.ipynb"))
    ada, eve = found(tmp_path, tmp_path / "all.zip")
    assert (ada.problem, eve.problem) == ("", "unreadable") and what in eve.notes[0]


def test_one_students_zip_does_not_use_up_what_is_left_for_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr("moe_course.grading.archive.MAX_OF_STUDENT", 3 * len(NOTEBOOK))
    many = {f"{number}.ipynb": NOTEBOOK + b" " * number for number in range(4)}
    source = tree(tmp_path / "class", "eve/hw.zip", content=zipped(many))
    tree(source, "zoe/hw.zip", content=zipped({"02_router.ipynb": NOTEBOOK}))
    eve, zoe = found(tmp_path, source)
    assert (eve.problem, zoe.problem) == ("unreadable", "") and "bomb" in eve.notes[0]
    assert len(list((tmp_path / "scratch").iterdir())) == 1  # what was unpacked of a bomb is gone again


def test_an_encrypted_file_is_told_as_such(tmp_path):
    raw = bytearray(zipped({"x.ipynb": NOTEBOOK}))
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        raw[raw.index(mark) + offset] |= 1
    (tmp_path / "x.zip").write_bytes(raw)
    (one,) = Unpacker(tmp_path).unpack(tmp_path / "x.zip")
    assert one.path is None and "encrypted" in one.problem
    with pytest.raises(Refused):
        Unpacker(tmp_path).unpack(HANDOUT)


def test_a_tensor_of_an_impossible_shape_is_refused_not_built():
    """torch raised RuntimeError over it, which ended the worker, twice."""
    with pytest.raises(ProtocolError, match="impossible shape"):
        Values(bytearray()).tensor({"dtype": "float32", "shape": [0, *[1 << 26] * 15], "offset": 0})
    assert Values(bytearray()).tensor({"dtype": "float32", "shape": [3, 0, 4], "offset": 0}).shape == (3, 0, 4)


def test_an_output_far_larger_than_a_right_one_is_not_searched_for_laws():
    """Laws are Python loops over values: eight million of them in every case took the grader minutes."""
    talk = Talk(Prepared(COUNTS, seed=1))
    for output, name in ((torch.zeros(300_000), "_FarTooLarge"), (torch.zeros(100), "Tensor")):
        packer = Packer()
        tree_ = packer.pack(output)
        assert type(talk._output({"output": tree_}, packer.blob)).__name__ == name


def test_shared_memory_counts_as_memory(monkeypatch):
    """Only a process's private pages counted."""
    monkeypatch.setattr(watch, "_descendants", lambda: [2, 3])
    monkeypatch.setattr(watch, "_kilobytes", lambda path, name, other: 0 if "smaps" in path else other)
    monkeypatch.setattr(watch, "_of_status", lambda pid, name: (confine.MEMORY >> 10) if name == "RssShmem:" else 0)
    assert watch._too_much("nowhere") == "memory"
    monkeypatch.setattr(watch, "_of_status", lambda pid, name: 1000)
    assert watch._too_much("nowhere") == ""


@pytest.mark.parametrize(("map_", "may"), [("0 0 4294967295\n", True), ("0 1000 1\n", False), ("", False)])
def test_where_no_other_user_exists_none_is_tried(monkeypatch, map_, may):
    """In a container's user namespace, every student's process died of it."""
    monkeypatch.setattr(confine.os, "getuid", lambda: 0)
    monkeypatch.setattr(confine.Path, "read_text", lambda path: map_)
    assert confine.may_become(60_000) is may


def test_what_is_hashed_together_cannot_change_places():
    assert key_of("a", b"bc") != key_of("a", b"b", b"c") != key_of("ab", b"c")


def test_a_name_cannot_be_made_that_takes_anothers_place():
    assert len(slug("Ada").removeprefix("Ada-")) == 16  # 8 digits could be searched through in an hour


def test_a_students_name_is_no_markup_for_the_terminal(tmp_path, capsys):
    """`--recheck` ended with a traceback over a student called [/x]."""
    row = ExerciseResult("02.route", "Route", 3, "graded", 3.0)
    result = Result("[/x]\x1b[2J", "02", "x.ipynb", "", "bubblewrap", [row])
    one = Run(Settings(1, 1.0, ("02",)), [], {("[/x]\x1b[2J", "02"): result})
    assert not result_file(tmp_path, result.student, "02").exists()
    with pytest.raises(BaseException, match="1"):
        command._compare(one, tmp_path, Console())
    said = capsys.readouterr().out
    assert "[/x]" in said and "\x1b" not in said


def test_gradescope_gets_an_answer_whatever_happens(tmp_path, monkeypatch):
    def fails(*_: object, **__: object) -> None:
        raise ZeroDivisionError("<script>")

    monkeypatch.setattr(run, "grade", fails)
    (tmp_path / "submission").mkdir()
    autograder.grade_submission(tmp_path, "02")
    data = json.loads((tmp_path / "results" / "results.json").read_text(encoding="utf-8"))
    assert data["score"] == 0 and "failed over this" in data["output"] and data["output_format"] == "text"
