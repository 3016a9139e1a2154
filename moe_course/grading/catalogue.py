"""What may be asked for, lesson by lesson. A run gets it from a worker, so that it need not load torch itself."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Question:
    """An exercise, as far as a report is concerned."""

    id: str
    entry: str
    title: str
    points: int


Catalogue = dict[str, tuple[Question, ...]]


def catalogue() -> Catalogue:
    """The exercises of every lesson, by its number."""
    from moe_course.exercises import LESSONS

    return {number: tuple(Question(e.id, e.entry, e.title, e.points) for e in all_) for number, all_ in LESSONS.items()}
