"""Puts one submission's answers to the test: one process for its code, one talk an exercise, and a verdict."""

import os
import signal
import socket
import time
from dataclasses import dataclass, field
from typing import Any

from moe_course.exercises.judge import Verdict, judge
from moe_course.exercises.observe import Failure, Record
from moe_course.exercises.spec import Exercise

from .answers import Answer, Program
from .bundle import NotBundled, pieces, reference_of
from .inside.channel import Closed, ProtocolError, send
from .inside.memory import shared
from .sandbox import Process, Sandbox
from .stage import is_staged
from .talk import Prepared, Talk

GRACE = 2.0  # seconds beyond the time limit, for an answer to be told that its time is over


@dataclass(frozen=True)
class Outcome:
    """What became of one exercise of one submission."""

    status: str  # graded, not attempted, timeout, out of memory, crashed, unreadable, missing
    answer: Answer
    verdict: Verdict | None = None
    message: str = ""
    frames: list[list[Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def points(self) -> float:
        return self.verdict.points if self.verdict else 0.0

    @property
    def passed(self) -> bool:
        return self.verdict is not None and self.verdict.passed


class Examiner:
    """Examines submissions on inputs drawn from one seed.

    Args:
        sandbox: where student code runs.
        seed: of all inputs.
        seconds: time limit of one exercise.
    """

    def __init__(self, sandbox: Sandbox, seed: int, seconds: float) -> None:
        self.sandbox = sandbox
        self.seed = seed
        self.seconds = seconds
        self._prepared: dict[str, Prepared] = {}

    def examine(self, submission: Program, handout: Program, exercises: tuple[Exercise, ...]) -> dict[str, Outcome]:
        """The outcome of each exercise, by its id, in the lesson's order."""
        order = handout.order()
        outcomes: dict[str, Outcome] = {}
        self._process: Process | None = None
        self._cpu_seconds = int(self.seconds + GRACE) * len(exercises) + 10
        try:
            for exercise in sorted(exercises, key=lambda e: order.index(e.id) if e.id in order else len(order)):
                done = {e.entry: e for e in exercises if e.id in outcomes and not outcomes[e.id].passed}
                outcomes[exercise.id] = self._examine_one(exercise, submission, handout, done)
        finally:
            self._drop(at_once=False)
        return outcomes

    def _examine_one(
        self, exercise: Exercise, submission: Program, handout: Program, unsolved: dict[str, Exercise]
    ) -> Outcome:
        answer = submission.answer(exercise)
        if answer.problem:
            return Outcome(answer.problem, answer, message=answer.message)
        # As in the notebook: where an earlier answer failed, `check` put the reference in its place.
        given = {}
        for name in sorted(answer.names & unsolved.keys() - {answer.entry}):
            module, original = reference_of(unsolved[name].reference)
            given[name] = {"module": module, "name": original, "pieces": pieces(((module, original),))}
        if given:
            answer = submission.answer(exercise, frozenset(given))
            answer.notes.append(f"it was given the course's {', '.join(given)}, since yours did not pass")
        if exercise.id not in self._prepared:
            self._prepared[exercise.id] = Prepared(exercise, self.seed)
        prepared = self._prepared[exercise.id]
        request = prepared.request | {
            "seconds": self.seconds,
            "entry": answer.entry,
            "cells": answer.cells,
            "given": given,
            "modules": _handed_out(handout, exercise, answer),
        }
        # Once more when it is the zygote that has died, which no answer can bring about, and when time ran out while
        # the machine was too busy to let the answer run.
        for again in (True, False):
            talk = Talk(prepared)
            process = self._process = self._process or self.sandbox.start(self._cpu_seconds)
            try:
                status, message = self._converse(talk, process, request)
            except Closed:
                self.sandbox.restart()
                self._process = None
                status, message = "crashed", "the process for student code ended twice"
                continue
            if not (again and talk.out_of_time and process.cpu < self.seconds / 2):
                break
        return _judged(exercise, talk, answer, status, message, self.seed)

    def _converse(self, talk: "Talk", process: Process, request: dict[str, Any]) -> tuple[str, str]:
        """Have the conversation; a status and a message where it ended before its time, else two empty texts."""
        memory = shared(*talk.prepared.memory)
        try:
            try:
                send(process.channel, request)
                socket.send_fds(process.channel, [b"."], [memory])
                talk.run(process.channel, memory, time.monotonic() + self.seconds + GRACE)
            except TimeoutError:
                self._drop(at_once=True)
                talk.stop(Failure("time limit", ""))
                return "timeout", ""
            except ProtocolError as error:
                self._drop(at_once=True)
                message = f"the process sent {error}, which no answer does"
                talk.stop(Failure("exception", message))
                return "crashed", message
            except (RuntimeError, ValueError, TypeError, ArithmeticError, LookupError, AttributeError) as error:
                # What a process can send is checked, so this is a gap in the checks; nobody else suffers.
                self._drop(at_once=True)
                message = f"its output cannot be taken in ({type(error).__name__})"
                talk.stop(Failure("exception", message))
                return "crashed", message
            except (Closed, OSError):
                status, message = _ending(process.end())
                self._process = None
                talk.stop(Failure("time limit" if status == "timeout" else "exception", message))
                return status, message
            if talk.out_of_time:
                self._drop(at_once=True)  # something of it may still be running
        finally:
            os.close(memory)
        return "", ""

    def _drop(self, at_once: bool) -> None:
        if self._process is not None:
            try:
                self._process.end(at_once)
            except Closed:
                self.sandbox.restart()
            self._process = None


def _handed_out(handout: Program, exercise: Exercise, answer: Answer) -> list[tuple[str, str]]:
    """The statements behind what the lesson imports from the course above an exercise, if the answer imports any."""
    if not any("moe_course" in cell["source"] for cell in answer.cells):
        return []
    found: list[tuple[str, str]] = []
    for module, name in sorted(handout.given_names(exercise.id)):
        if is_staged(module):
            continue
        try:
            found += [piece for piece in pieces(((module, name),)) if piece not in found]
        except NotBundled:
            continue  # a figure, say: no answer needs it
    return found


_TOO_MUCH = {"processes": "the answer started too many processes", "files": "the answer wrote too many files"}


def _ending(end: dict[str, Any]) -> tuple[str, str]:
    """Status and message for a process that ended without being asked."""
    if end.get("reason") in _TOO_MUCH:
        return "crashed", _TOO_MUCH[end["reason"]]
    if end.get("reason") == "memory" or end.get("signal") == signal.SIGKILL:
        return "out of memory", "the answer used more memory than there is for one"
    if end.get("signal") == signal.SIGXCPU:
        return "timeout", ""
    if end.get("signal"):
        try:
            name = signal.Signals(end["signal"]).name
        except ValueError:
            name = str(end["signal"])
        return "crashed", f"the answer crashed Python itself ({name})"
    return "crashed", f"the answer ended the process (exit status {end.get('code')})"


def _judged(exercise: Exercise, talk: Talk, answer: Answer, status: str, message: str, seed: int) -> Outcome:
    try:
        verdict = judge(exercise, Record(talk.observations), seed)
    except (
        Exception
    ) as error:  # what a process can send is checked, so this is a gap in the checks; nobody else suffers
        text = f"its output cannot be judged ({type(error).__name__})"
        return Outcome("crashed", answer, message=text, notes=[*answer.notes, text])
    if not status:
        failures = [f for one in talk.observations.values() for f in (one.failure, one.gradient_failure) if f]
        kinds = {failure.kind for failure in failures}
        memory = any(
            failure.message.startswith("MemoryError") or _ALLOCATION in failure.message for failure in failures
        )
        status = "timeout" if "time limit" in kinds else "out of memory" if memory else "graded"
    if verdict.status == "not attempted":
        status = "not attempted"
    return Outcome(status, answer, verdict, message, talk.frames, list(answer.notes))


_ALLOCATION = "can't allocate memory"
