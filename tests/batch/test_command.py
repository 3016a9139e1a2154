"""`moe-course batch` as a person runs it: to the end, interrupted, killed, and gone on with."""

import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
from typer.testing import CliRunner

from moe_course.cli import app
from tests.batch.notebooks import rows_in, write_notebook, write_sweep

# Run 1 goes through; the others wait until there is a file `go`.
WAITS = """
import os, pathlib, time
from moe_course import record
pathlib.Path(f"pid-{x}").write_text(str(os.getpid()))
while x > 1 and not pathlib.Path("go").exists():
    time.sleep(0.05)
if name == "fails" and x == 3:
    raise RuntimeError("three is too many")
record(double=2 * x)
"""


@pytest.fixture
def folder(tmp_path):
    write_notebook(tmp_path, WAITS)
    write_sweep(tmp_path, "[grid]\nx = [1, 2, 3]\n[parameters]\nname = 'fails'\n")
    return tmp_path


def command(folder, *options):
    """`moe-course batch` in a process of its own; plain kernels, which cost less where there are few."""
    words = ["batch", str(folder / "sweep.toml"), "--out", str(folder / "out"), "--no-warm", "--jobs", "1", *options]
    return [sys.executable, "-m", "moe_course", *words]


def start(folder, *options):
    return subprocess.Popen(
        command(folder, *options), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=folder
    )


def wait_for(condition, seconds=90):
    """Wait until something is so."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.05)
    return value


def kernel_of(folder, x):
    """The kernel that does a run, once it does."""
    path = folder / f"pid-{x}"
    pid = int(wait_for(lambda: path.exists() and path.read_text()))
    path.unlink()
    return psutil.Process(pid)


def has_ended(process):
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def test_interrupted_killed_and_gone_on_with(folder):
    out = folder / "out"

    # Ctrl-C while the second run is at work; the first is done.
    batch = start(folder)
    kernel_of(folder, 1)
    kernel = kernel_of(folder, 2)
    first = rows_in(out)["runs name=fails x=1"]
    # Another batch in the same folder keeps out, and says why.
    said = CliRunner().invoke(app, ["batch", str(folder / "sweep.toml"), "--out", str(out)])
    assert f"another batch (process {batch.pid} on " in str(said.exception)
    batch.send_signal(signal.SIGINT)
    said, _ = batch.communicate(timeout=60)
    assert batch.returncode == 130, said
    assert "1 done, 0 failed, 2 left" in said
    assert "Interrupted. What is done is kept. Run the same command to go on." in said
    assert "Traceback" not in said
    assert has_ended(kernel)
    assert "not started" in (out / "results.csv").read_text()

    # kill -9: the kernel does not outlive the batch, and nothing of it is taken for done.
    batch = start(folder)
    kernel = kernel_of(folder, 2)
    batch.kill()
    batch.communicate()
    wait_for(lambda: has_ended(kernel))
    assert list(rows_in(out)) == ["runs name=fails x=1"]

    # On to the end: only what is missing runs, and what fails stops nothing.
    (folder / "go").touch()
    done = CliRunner().invoke(app, command(folder, "--retries", "1")[3:])
    assert done.exit_code == 1, done.stdout
    assert "sweep: 3 runs, 1 are there already" in done.stdout
    assert "✗ 2/2  small  name='fails'  x=3: error. Cell 2 (`import os, pathlib, time`): RuntimeError: " in done.stdout
    rows = rows_in(out)
    assert rows.pop("runs name=fails x=1") == first
    assert not (folder / "pid-1").exists()
    assert {name: (row["status"], row["attempts"], row["results"]) for name, row in rows.items()} == {
        "runs name=fails x=2": ("done", 1, {"double": 4}),
        "failed name=fails x=3": ("error", 2, {}),
    }
    assert rows["failed name=fails x=3"]["error"]["message"] == "three is too many"
    for run in json.loads((out / "plan.json").read_text())["runs"]:
        assert any((out / f"{place}/{run['id']}.ipynb").exists() for place in ("runs", "failed"))
    assert (out / "report.html").exists()

    # Nothing is left but the failure. Quiet says only what fails, and a dry run what would run.
    write_sweep(folder, "[grid]\nx = [1, 2]\n[parameters]\nname = 'fails'\n")
    quiet = CliRunner().invoke(app, ["batch", str(folder / "sweep.toml"), "--out", str(out), "--quiet"])
    assert (quiet.exit_code, quiet.stdout) == (0, "")
    write_sweep(folder, "[grid]\nx = [1, 2, 4]\n[parameters]\nname = 'fails'\n")
    dry = CliRunner().invoke(app, ["batch", str(folder / "sweep.toml"), "--out", str(out), "--dry-run"])
    assert "done   small  name='fails'  x=2\nto do  small  name='fails'  x=4\n" in dry.stdout
    assert "3 runs: 2 done, 1 to do.\nThey take about " in dry.stdout


def test_a_dry_run_without_a_folder_knows_no_times(folder):
    dry = CliRunner().invoke(app, ["batch", str(folder / "sweep.toml"), "--dry-run"])
    assert dry.exit_code == 0
    assert "3 runs: 0 done, 3 to do.\nHow long they take is unknown" in dry.stdout
    assert not (folder / "out").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "Add --out RUNS"),
        (["--out", "out", "--jobs", "1", "--scheduler", "tcp://127.0.0.1:1"], "leave --jobs out"),
        (["--out", "out", "--scheduler", "tcp://127.0.0.1:1"], "nothing answers at tcp://127.0.0.1:1"),
        (["other.toml", "--out", "out"], "other.toml is one file too many"),
    ],
)
def test_what_keeps_a_batch_from_starting_is_told(folder, monkeypatch, words, says):
    monkeypatch.chdir(folder)
    said = CliRunner().invoke(app, ["batch", "sweep.toml", *words])
    assert says in str(said.exception)


def test_a_sweep_that_is_not_there_leads_to_init(tmp_path):
    said = CliRunner().invoke(app, ["batch", "nowhere.toml", "--dry-run"])
    assert "`moe-course batch init nowhere.toml` writes an example" in str(said.exception)


def test_a_full_disk_ends_the_batch_with_a_sentence(folder, monkeypatch):
    def full(_):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    said = CliRunner().invoke(app, ["batch", str(folder / "sweep.toml"), "--out", str(folder / "out")])
    assert "no space is left on the disk" in str(said.exception)
