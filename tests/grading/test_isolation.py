"""Where there is no bubblewrap: Landlock and seccomp keep student code from what it must not see or touch, too."""

import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest

from moe_course.exercises import LESSONS
from moe_course.grading import places
from moe_course.grading.answers import Program
from moe_course.grading.examine import Examiner, _ending
from moe_course.grading.inside import calls, landlock, zygote
from moe_course.grading.levels import LEVELS
from moe_course.grading.notebook import read_notebook
from moe_course.grading.sandbox import Process, Sandbox, SandboxError
from tests.grading.attacks import FILES, HONEST, KEYS, NEIGHBOURS, Attack, attack
from tests.grading.conftest import ROOT, hand_in, notebook
from tests.grading.test_attacks import EXERCISE, NOTHING

LANDLOCK, WITH_SPACES = "landlock", "landlock and namespaces"
ESCAPES = [*KEYS, *NEIGHBOURS, *FILES, *HONEST]
# Files are kept by the same means at both levels; what namespaces add concerns processes and networks.
OF_SPACES = [
    each for each in ESCAPES if each.name.startswith(("network", "neighbour-kill", "neighbour-read", "honest"))
]


@pytest.fixture(scope="module")
def examiners() -> Iterator[Callable[[str], Examiner | None]]:
    """Gives one who examines at a level; None where the kernel has no Landlock, and a sandbox says so."""
    with ExitStack() as open_:

        @cache
        def examiner(level: str) -> Examiner | None:
            if not landlock.version():
                with pytest.raises(SandboxError, match="lacks Landlock"), Sandbox((level,)):
                    pass
                return None
            levels = tuple(LEVELS) if level == WITH_SPACES else (level,)  # what is found by itself comes second
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("PATH", "/nowhere")  # where no bwrap is
                sandbox = open_.enter_context(Sandbox(levels))
            return Examiner(sandbox, seed=1, seconds=1.5)

        yield examiner


@pytest.fixture(scope="module")
def class_(tmp_path_factory, solved) -> Iterator[dict[str, object]]:
    """What hostile answers look for: a classmate's notebook, secrets, sockets that someone listens on."""
    folder = tmp_path_factory.mktemp("shared")
    canary = folder / "canary"
    canary.mkdir()
    (canary / "secret").write_text("not yours")
    hand_in(folder / "class", "ada", notebook(solved))
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as local:
        port = tcp.getsockname()[1]
        local.bind(f"\0moe-course-{port}")
        local.listen()
        with socket.socket(socket.AF_UNIX) as by_path:
            by_path.bind(str(canary / "socket"))
            by_path.listen()
            yield {"canary": canary, "root": ROOT, "port": port, "report": folder / "report"}


def earned(examiner: Examiner, source: str) -> tuple[str, float, str]:
    """Status and points of an answer, and what is said about it."""
    cell = {"cell_type": "code", "metadata": {}, "source": "import torch\n" + source}
    program = Program(read_notebook(json.dumps({"cells": [cell]}).encode()))
    (exercise,) = [each for each in LESSONS["02"] if each.id == EXERCISE]
    (outcome,) = examiner.examine(program, program, (exercise,)).values()
    return outcome.status, outcome.points, outcome.message or (outcome.verdict.message if outcome.verdict else "")


