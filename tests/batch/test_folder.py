"""A batch's folder: nothing half-written counts, one batch at a time, and a full disk loses nothing."""

import errno
import json
import os
import subprocess
import sys

import pytest

from moe_course.batch.folder import UNFINISHED, Folder, FolderError
from tests.batch.notebooks import plan_of, write_notebook


@pytest.fixture
def plan(tmp_path):
    """Two runs."""
    write_notebook(tmp_path, "x")
    return plan_of(tmp_path, "[grid]\nx = [1, 2]")


@pytest.fixture
def batch(tmp_path, plan):
    """An open folder."""
    folder = Folder(tmp_path / "out")
    with folder.open(plan):
        yield folder


def row_and_notebook(run, status="done"):
    """What a run leaves."""
    row = {"id": run.id, "key": run.key, "status": status, "lesson": run.lesson, "seconds": 3.0}
    notebook = {"cells": [], "metadata": {"moe_course": {"run": row}}, "nbformat": 4, "nbformat_minor": 5}
    return row, json.dumps(notebook)


def test_a_run_is_done_when_its_row_and_its_notebook_have_its_key(batch, plan):
    first, second = plan.runs
    assert not batch.is_done(first)
    batch.save(*row_and_notebook(first))
    assert (batch.is_done(first), batch.is_done(second)) == (True, False)
    assert batch.seconds() == {"small": [3.0]}


@pytest.mark.parametrize("harm", ["cut", "other key", "no notebook", "no row", "row cut"])
def test_nothing_half_written_is_taken_for_done(batch, plan, harm):
    run = plan.runs[0]
    batch.save(*row_and_notebook(run))
    notebook, row = (batch.path / f"runs/{run.id}.{kind}" for kind in ("ipynb", "json"))
    if harm == "cut":
        notebook.write_text(notebook.read_text()[:-1])
    elif harm == "other key":
        notebook.write_text(notebook.read_text().replace(run.key, "0" * 64))
    elif harm == "no notebook":
        notebook.unlink()
    elif harm == "no row":
        row.unlink()
    else:
        row.write_text(row.read_text()[:20])
    assert not batch.is_done(run)


def test_a_failed_run_is_kept_apart_and_goes_once_it_is_done(batch, plan):
    run = plan.runs[0]
    batch.save(*row_and_notebook(run, "error"))
    assert batch.has_failed(run)
    assert not batch.is_done(run)
    assert sorted(path.suffix for path in batch.path.glob("failed/*")) == [".ipynb", ".json"]
    batch.save(row_and_notebook(run, "died")[0], None)
    assert [path.suffix for path in batch.path.glob("failed/*")] == [".json"]
    batch.save(*row_and_notebook(run))
    assert list(batch.path.glob("failed/*")) == []


def test_a_full_disk_leaves_no_trace_of_what_did_not_fit(batch, plan, monkeypatch):
    first, second = plan.runs
    batch.save(*row_and_notebook(first))

    def full(handle):
        os.ftruncate(handle, 20)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        batch.save(*row_and_notebook(second))
    with pytest.raises(OSError, match="No space left"):
        batch.save(*row_and_notebook(first))
    assert (batch.is_done(first), batch.is_done(second)) == (True, False)
    assert list(batch.path.glob(f"*/{UNFINISHED}*")) == []


def test_what_a_killed_batch_was_writing_is_swept_away(tmp_path, plan):
    folder = Folder(tmp_path / "out")
    (tmp_path / "out/runs").mkdir(parents=True)
    (tmp_path / f"out/runs/{UNFINISHED}x.ipynb").write_text("{")
    with folder.open(plan):
        assert list(folder.path.glob("runs/*")) == []


def test_only_one_batch_at_a_time(batch, plan):
    with (
        pytest.raises(FolderError, match=rf"another batch \(process {os.getpid()} on .*give another --out"),
        Folder(batch.path).open(plan),
    ):
        pass


def test_the_lock_goes_with_the_process_that_held_it(tmp_path, plan):
    code = (
        "import fcntl, os, sys\n"
        "file = open(sys.argv[1], 'a+'); fcntl.flock(file, fcntl.LOCK_EX); print('held', flush=True); input()"
    )
    (tmp_path / "out").mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "out/.lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(FolderError, match="another batch"), Folder(tmp_path / "out").open(plan):
            pass
        holder.kill()
    with Folder(tmp_path / "out").open(plan):
        pass


def test_a_folder_of_something_else_is_left_alone(tmp_path, plan):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.tex").write_text("years of work")
    with pytest.raises(FolderError, match="holds something else than a batch"), Folder(tmp_path / "out").open(plan):
        pass
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.tex"]


def test_a_folder_of_another_sweep_is_left_alone(batch, tmp_path):
    other = plan_of(tmp_path, 'name = "other"\n[grid]\nx = [1]')
    with pytest.raises(FolderError, match="holds the sweep 'sweep', not 'other'"), batch.open(other):
        pass


def test_the_plan_is_written_down(batch, plan):
    written = json.loads((batch.path / "plan.json").read_text())
    assert [run["id"] for run in written["runs"]] == [run.id for run in plan.runs]
    assert written["sweep"] == "sweep"
    assert (batch.path / "sweep.toml").read_text() == plan.sweep.text
