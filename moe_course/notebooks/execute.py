"""Runs a notebook in a kernel of its own, and removes from its outputs what differs from run to run."""

import asyncio
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbclient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode
from traitlets.config import Config

CELL_TIMEOUT = 180  # seconds
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
PLOTLY = "application/vnd.plotly.v1+json"


class ExecutionError(Exception):
    """A cell that failed, with its number, its first line and the end of the traceback."""


def execute(
    notebook: NotebookNode, folder: Path, name: str, on_cell: Callable[[int], None] = lambda index: None
) -> None:
    """Run every cell in place.

    Args:
        notebook: the notebook; gets outputs.
        folder: the kernel's working directory.
        name: what to call it in messages.
        on_cell: called with the index of each cell before it runs.

    Raises:
        ExecutionError: a cell raised, ran too long, or the kernel died.
    """
    if sys.platform == "win32":
        asyncio.set_event_loop_policy(asyncio.WindowsSelectorEventLoopPolicy())
    running = [0]

    def start(cell: NotebookNode, cell_index: int) -> None:
        running[0] = cell_index
        on_cell(cell_index)

    try:
        with tempfile.TemporaryDirectory(prefix="moe-") as sockets:
            nbclient.NotebookClient(
                notebook,
                timeout=CELL_TIMEOUT,
                record_timing=False,
                resources={"metadata": {"path": str(folder)}},
                on_cell_start=start,
                kernel_name="python3",
                config=_transport(sockets),
            ).execute()
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
        cell = notebook.cells[running[0]]
        first = next((line for line in cell.source.splitlines() if line.strip()), "")
        raise ExecutionError(f"{name}, cell {running[0]} (`{first[:60]}`): {_why(error)}") from None


def _transport(sockets: str) -> Config:
    """Talk to the kernel through socket files: TCP ports are picked, then bound, and kernels can race for one."""
    if sys.platform == "win32":  # has no socket files
        return Config()
    return Config(KernelManager={"transport": "ipc", "ip": f"{sockets}/kernel"})


def tidy(notebook: NotebookNode) -> None:
    """Remove what makes outputs large or different from run to run, in place.

    Live widgets need a kernel, and their saved state would embed plotly.js (5 MB): their static figure stays.
    """
    notebook.metadata.pop("widgets", None)
    notebook.metadata["language_info"] = {"name": "python"}
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        cell.metadata.pop("execution", None)
        for output in cell.outputs:
            data = output.get("data", {})
            if len(data) > 1:
                data.pop(WIDGET_VIEW, None)
            for trace in data.get(PLOTLY, {}).get("data", []):
                trace.pop("uid", None)
            for key in ("text", "evalue"):
                if isinstance(output.get(key), str):
                    output[key] = _without_addresses(output[key])
            if isinstance(data.get("text/plain"), str):
                data["text/plain"] = _without_addresses(data["text/plain"])
        cell.outputs = _joined(cell.outputs)


def _joined(outputs: list[Any]) -> list[Any]:
    """Streams that arrived in pieces, as one; how they were cut is chance."""
    joined: list[Any] = []
    for output in outputs:
        if joined and output.output_type == "stream" == joined[-1].output_type and output.name == joined[-1].name:
            joined[-1].text += output.text
        else:
            joined.append(output)
    return joined


def _without_addresses(text: str) -> str:
    return re.sub(r"\b0x[0-9a-f]{6,}\b", "0x…", text)


def _why(error: Exception) -> str:
    if isinstance(error, CellTimeoutError):
        return f"ran for more than {CELL_TIMEOUT} s"
    if isinstance(error, DeadKernelError):
        return "the kernel died; was it out of memory?"
    lines = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip().splitlines()
    return "\n".join(lines[-12:])
