"""One grading process: owns a sandbox, takes submissions from its standard input, answers with results.

    python -m moe_course.grading.worker SETTINGS

A line in is JSON, {"path", "lesson"}; a line out is JSON, a `Result`. A worker that dies takes one submission's grading
with it and nothing else: `run` starts another.
"""

import contextlib
import json
import os
import resource
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from .inside.confine import MEMORY

JUDGE_MEMORY = 2 * MEMORY  # what judging may take: outputs can be made to be expensive


def main() -> None:
    """Serve until the input ends."""
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
    handouts = {number: Program(read_notebook(Path(path).read_bytes())) for number, path in settings["lessons"].items()}
    try:
        drives = {exercise.drive.__module__ for exercises in lessons.values() for exercise in exercises}
        with Sandbox(tuple(settings["levels"]), tuple(sorted(drives))) as sandbox:
            _limit_memory()
            examiner = Examiner(sandbox, settings["seed"], settings["seconds"])
            ready = {"level": sandbox.level, "cpu": time.process_time() + sandbox.cpu}
            print(json.dumps(ready), file=out, flush=True)
            for line in sys.stdin:
                job = json.loads(line)
                began, cpu = time.monotonic(), time.process_time() + sandbox.cpu
                handout = handouts[job["lesson"]]
                try:
                    notebook = read_notebook(Path(job["path"]).read_bytes())
                except (Unreadable, OSError) as error:
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
