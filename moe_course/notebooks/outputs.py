"""The outputs that a solved notebook keeps: small, the same from run to run, and fit to be published."""

import json
import re
import sys
from pathlib import Path
from typing import Any

from nbformat import NotebookNode

WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
PLOTLY = "application/vnd.plotly.v1+json"
MAX_FIGURE_BYTES = 300_000


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
            if isinstance(output.get("text"), str):
                output["text"] = _without_addresses(output["text"])
            if isinstance(data.get("text/plain"), str):
                data["text/plain"] = _without_addresses(data["text/plain"])
        cell.outputs = _joined(cell.outputs)


def output_faults(notebook: NotebookNode) -> list[str]:
    """What is wrong with the outputs of a notebook that ran, and what to do about it."""
    faults = []
    for number, cell in enumerate(notebook.cells):
        if cell.cell_type != "code":
            continue
        faults += [f"cell {number} {fault}" for output in cell.outputs for fault in _faults_of(output)]
        if "nbval-check-output" in cell.metadata.get("tags", []):
            if not cell.outputs:
                faults.append(f"cell {number} is tagged nbval-check-output but shows nothing; print, or drop the tag")
            if any(PLOTLY in output.get("data", {}) for output in cell.outputs):
                faults.append(f"cell {number} is tagged nbval-check-output, but figures cannot be compared; split it")
    return faults


def figures(notebook: NotebookNode) -> list[dict[str, Any]]:
    """The data bundles of the notebook's outputs that hold a figure."""
    return [
        output.data
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if PLOTLY in output.get("data", {})
    ]


def _faults_of(output: NotebookNode) -> list[str]:
    faults = []
    if output.output_type == "stream" and output.name == "stderr":
        first = (output.text.strip().splitlines() or [""])[0]
        faults.append(f"writes to stderr ({first[:80]}); mend what it warns of: nbgrader gives such cells no points")
    data = output.get("data", {})
    if PLOTLY in data:
        size = len(json.dumps(data[PLOTLY]))
        if size > MAX_FIGURE_BYTES:
            title = data.get("text/plain", "a figure")
            limit = MAX_FIGURE_BYTES // 1000
            faults.append(f"draws a figure of {size // 1000} kB ({title}), over {limit}; draw fewer points or frames")
    text = json.dumps(output, ensure_ascii=False)
    for place in {sys.prefix, str(Path(__file__).parents[2]), str(Path.home())} - {"/"}:
        if f"{place}/" in text:
            faults.append(f"shows a path of this machine ({place}); print something shorter")
    return faults


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
