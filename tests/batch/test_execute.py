"""One notebook in a real kernel: what it gets, what is measured, and that no way to fail looks like success."""

import os
import threading

import nbformat
import psutil
import pytest

from moe_course.batch.execute import Limits, execute
from moe_course.batch.work import THREADS, Job, Unfit, work
from tests.batch.notebooks import write_notebook


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """The folder that kernels work in."""
    return tmp_path_factory.mktemp("home")


def run(home, *cells, seconds=60.0, memory_mb=4000.0, is_unwanted=lambda: False, **parameters):
    """How a notebook of these cells ends."""
    notebook = nbformat.read(write_notebook(home, *cells, name=f"n{abs(hash(cells))}"), as_version=4)
    environment = os.environ | {"MARK": "this one"}
    limits = Limits(seconds, memory_mb)
    return execute(notebook, parameters, limits, folder=str(home), environment=environment, is_unwanted=is_unwanted)


def printed(ended):
    return "".join(out.text for cell in ended.notebook.cells for out in cell.get("outputs", ()) if "text" in out)


def is_gone(pid):
    """Whether a process has ended, though its parent may not have asked how."""
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_a_notebook_gets_its_parameters_its_folder_and_its_environment(home):
    values = {"x": 7, "rate": float("inf"), "name": 'it\'s "q"\n\\ é', "sizes": [1, [2.5, True], {"a": "b"}]}
    cells = ("import os; print(repr([x, rate, name, sizes, seed]))", "print(os.getcwd(), os.environ['MARK'])")
    ended = run(home, *cells, **values)
    assert (ended.status, ended.error) == ("done", None)
    assert printed(ended) == f"{[*values.values(), 0]!r}\n{home} this one\n"
    assert ended.kernel == "warm"
    assert 0 < ended.cpu_seconds < ended.seconds + 5
    assert 20 < ended.peak_memory_mb < 2000
    assert "input_path" not in ended.notebook.metadata.papermill
    nbformat.validate(ended.notebook)


@pytest.mark.parametrize(
    ("cells", "status", "name", "cell"),
    [
        (("def f():\n    1 / 0", "# why\nf()", "print(1)"), "error", "ZeroDivisionError", 2),
        (("import sys; sys.exit(0)", "print(1)"), "error", "SystemExit", 1),
        (("import sys; sys.exit()", "print(1)"), "error", "SystemExit", 1),
        (("1 +", "print(1)"), "error", "SyntaxError", 1),
        (("import os; os._exit(0)", "print(1)"), "died", "KernelDied", 1),
        (("import os; os.kill(os.getpid(), 9)",), "died", "KernelDied", 1),
        (("get_ipython().kernel._aborting = True", "print(1)"), "error", "CellNeverRan", 2),
        (("raise MemoryError",), "out of memory", "MemoryError", 1),
    ],
)
def test_no_failure_is_taken_for_success(home, cells, status, name, cell):
    ended = run(home, *cells)
    assert (ended.status, ended.error["name"], ended.error["cell"]) == (status, name, cell)
    assert ended.error["first_line"] == ended.notebook.cells[cell].source.splitlines()[0]
    assert ended.error["message"] or name == "MemoryError"
    assert "\x1b" not in ended.error["traceback"]
    # The notebook shows it as well, where it happened, and nothing after it claims to have run.
    assert name in [output.get("ename") for output in ended.notebook.cells[cell].outputs]
    states = [each.metadata.papermill.status for each in ended.notebook.cells]
    assert states == ["completed"] * cell + ["failed"] + ["pending"] * (len(states) - cell - 1)


def test_a_notebook_that_hangs_is_ended_with_all_that_it_started(home):
    child = "import subprocess, time; child = subprocess.Popen(['sleep', '1000']); print(child.pid, flush=True)"
    ended = run(home, child, "while True:\n    time.sleep(1)", "print(1)", seconds=4)
    assert (ended.status, ended.error["cell"]) == ("timeout", 2)
    assert ended.error["message"].startswith("the run took longer than 4 s; raise `timeout`")
    assert ended.seconds < 12
    assert is_gone(int(printed(ended)))


