"""`moe-course gradescope`: the autograder zip that Gradescope takes."""

from pathlib import Path
from typing import Annotated

import typer

from moe_course.commands import CommandError


def gradescope(
    lesson: Annotated[str, typer.Argument(metavar="NN", help="The lesson to grade, such as 02.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="The zip to write.")] = Path("autograder.zip"),
) -> None:
    """Build the autograder zip that Gradescope takes.

    In Gradescope, choose Configure Autograder and upload it. Students then hand in their notebook.
    """
    from moe_course.grading.autograder import build_zip
    from moe_course.grading.handouts import GradingError, find_handouts
    from moe_course.grading.stage import PACKAGE

    number = f"{int(lesson):02}" if lesson.isdigit() else lesson
    if not (PACKAGE.parent / "constraints.txt").is_file():
        raise CommandError("the course's own files are not here; run this from a clone, with `.venv/bin/moe-course`")
    if not out.absolute().parent.is_dir():
        raise CommandError(f"{out} cannot be written: its folder does not exist; create it first")
    try:
        handout = find_handouts((number,))[number]
    except GradingError as error:
        raise CommandError(str(error)) from None
    build_zip(number, handout, out)
    print(f"{out} grades lesson {number}. Upload it in Gradescope under Configure Autograder.")
