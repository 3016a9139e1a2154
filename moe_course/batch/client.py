"""papermill's engine, with a watch over the kernel, and without papermill's way of calling some failures success.

papermill takes these for success: `sys.exit(0)`, a kernel that dies, a cell that never ran. Here each stops the run,
and each raises. A kernel's working folder is given to the kernel alone: papermill's own `cwd` changes that of the whole
process, threads included (papermill #473).
"""

import json
import logging
from typing import Any

from nbformat import NotebookNode
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import Engine, NotebookExecutionManager, papermill_engines
from papermill.utils import remove_args

from moe_course.batch.watch import Watch
from moe_course.notebooks.warm import is_warm

ENGINE = "moe-course-batch"
MOST_OUTPUT_MB = 20  # that a notebook may hold
OUTPUT_OVERHEAD = 500  # bytes that even an empty output takes

# What they log, a run's row tells; without handlers of their own, it would end up on the terminal.
logging.getLogger("papermill").addHandler(logging.NullHandler())
logging.getLogger("papermill").propagate = False


class CellNeverRan(Exception):
    """The kernel left a cell out, and said nothing."""


class Client(PapermillNotebookClient):
    """Runs the cells up to the first that fails in any way, and raises then.

    Args:
        nb_man: papermill's manager of the notebook.
        watch: over the kernel; kills it when it floods the notebook.
        seen: gets "notebook", then "cell", the index of the cell that runs, then "warm", whether the kernel is.
    """

    def __init__(self, nb_man: NotebookExecutionManager, watch: Watch, seen: dict[str, Any], **options: Any) -> None:
        super().__init__(nb_man, iopub_timeout=60, **options)
        self.watch = watch
        self.seen = seen
        self.output_bytes = 0  # of the cells that ran
        self.cell_bytes = 0  # of the one that runs
        seen["notebook"] = nb_man.nb

    def start_new_kernel(self, **options: Any) -> None:
        """Start it, and have it watched from then on."""
        super().start_new_kernel(**options)
        self.seen["warm"] = is_warm(self.km)
        pid = getattr(self.km.provisioner, "pid", None)  # type: ignore[union-attr]
        if pid:
            self.watch.follow(pid)

    def papermill_execute_cells(self) -> None:
        """Run the cells in order."""
        for index, cell in enumerate(self.nb.cells):
            self.seen["cell"] = index
            self.output_bytes += self.cell_bytes
            self.cell_bytes = 0
            self.nb_man.cell_start(cell, index)
            try:
                self.execute_cell(cell, index)
                if is_code(cell) and cell.execution_count is None:
                    raise CellNeverRan("the kernel did not run this cell")
            except BaseException:
                self.nb_man.cell_exception(cell, cell_index=index)
                raise
            finally:
                self.nb_man.cell_complete(cell, cell_index=index)
        self.watch.measure()

    def output(self, outs: list[NotebookNode], msg: Any, display_id: str | None, cell_index: int) -> Any:
        """Keep an output, unless there are too many already."""
        if self.watch.reason:
            return None
        kept = super().output(outs, msg, display_id, cell_index)
        if kept is not None:
            self.cell_bytes += OUTPUT_OVERHEAD + _size(kept)
            if self.output_bytes + self.cell_bytes > MOST_OUTPUT_MB * 1e6:
                self.watch.kill("output")
        return kept

    def clear_output(self, outs: list[NotebookNode], msg: Any, cell_index: int) -> None:
        """Forget a cell's outputs, and what they weighed."""
        super().clear_output(outs, msg, cell_index)
        self.cell_bytes = 0


class BatchEngine(Engine):
    """What papermill asks to run a notebook."""

    @classmethod
    def execute_managed_notebook(
        cls,
        nb_man: NotebookExecutionManager,
        kernel_name: str,
        *,
        folder: str,
        environment: dict[str, str],
        start_timeout: int = 120,
        **options: Any,
    ) -> None:
        """Run it in a kernel that starts in `folder` with `environment`."""
        kept = remove_args(["input_path", "log_output", "stdout_file", "stderr_file"], **options)
        client = Client(nb_man, kernel_name=kernel_name, startup_timeout=start_timeout, **kept)
        client.execute(cwd=folder, env=environment)


papermill_engines.register(ENGINE, BatchEngine)


def is_code(cell: NotebookNode) -> bool:
    """Whether a cell is there to be run."""
    return (
        cell.cell_type == "code" and bool(cell.source.strip()) and "skip-execution" not in cell.metadata.get("tags", ())
    )


def _size(output: NotebookNode) -> int:
    if "text" in output:
        return len(output["text"])
    return sum(
        len(value) if isinstance(value, str) else len(json.dumps(value)) for value in output.get("data", {}).values()
    )
