"""Students and notebooks are found in whatever a course's system exports, and hostile archives are refused."""

import io
import json
import stat
import zipfile
from pathlib import Path

import pytest

from moe_course.grading.archive import Refused
from moe_course.grading.catalogue import catalogue
from moe_course.grading.submissions import NothingHandedIn, Submission, find_submissions
from tests.grading.conftest import HANDOUT

NOTEBOOK = HANDOUT.read_bytes()
OTHER = json.dumps({"cells": [], "metadata": {"moe_course": {"lesson": "03_expert_layer"}}}).encode()


MEMBERS = 300  # of a zip; more is refused


@pytest.fixture(autouse=True)
def few_members(monkeypatch):
    monkeypatch.setattr("moe_course.grading.archive.MAX_MEMBERS", MEMBERS)


def found(tmp_path: Path, source: Path, *lessons: str) -> list[Submission]:
    scratch = tmp_path / "scratch"
    scratch.mkdir(exist_ok=True)
    return find_submissions(source, scratch, catalogue, lessons)


def tree(root: Path, *names: str, content: bytes = NOTEBOOK) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def archive(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, content in members.items():
            opened.writestr(name, content)
    return path


def zipped(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, content in members.items():
            opened.writestr(name, content)
    return out.getvalue()


@pytest.mark.parametrize(
    ("names", "students"),
    [
        (["ada/02_router.ipynb", "bob/anything.ipynb"], ["ada", "bob"]),
        (["ada.ipynb", "bob_02_router.ipynb", "02_router-cy.ipynb"], ["ada", "bob", "cy"]),
        (["submitted/ada/02/02_router.ipynb", "submitted/bob/02/x.ipynb", "source/02/02_router.ipynb"], ["ada", "bob"]),
        (["download/ada/02_router.ipynb", "download/bob/02_router.ipynb"], ["ada", "bob"]),
        (["only/02_router.ipynb"], ["only"]),
        (["adalovelace_1234_5678_02_router.ipynb", "bob_LATE_77_88_x.ipynb"], ["adalovelace (1234)", "bob (77)"]),
        (
            ["Ada L_12_assignsubmission_file_/x.ipynb", "Ada L_13_assignsubmission_file_/x.ipynb"],
            ["Ada L (12)", "Ada L (13)"],
        ),
        (["ada/x.ipynb", "ada/.ipynb_checkpoints/x-checkpoint.ipynb", "__MACOSX/._x.ipynb"], ["ada"]),
    ],
)
@pytest.mark.parametrize("as_zip", [False, True])
def test_students_of_an_export(tmp_path, names, students, as_zip):
    source = tree(tmp_path / "class", *names)
    if as_zip:
        source = archive(tmp_path / "class.zip", dict.fromkeys(names, NOTEBOOK))
    all_found = found(tmp_path, source)
    assert [each.student for each in all_found] == students
    assert all(each.path is not None and each.path.read_bytes() == NOTEBOOK for each in all_found)
    assert {each.lesson for each in all_found} == {"02"}


def test_gradescopes_own_list_names_the_students(tmp_path):
    listed = b"submission_1:\n  :submitters:\n  - :name: Ada Lovelace\n    :email: a@b\nsubmission_2: 3\n"
    members = dict.fromkeys(["e/submission_1/x.ipynb", "e/submission_2/x.ipynb"], NOTEBOOK)
    source = archive(tmp_path / "export.zip", members | {"e/submission_metadata.yml": listed})
    assert [each.student for each in found(tmp_path, source)] == ["Ada Lovelace (1)", "submission_2"]


def test_who_did_not_hand_in_a_lesson_is_missing(tmp_path):
    source = tree(tmp_path / "class", "ada/02_router.ipynb", "bob/02_router.ipynb")
    tree(source, "bob/03_expert_layer.ipynb", content=OTHER)
    rows = [(each.student, each.lesson, each.problem) for each in found(tmp_path, source)]
    assert rows == [("ada", "02", ""), ("ada", "03", "missing"), ("bob", "02", ""), ("bob", "03", "")]
    assert [each.lesson for each in found(tmp_path, source, "03")] == ["03", "03"]


def test_of_several_notebooks_the_original_counts_and_a_note_says_so(tmp_path):
    source = tree(tmp_path / "class", "ada/02_router.ipynb", "ada/02_router-Copy1.ipynb")
    (each,) = found(tmp_path, source)
    assert each.name == "ada/02_router.ipynb" and "02_router-Copy1.ipynb" in each.notes[0]


def test_a_zip_that_a_student_handed_in_is_opened(tmp_path):
    inner = zipped({"work/02_router.ipynb": NOTEBOOK})
    source = tree(tmp_path / "class", "ada/hw.zip", content=inner)
    tree(source, "bob/02_router.ipynb")
    assert [(each.student, each.problem) for each in found(tmp_path, source)] == [("ada", ""), ("bob", "")]
    outer = archive(tmp_path / "all.zip", {"ada/hw.zip": inner, "bob/x.ipynb": NOTEBOOK})
    assert [(each.student, each.problem) for each in found(tmp_path, outer)] == [("ada", ""), ("bob", "")]


def link() -> zipfile.ZipInfo:
    member = zipfile.ZipInfo("ada/02_router.ipynb")
    member.external_attr = (stat.S_IFLNK | 0o777) << 16
    return member


def evil(name: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as opened:
        if name == "link":
            opened.writestr(link(), "/etc/passwd")
        elif name == "bomb":
            opened.writestr("x.ipynb", bytes(8 << 20))
        elif name == "many":
            for index in range(MEMBERS + 1):
                opened.writestr(f"{index}", b"")
        else:
            opened.writestr(name, NOTEBOOK)
    raw = out.getvalue()
    return raw[: len(raw) // 2] + b"??" if name == "damaged" else raw


EVIL = {
    "../x.ipynb": "outside",
    "a/../../x.ipynb": "outside",
    "/etc/x.ipynb": "outside",
    "..\\x.ipynb": "outside",
    "C:\\x.ipynb": "outside",
    "link": "link or a device",
    "bomb": "zip bomb",
    "many": "more than",
    "damaged": "damaged",
}


@pytest.mark.parametrize("name", [name for name in EVIL if name != "bomb"])
def test_a_hostile_zip_is_refused(tmp_path, name):
    (tmp_path / "class.zip").write_bytes(evil(name))
    with pytest.raises(Refused, match=EVIL[name]):
        found(tmp_path, tmp_path / "class.zip")
    assert sum(path.stat().st_size for path in (tmp_path / "scratch").iterdir()) < 70 << 20
    assert {path.name for path in tmp_path.iterdir()} == {"class.zip", "scratch"}


@pytest.mark.parametrize("name", EVIL)
def test_a_students_hostile_zip_is_that_students_problem(tmp_path, name):
    source = tree(tmp_path / "class", "eve/hw.zip", content=evil(name))
    tree(source, "ada/02_router.ipynb")
    ada, eve = found(tmp_path, source)
    assert (ada.problem, eve.problem) == ("", "unreadable")
    assert EVIL[name] in eve.notes[0]


def test_a_zip_in_a_zip_in_a_zip_is_not_opened(tmp_path):
    inner = zipped({"b.zip": zipped({"c.ipynb": NOTEBOOK})})
    source = archive(tmp_path / "a.zip", {"eve/a.zip": inner, "ada/x.ipynb": NOTEBOOK})
    assert [(each.student, each.problem) for each in found(tmp_path, source)] == [("ada", ""), ("eve", "unreadable")]


def test_links_are_not_followed(tmp_path):
    source = tree(tmp_path / "class", "ada/02_router.ipynb")
    (source / "eve").mkdir()
    (source / "eve" / "02_router.ipynb").symlink_to(source / "ada" / "02_router.ipynb")
    (source / "loop").symlink_to(source, target_is_directory=True)
    assert [(each.student, each.problem) for each in found(tmp_path, source)] == [("ada", ""), ("eve", "unreadable")]


@pytest.mark.parametrize("names", [[], ["notes.txt"], ["ada/empty.ipynb"]])
def test_nothing_to_grade_is_said(tmp_path, names):
    source = tree(tmp_path / "class", *names, content=b'{"cells": []}')
    source.mkdir(exist_ok=True)
    with pytest.raises(NothingHandedIn):
        found(tmp_path, source)
