"""One grading process: owns a sandbox, takes submissions from its standard input, answers with results.

    python -m moe_course.grading.worker SETTINGS

A line in is JSON, {"lesson", "handout", "notebook"}, two paths; a line out is JSON, see `results.result_of`. A worker
that dies takes one submission's grading with it and nothing else: `workers` starts another.
"""

import contextlib
import gc
import json
import os
import resource
import select
import shutil
import sys
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

from .inside.confine import MEMORY

JUDGE_MEMORY = 2 * MEMORY  # what judging may take: outputs can be made to be expensive
IDLE = 60.0  # seconds without work after which it ends: on a cluster, nobody tells it that a run is over


def main() -> None:
    """Serve until the input ends, or nothing comes for a while."""
    settings = json.loads(sys.argv[1])
    run = os.getppid()
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever prints must not mix with the results
    import torch

    from moe_course.exercises import LESSONS

    from .answers import Program
    from .examine import Examiner
    from .notebook import Unreadable, read_notebook
    from .results import result_of
    from .sandbox import Sandbox, SandboxError

    torch.set_num_threads(1)
    lessons = {number: tuple(LESSONS[number]) for number in settings["lessons"]}

    @lru_cache(maxsize=len(lessons))
    def lesson_as_handed_out(raw: bytes) -> Program:
        return Program(read_notebook(raw))

    try:
        drives = {exercise.drive.__module__ for exercises in lessons.values() for exercise in exercises}
        with Sandbox(tuple(settings["levels"]), tuple(sorted(drives))) as sandbox:
            _limit_memory()
            gc.collect()
            gc.freeze()  # collections need not walk through all of torch again and again
            examiner = Examiner(sandbox, settings["seed"], settings["seconds"])
            ready = {"level": sandbox.level, "cpu": time.process_time() + sandbox.cpu}
            print(json.dumps(ready), file=out, flush=True)
            while select.select([sys.stdin], [], [], IDLE)[0] and (line := sys.stdin.readline()):
                job = json.loads(line)
                began, cpu = time.monotonic(), time.process_time() + sandbox.cpu
                handout = lesson_as_handed_out(Path(job["handout"]).read_bytes())
                try:
                    notebook = read_notebook(Path(job["notebook"]).read_bytes())
                except Unreadable as error:
                    result: dict[str, Any] = {"problem": "unreadable", "notes": [str(error)]}
                else:
                    program = Program(notebook, handout)
                    outcomes = examiner.examine(program, handout, lessons[job["lesson"]])
                    result = result_of(outcomes, notebook.notes)
                result["seconds"] = round(time.monotonic() - began, 3)
                result["cpu"] = round(time.process_time() + sandbox.cpu - cpu, 3)
                print(json.dumps(result), file=out, flush=True)
    except SandboxError as error:
        print(json.dumps({"error": str(error)}), file=out, flush=True)
    except BrokenPipeError:
        pass  # nobody is there to hear it
    finally:
        if os.getppid() != run:  # the run was killed, and cannot clean up after itself
            shutil.rmtree(settings["scratch"], ignore_errors=True)


def _limit_memory() -> None:
    """So that an output which is expensive to judge is an error here, rather than the machine's end."""
    with contextlib.suppress(OSError, ValueError):
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + JUDGE_MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (most, resource.getrlimit(resource.RLIMIT_AS)[1]))


if __name__ == "__main__":
    main()