def test_a_notebook_that_takes_too_much_memory_is_ended(home):
    eat = "x = []\nwhile True:\n    x.append(bytearray(20_000_000))"
    ended = run(home, eat, memory_mb=900)
    assert (ended.status, ended.error["cell"]) == ("out of memory", 1)
    assert "held more than 900 MB; raise `memory_mb`" in ended.error["message"]
    assert 900 < ended.peak_memory_mb < 3000


def test_the_peak_of_memory_is_seen_even_if_it_is_short(home):
    ended = run(home, "x = bytearray(700_000_000); del x")
    assert ended.status == "done"
    assert ended.peak_memory_mb > 700


def test_a_flood_of_output_is_ended_and_its_beginning_kept(home, monkeypatch):
    monkeypatch.setattr("moe_course.batch.client.MOST_OUTPUT_MB", 2)
    ended = run(home, "import time\nfor _ in range(60):\n    print('x' * 100_000, flush=True)\ntime.sleep(600)")
    assert (ended.status, ended.error["name"]) == ("error", "OutputFlood")
    assert 1000 < len(nbformat.writes(ended.notebook)) < 100_000


def test_output_that_is_cleared_is_no_flood(home, monkeypatch):
    monkeypatch.setattr("moe_course.batch.client.MOST_OUTPUT_MB", 2)
    ended = run(
        home,
        "from IPython.display import clear_output\n"
        "for n in range(10, 20):\n    clear_output(wait=True); print(str(n) * 250_000, flush=True)",
    )
    assert ended.status == "done"
    assert len(nbformat.writes(ended.notebook)) < 1_000_000


def test_a_cell_that_is_meant_to_raise_fails_nothing(home):
    ended = run(home, "# raises\n1 / 0", "print(5)")
    assert (ended.status, printed(ended)) == ("done", "5\n")
    assert len(ended.notebook.cells) == 3  # papermill's notes about an error are not there


def test_a_run_that_nobody_wants_any_more_is_ended(home):
    unwanted = threading.Event()
    threading.Timer(2, unwanted.set).start()
    ended = run(home, "import time; time.sleep(1000)", is_unwanted=unwanted.is_set)
    assert ended.notebook is None
    assert ended.seconds < 10


def test_a_kernel_that_does_not_start_is_told(home, monkeypatch):
    monkeypatch.setattr("moe_course.batch.execute.kernel_name", lambda warm: "no-such-kernel")
    ended = run(home, "1")
    assert (ended.status, ended.error["cell"]) == ("not started", None)
    assert "no-such-kernel" in ended.error["message"]


def job(path, **changes):
    """A job for `work`."""
    row = {"id": "small-1", "key": "k" * 64, "lesson": "small", "parameters": {"x": 2}, "seed": None}
    about = {"batch": "b", "row": row, "text": path.read_text(), "given": {"x": 2}, "folder": "/nowhere"}
    limits = {"timeout": 60.0, "memory_mb": None, "warm": True, "jobs": 2, "package": ""}
    return Job(**(about | limits | changes))


def test_a_job_becomes_a_row_with_what_was_recorded(home, monkeypatch):
    for name in THREADS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("moe_course.batch.work.available_cores", lambda: 7)
    cells = (
        "import os\nfrom moe_course import record",
        f"record(twice=2 * x, threads=[os.environ[name] for name in {THREADS}], here=os.getcwd())",
    )
    outcome = work(job(write_notebook(home, *cells)))
    row = outcome.row
    assert (row["status"], row["kernel"], row["error"], row["id"]) == ("done", "warm", None, "small-1")
    assert row["results"]["twice"] == 4
    assert row["results"]["threads"] == ["3"] * len(THREADS)  # 7 cores for 2 jobs
    assert not os.path.exists(row["results"]["here"])  # the notebook's folder is not on this machine: a scratch folder
    assert row["slowest_cell"]["cell"] in range(4)
    assert row["started"] < row["finished"]
    stored = nbformat.reads(outcome.notebook, as_version=4).metadata.moe_course.run
    assert stored == {name: value for name, value in row.items() if name != "results"}


def test_a_worker_with_another_package_refuses(home):
    with pytest.raises(Unfit, match=r"has another moe_course than .* install the same"):
        work(job(write_notebook(home, "1"), package="another"))
