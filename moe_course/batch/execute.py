"""Runs one notebook with its parameters, measures it, and says how it ended."""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import nbformat
import papermill
from nbclient.exceptions import CellExecutionError, DeadKernelError
from nbformat import NotebookNode
from papermill.exceptions import PapermillExecutionError
from papermill.execute import remove_error_markers

from moe_course.batch.client import ENGINE, MOST_OUTPUT_MB, is_code
from moe_course.batch.watch import Watch
from moe_course.notebooks.outputs import tidy
from moe_course.notebooks.transport import private_sockets
from moe_course.notebooks.warm import kernel_name

TRACEBACK_LINES = 30
FLOOD = "OutputFlood"
KEPT_OF_FLOOD = 50  # outputs of the cell that flooded
KEPT_OF_EACH = 2000  # characters


@dataclass(frozen=True)
class Limits:
    """What a run may use.

    Args:
        seconds: wall time, from when the kernel's process is there; None for no end.
        memory_mb: of the kernel and the processes that it starts.
    """

    seconds: float | None
    memory_mb: float


@dataclass
class Ended:
    """How a run ended: the fields of a row of the batch's table that the run decides, and the notebook as it is now."""

    status: str
    error: dict[str, Any] | None
    seconds: float
    cpu_seconds: float
    peak_memory_mb: float
    kernel: str
    slowest_cell: dict[str, Any] | None
    notebook: NotebookNode | None  # None where the run was no longer wanted


def execute(
    notebook: NotebookNode,
    parameters: dict[str, Any],
    limits: Limits,
    *,
    folder: str,
    environment: dict[str, str],
    warm: bool = True,
    is_unwanted: Callable[[], bool] = lambda: False,
) -> Ended:
    """Run a notebook; safe to call from many threads. No failure of the notebook raises.

    Args:
        notebook: a Python notebook; is not changed.
        parameters: for its parameters cell.
        limits: time and memory; a kernel beyond them is killed.
        folder: the kernel's working folder.
        environment: the kernel's environment variables, all of them.
        warm: whether a forked kernel may run it.
        is_unwanted: asked during the run; once it says yes, the kernel is killed.
    """
    seen: dict[str, Any] = {}
    start = time.monotonic()
    failure: Exception | None = None
    with private_sockets() as config, Watch(limits.seconds, limits.memory_mb, is_unwanted) as watch:
        try:
            papermill.execute_notebook(
                notebook,
                None,
                parameters,
                engine_name=ENGINE,
                kernel_name=kernel_name(warm),
                language="python",
                progress_bar=False,
                watch=watch,
                seen=seen,
                folder=folder,
                environment=environment,
                config=config,
            )
        except PapermillExecutionError:
            # Our engine raises on every error, so these are cells that are meant to raise, and say so by a tag.
            seen["notebook"] = remove_error_markers(seen["notebook"])
        except Exception as error:  # jupyter_client raises many kinds where a kernel cannot be started
            failure = error
    # From when there was a kernel: the first warm one has to wait until torch is imported, which is not this run's.
    seconds = time.monotonic() - (watch.started or start)
    ran = seen.get("notebook") or nbformat.from_dict(notebook)
    status, error_row = _verdict(failure, watch, limits, ran, seen.get("cell"))
    _put_in_order(ran, error_row)
    return Ended(
        status=status,
        error=error_row,
        seconds=round(seconds, 3),
        cpu_seconds=round(watch.cpu_seconds, 3),
        peak_memory_mb=round(watch.peak_memory_mb, 1),
        kernel="warm" if seen.get("warm") else "cold",
        slowest_cell=_slowest(ran),
        notebook=None if watch.reason == "unwanted" else ran,
    )


