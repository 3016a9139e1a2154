"""One grading process: owns a sandbox, takes requests from its standard input, answers with data.

    python -m moe_course.grading.worker LEVELS SCRATCH

A line in is JSON: {"ask": "catalogue"}, {"ask": "seed", …}, {"ask": "grade", …} or {"ask": "end"}; so is a line out. A
worker that dies takes one submission's grading with it and nothing else: `workers` starts another.
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
from typing import TYPE_CHECKING, Any

from .inside.confine import MEMORY

if TYPE_CHECKING:
    from .answers import Program
    from .examine import Examiner
    from .sandbox import Sandbox

JUDGE_MEMORY = 2 * MEMORY  # what judging may take: outputs can be made to be expensive
IDLE = 60.0  # seconds without work after which it ends: on a cluster, nobody tells it that a run is over


def main() -> None:
    """Serve until the input ends, or nothing comes for a while."""
    levels, scratch, run = json.loads(sys.argv[1]), sys.argv[2], os.getppid()
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever prints must not mix with the results
    import torch

    from .sandbox import Sandbox, SandboxError

    torch.set_num_threads(1)
    sandbox = Sandbox(tuple(levels))
    try:
        grader = Grader(sandbox)
        spent = 0.0
        while select.select([sys.stdin], [], [], IDLE)[0]:
            line = sys.stdin.readline()
            if not line:
                _wait_until_orphaned(run)
                break
            request = json.loads(line)
            if request["ask"] == "end":
                break
            try:
                answer = getattr(grader, request.pop("ask"))(**request)
            except SandboxError as error:
                answer = {"error": str(error)}
            before, spent = spent, time.process_time() + sandbox.cpu
            print(json.dumps(answer | {"cpu": round(spent - before, 3)}), file=out, flush=True)
    except BrokenPipeError:
        pass  # nobody is there to hear it
    finally:
        sandbox.__exit__(None, None, None)
        if os.getppid() != run:  # the run was killed, and cannot clean up after itself
            shutil.rmtree(scratch, ignore_errors=True)


class Grader:
    """What can be asked of a worker.

    Args:
        sandbox: opened when the first answer is to be graded.
    """

    def __init__(self, sandbox: "Sandbox") -> None:
        self._sandbox = sandbox
        self._examiner: Examiner | None = None

    def catalogue(self) -> dict[str, Any]:
        """The exercises of all lessons."""
        from .catalogue import catalogue

        return {"lessons": {number: [vars(each) for each in found] for number, found in catalogue().items()}}

    def seed(self, lessons: list[str], seed: int | None) -> dict[str, Any]:
        """A seed that is fair to the right answers of some lessons; of a given one, to which exercises it is not."""
        from moe_course.exercises import LESSONS

        from .seeds import fair_seed, unfair_to

        exercises = [exercise for number in lessons for exercise in LESSONS[number]]
        if seed is None:
            return {"seed": fair_seed(exercises), "unfair": []}
        return {"seed": seed, "unfair": unfair_to(exercises, seed)}

    def grade(
        self, seed: int, seconds: float, lessons: list[str], lesson: str, handout: str, notebook: str
    ) -> dict[str, Any]:
        """The results of a notebook, in a file as the handout is; a lesson's time limit is for one exercise."""
        from moe_course.exercises import LESSONS

        from .answers import Program
        from .notebook import Unreadable, read_notebook
        from .outcomes import result_of

        began = time.monotonic()
        examiner = self._examiner_for(seed, seconds, lessons)
        lesson_handed_out = _handout(Path(handout).read_bytes())
        try:
            read = read_notebook(Path(notebook).read_bytes())
        except Unreadable as error:
            return {"problem": "unreadable", "notes": [str(error)]}
        outcomes = examiner.examine(Program(read, lesson_handed_out), lesson_handed_out, LESSONS[lesson])
        answer = {"level": self._sandbox.level, "seconds": round(time.monotonic() - began, 3)}
        return result_of(outcomes, read.notes) | answer

    def _examiner_for(self, seed: int, seconds: float, lessons: list[str]) -> "Examiner":
        from moe_course.exercises import LESSONS

        from .examine import Examiner

        if not self._sandbox.level:
            drives = {exercise.drive.__module__ for number in lessons for exercise in LESSONS[number]}
            self._sandbox.open(tuple(sorted(drives)))
            _limit_memory()
            gc.collect()
            gc.freeze()  # collections need not walk through all of torch again and again
        if self._examiner is None or (self._examiner.seed, self._examiner.seconds) != (seed, seconds):
            self._examiner = Examiner(self._sandbox, seed, seconds)
        return self._examiner


@lru_cache(maxsize=20)
def _handout(raw: bytes) -> "Program":
    from .answers import Program
    from .notebook import read_notebook

    return Program(read_notebook(raw))


def _wait_until_orphaned(run: int) -> None:
    """The input ended without a word, so the run has died, or is just dying."""
    deadline = time.monotonic() + 2
    while os.getppid() == run and time.monotonic() < deadline:
        time.sleep(0.02)


def _limit_memory() -> None:
    """So that an output which is expensive to judge is an error here, rather than the machine's end."""
    with contextlib.suppress(OSError, ValueError):
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + JUDGE_MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (most, resource.getrlimit(resource.RLIMIT_AS)[1]))


if __name__ == "__main__":
    main()
