"""What an exercise is: data, from which the learner's check, the grader and the tests are all derived."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from .drive import call_function


@dataclass(frozen=True, eq=False)
class Case:
    """One set of inputs on which an answer is compared with the reference.

    Args:
        name: what is special about it, as the learner reads it ("an expert without tokens").
        make: draws the keyword inputs from the generator, and from nothing else.
        grad: inputs to differentiate, dotted for nested ones ("state.w_in"). The gradient compared is that of
            Σ outputs · cotangents, with random cotangents fixed by the case.
    """

    name: str
    make: Callable[[torch.Generator], dict[str, Any]]
    grad: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Property:
    """A law that every right output obeys; says what is wrong better than a table of numbers can.

    Args:
        name: the law, as the learner reads it ("each row of weights sums to 1").
        broken: maps (inputs, output) to None where the law holds, else to one sentence about how it does not.
    """

    name: str
    broken: Callable[[dict[str, Any], Any], str | None]


@dataclass(frozen=True, eq=False)
class Misconception:
    """A named way to get the exercise wrong.

    Args:
        id: kebab-case, unique in the exercise.
        says: the diagnosis, one to three sentences: what was done, and why it is wrong.
        wrong: an implementation that has the misconception, with the signature of the exercise's entry.
    """

    id: str
    says: str
    wrong: Callable[..., Any]


@dataclass(frozen=True, eq=False)
class Exercise:
    """One graded function or class.

    Args:
        id: lesson and entry, "02.top_k_routing".
        entry: the name the learner defines; unique in the course.
        title: what it is, in a few words.
        points, difficulty (1 to 3), minutes: for the learner's planning and the grader's sums.
        hints: three, each telling more than the one before.
        reference: a right answer with the entry's signature, usually from `moe_course.layers`.
        cases: inputs, from tiny and readable to adversarial; they must tell every misconception apart.
        misconceptions: wrong answers to recognise.
        alternatives: other right answers, which must get full marks.
        properties: laws of a right output.
        returns: names of the parts of a tuple output, for messages.
        drive: how an entry is called: `call_function`, or `call_module` where the entry is an nn.Module class.
        normalise: maps an output to a canonical form where the exercise leaves something free (the order of the
            chosen experts, say). Must be differentiable if any case has `grad`.
    """

    id: str
    entry: str
    title: str
    points: int
    difficulty: int
    minutes: int
    hints: tuple[str, str, str]
    reference: Callable[..., Any]
    cases: tuple[Case, ...]
    misconceptions: tuple[Misconception, ...]
    alternatives: tuple[Callable[..., Any], ...]
    properties: tuple[Property, ...] = ()
    returns: tuple[str, ...] = ()
    drive: Callable[[Callable[..., Any], dict[str, Any]], Any] = call_function
    normalise: Callable[[Any], Any] | None = None

    def inputs(self, seed: int) -> dict[str, dict[str, Any]]:
        """The inputs of every case, by the case's name, drawn from `seed`."""
        return {
            case.name: case.make(torch.Generator().manual_seed(seed * 1000 + index))
            for index, case in enumerate(self.cases)
        }
