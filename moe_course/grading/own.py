"""One's own notebook, graded as a class's are, but on the inputs that the lesson's checks show: they may be told."""

from pathlib import Path

import torch

from moe_course.exercises import LESSONS
from moe_course.exercises.checking import SEED
from moe_course.exercises.observe import TIME_LIMIT

from .answers import Program
from .catalogue import catalogue
from .examine import Examiner
from .handouts import GradingError, find_handouts
from .notebook import read_notebook
from .outcomes import exercise_result
from .results import ExerciseResult
from .sandbox import Sandbox
from .submissions import lesson_of


def grade_own(path: Path) -> tuple[list[ExerciseResult], list[str]]:
    """The results of a notebook's exercises, and notes about the notebook; no exercises where it is no lesson.

    Raises:
        Unreadable: it is no notebook.
        SandboxError: no process for the answers starts.
    """
    notebook = read_notebook(path.read_bytes())
    number = lesson_of(notebook, catalogue()) or path.name[:2]
    exercises = LESSONS.get(number, ())
    if not exercises:
        return [], notebook.notes
    torch.set_num_threads(1)
    try:
        handout = Program(read_notebook(find_handouts((number,))[number].read_bytes()))
    except GradingError:  # a notebook on its own: it says itself what the lesson imports
        handout = Program(notebook)
    modules = {exercise.drive.__module__ for exercise in exercises}
    with Sandbox(modules=tuple(sorted(modules))) as sandbox:
        outcomes = Examiner(sandbox, SEED, TIME_LIMIT).examine(Program(notebook, handout), handout, exercises)
    return [exercise_result(key, outcome, hidden=False) for key, outcome in outcomes.items()], notebook.notes
