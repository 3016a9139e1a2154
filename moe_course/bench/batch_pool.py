"""papermill in a pool of processes, as its users write it: `python batch_pool.py NOTEBOOK OUT RUNS`."""

import os
import sys
from concurrent.futures import ProcessPoolExecutor

import papermill

NOTEBOOK, OUT = sys.argv[1:3]


def run(seed: int) -> None:
    """Run the notebook with one seed."""
    papermill.execute_notebook(NOTEBOOK, f"{OUT}/{seed}.ipynb", {"seed": seed}, progress_bar=False)


if __name__ == "__main__":
    with ProcessPoolExecutor(
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    ) as pool:
        list(pool.map(run, range(int(sys.argv[3]))))
