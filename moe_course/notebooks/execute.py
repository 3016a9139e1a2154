"""Runs a notebook in a kernel of its own."""

import asyncio
import re
import sys
from collections.abc import Callable
from pathlib import Path

import nbclient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode

from moe_course.notebooks.transport import private_sockets
from moe_course.notebooks.warm import kernel_name

CELL_TIMEOUT = 180  # seconds


class ExecutionError(Exception):
    """A cell that failed, with its number, its first line and the end of the traceback."""


def execute(
    notebook: NotebookNode,
    folder: Path,
    name: str,
    on_cell: Callable[[int], None] = lambda index: None,
    past_errors: bool = False,
) -> None:
    """Run every cell in place; outputs that it had are dropped first.

    Args:
        notebook: the notebook; gets outputs.
        folder: the kernel's working directory.
        name: what to call it in messages.
        on_cell: called with the index of each cell before it runs.
        past_errors: run the cells after one that raises as well.

    Raises:
        ExecutionError: a cell raised, ran too long, or the kernel died or did not start.
    """
    if sys.platform == "win32":
        asyncio.set_event_loop_policy(asyncio.WindowsSelectorEventLoopPolicy())
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    running: list[int] = []

    def start(cell: NotebookNode, cell_index: int) -> None:
        running.append(cell_index)
        on_cell(cell_index)

    try:
        with private_sockets() as config:
            nbclient.NotebookClient(
                notebook,
                timeout=CELL_TIMEOUT,
                record_timing=False,
                allow_errors=past_errors,
                resources={"metadata": {"path": str(folder)}},
                on_cell_start=start,
                kernel_name=kernel_name(),
                config=config,
            ).execute()
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
        raise ExecutionError(f"{name}, {cell_name(notebook, running[-1])}: {_why(error)}") from None
    except Exception as error:  # jupyter_client raises many kinds where a kernel cannot be started
        if running:
            raise
        raise ExecutionError(f"{name}: no kernel starts ({_why(error)}); run `moe-course doctor`") from None


def cell_name(notebook: NotebookNode, index: int) -> str:
    """What to call a cell in a message: its number and first line."""
    first = next((line for line in notebook.cells[index].source.splitlines() if line.strip()), "")
    return f"cell {index} (`{first[:60]}`)"


def _why(error: Exception) -> str:
    if isinstance(error, CellTimeoutError):
        return f"ran for more than {CELL_TIMEOUT} s"
    if isinstance(error, DeadKernelError):
        return "the kernel died; was it out of memory?"
    lines = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip().splitlines()
    return "\n".join(lines[-12:])