@pytest.mark.parametrize(
    ("level", "each"),
    [(WITH_SPACES, each) for each in OF_SPACES] + [(LANDLOCK, each) for each in ESCAPES],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
def test_nothing_is_seen_or_touched_that_must_not_be(examiners, class_, level: str, each: Attack):
    examiner = examiners(level)
    if examiner is None:
        return  # nothing else can be asked of this kernel
    assert examiner.sandbox.level == level
    source = each.source
    for name, place in class_.items():
        source = source.replace("{" + name + "}", str(place))
    status, points, said = earned(examiner, source.replace("{{", "{").replace("}}", "}"))
    if each.earns == "all":
        assert (status, points) == ("graded", 1), said
    else:
        assert points <= NOTHING, (status, said)
    if each.name == "file-bomb":
        assert (status, said) == ("crashed", "the answer wrote too many files")
    canary = Path(str(class_["canary"]))
    assert sorted(path.name for path in canary.iterdir()) == ["secret", "socket"]
    assert (canary / "secret").read_text() == "not yours" and (canary / "secret").stat().st_mtime > 1


def test_nothing_can_be_left_in_the_sandbox_for_the_next():
    """Where the grader is not root, student code owns what bubblewrap makes itself: / and /dev could be written."""
    tries = """
        import glob, os
        left = 0
        for folder in ("/", "/dev", "/course", "/usr", "/etc", *glob.glob("/*")):
            try: open(os.path.join(folder, "left"), "w").close()
            except OSError: continue
            left += folder not in ("/tmp",)
        if left: RIGHT
    """
    one = attack("leaves-something", tries)
    with Sandbox(("bubblewrap",)) as sandbox:
        sandbox.user = 0  # as where the grader is not root
        status, points, said = earned(Examiner(sandbox, seed=1, seconds=5), one.source)
    assert status == "graded" and points <= NOTHING, said


def test_time_runs_out_only_for_an_answer_that_had_it(monkeypatch):
    """What a busy machine did not let run is tried again, once; what had its processor time is not."""
    seconds = 0.5
    waits = "import math, time\nwhile time.time() < {}: time.sleep(0.01)\nRIGHT".format
    with Sandbox() as sandbox:
        examiner, start, starts = Examiner(sandbox, seed=1, seconds=seconds), sandbox.start, []
        monkeypatch.setattr(sandbox, "start", lambda cpu: starts.append(cpu) or start(cpu))
        over = time.time() + 1.2 * seconds  # past the limit of a first try, within that of a second
        assert earned(examiner, attack("waits", waits(over)).source)[0] == "graded"
        for cpu, tries in ((0.0, 2), (seconds, 1)):
            starts.clear()
            monkeypatch.setattr(Process, "cpu", cpu)
            assert earned(examiner, attack("waits", waits("math.inf")).source)[0] == "timeout"
            assert len(starts) == tries


def test_a_kernel_without_landlock_is_noticed_before_anything_is_loaded(monkeypatch):
    monkeypatch.setattr(landlock, "version", lambda: 0)
    with pytest.raises(SystemExit, match="lacks Landlock or seccomp"):
        zygote._rehearse({"readable": [], "listable": [], "writable": []})


def test_a_machine_whose_system_calls_are_not_known_is_refused(monkeypatch):
    monkeypatch.setattr(os, "uname", lambda: type("Name", (), {"machine": "riscv64"}))
    with pytest.raises(OSError, match="riscv64 are not known"):
        calls.forbid(shared=True)


def test_the_course_is_left_out_where_it_lies_among_the_systems_files(tmp_path, monkeypatch):
    """As in a container that has it in /usr/src, with Python in the clone, and a second copy installed in Python."""
    usr = tmp_path / "usr"
    clone, venv = usr / "src" / "course", usr / "src" / "course" / ".venv"
    for folder in (usr / "lib", clone / "solutions", venv / "site" / "torch", venv / "site" / "moe_course"):
        folder.mkdir(parents=True)
        (folder / "file.py").touch()
    monkeypatch.setattr(places, "PACKAGE", clone / "moe_course")
    monkeypatch.setattr(places, "SYSTEM", (str(usr),))
    monkeypatch.setattr(places.sys, "prefix", str(venv))
    monkeypatch.setattr(places.sys, "base_prefix", "/usr")
    monkeypatch.setattr(places.sys, "path", [str(venv / "site")])
    monkeypatch.setattr(places.shutil, "which", lambda name: name)

    seen = places.landlock(tmp_path / "staged")["readable"]
    open_ = [path for path in usr.rglob("file.py") if any(path.is_relative_to(each) for each in seen)]
    assert sorted(path.parent.name for path in open_) == ["lib", "torch"]

    command = places.bubblewrap(tmp_path / "staged")[0]
    mounts = list(pairwise(command))
    order = [mounts.index(each) for each in (("--ro-bind", str(usr)), ("--tmpfs", str(clone)))]
    order += [mounts.index(("--ro-bind", str(venv))), mounts.index(("--tmpfs", str(venv / "site" / "moe_course")))]
    assert order == sorted(order)


@pytest.mark.parametrize(
    ("end", "status", "says"),
    [
        ({"reason": "processes", "signal": 9}, "crashed", "too many processes"),
        ({"reason": "files", "signal": 9}, "crashed", "too many files"),
        ({"reason": "memory", "signal": 9}, "out of memory", "more memory"),
        ({"reason": "", "signal": 24}, "timeout", ""),
        ({"reason": "", "signal": 11}, "crashed", "SIGSEGV"),
        ({"reason": "", "signal": 0, "code": 3}, "crashed", "exit status 3"),
    ],
)
def test_each_end_of_a_process_has_its_name(end, status, says):
    assert _ending(end)[0] == status and says in _ending(end)[1]