def _verdict(
    failure: Exception | None, watch: Watch, limits: Limits, notebook: NotebookNode, index: int | None
) -> tuple[str, dict[str, Any] | None]:
    """The status, and what went wrong."""
    if failure is None:
        return "done", None
    # Why the watch killed the kernel explains all that follows from it.
    if watch.reason == "time":
        assert limits.seconds is not None
        message = f"the run took longer than {limits.seconds:g} s; raise `timeout` in the sweep, or give it less to do"
        return "timeout", _error(notebook, index, "Timeout", message)
    if watch.reason == "memory":
        message = (
            f"the kernel held more than {limits.memory_mb:.0f} MB; raise `memory_mb` in the sweep, or run fewer at a "
            "time with --jobs"
        )
        return "out of memory", _error(notebook, index, "OutOfMemory", message)
    if watch.reason == "output":
        message = f"the outputs grew beyond {MOST_OUTPUT_MB} MB; print and draw less"
        return "error", _error(notebook, index, FLOOD, message)
    if index is None:
        return "not started", _error(notebook, None, type(failure).__name__, f"no kernel started: {failure}")
    if isinstance(failure, DeadKernelError):
        message = (
            "the kernel ended in the middle of the run. It was killed, it crashed, or the notebook ended it. Its "
            f"memory was {watch.peak_memory_mb:.0f} MB when last seen; the system kills processes when memory is short"
        )
        return "died", _error(notebook, index, "KernelDied", message)
    if isinstance(failure, CellExecutionError):
        name, message = failure.ename or "Error", _plain(failure.evalue or "")
        status = "out of memory" if _is_about_memory(name, message) else "error"
        if name == "SystemExit":
            message = f"the notebook called sys.exit({message}) and ended before its last cell"
        return status, _error(notebook, index, name, message, _plain(failure.traceback))
    return "error", _error(notebook, index, type(failure).__name__, _plain(str(failure)))


def _error(
    notebook: NotebookNode, index: int | None, name: str, message: str, traceback: str | None = None
) -> dict[str, Any]:
    first_line = None
    if index is not None:
        first_line = _first_line(notebook.cells[index])
    tail = (traceback or f"{name}: {message}").strip().splitlines()[-TRACEBACK_LINES:]
    return {"cell": index, "first_line": first_line, "name": name, "message": message, "traceback": "\n".join(tail)}


def _is_about_memory(name: str, message: str) -> bool:
    return name in ("MemoryError", "OutOfMemoryError") or (name == "RuntimeError" and "allocate memory" in message)


def _put_in_order(notebook: NotebookNode, error: dict[str, Any] | None) -> None:
    """Leave out what would bloat the file, and show a failure that has no traceback where it happened."""
    if error is not None and error["name"] == FLOOD:  # first, for what follows reads every character
        cell = notebook.cells[error["cell"]]
        cell.outputs = [_beginning(output) for output in cell.outputs[:KEPT_OF_FLOOD]]
    tidy(notebook)
    about = notebook.metadata.get("papermill", {})
    about.pop("input_path", None)  # papermill puts the whole notebook there, as it got it from memory
    about.pop("output_path", None)
    if error is None or error["cell"] is None:
        return
    cell = notebook.cells[error["cell"]]
    if cell.cell_type == "code" and not any(output.output_type == "error" for output in cell.outputs):
        cell.outputs.append(
            nbformat.v4.new_output(
                "error", ename=error["name"], evalue=error["message"], traceback=error["traceback"].splitlines()
            )
        )


def _beginning(output: NotebookNode) -> NotebookNode:
    if len(output.get("text", "")) > KEPT_OF_EACH:
        output["text"] = output["text"][:KEPT_OF_EACH] + "\n… and much more\n"
    return output


def _slowest(notebook: NotebookNode) -> dict[str, Any] | None:
    timed = [
        (cell.metadata.get("papermill", {}).get("duration") or 0.0, index)
        for index, cell in enumerate(notebook.cells)
        if is_code(cell)
    ]
    if not timed:
        return None
    seconds, index = max(timed)
    return {"cell": index, "first_line": _first_line(notebook.cells[index]), "seconds": round(seconds, 3)}


def _first_line(cell: NotebookNode) -> str:
    return next((line.strip()[:100] for line in cell.source.splitlines() if line.strip()), "")


def _plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text).strip()
