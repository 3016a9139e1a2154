"""The lessons' notebooks as students got them, and what keeps a run from starting without them."""

from pathlib import Path

from .stage import PACKAGE


class GradingError(Exception):
    """What keeps a run from starting, or from going on; the message says what to do."""


def find_handouts(numbers: tuple[str, ...]) -> dict[str, Path]:
    """The notebook of each lesson, which says what an answer may build on.

    Raises:
        GradingError: one is not there.
    """
    found = {}
    for number in numbers:
        folders = [folder / "lessons" for folder in (PACKAGE.parent, Path.cwd())]
        places = [
            path for folder in folders for path in sorted(folder.glob("*.ipynb")) if path.name[:3] == f"{number}_"
        ]
        if not places:
            raise GradingError(
                f"there is no lesson {number} (no lessons/{number}_*.ipynb); choose a lesson of the course, and run "
                "this where the folder lessons is"
            )
        found[number] = places[0]
    return found
