"""One conversation with a student's process: what is sent for one exercise, and what comes back, case by case.

It follows the order of `observe`, call by call, so that an answer is judged on the same evidence as by the learner's
`check`. What the process says is checked; what it says about itself counts nothing.
"""

import os
import socket
from collections.abc import Callable
from functools import cached_property
from typing import Any

from torch import Tensor

from moe_course.exercises.observe import (
    Failure,
    Observation,
    changes,
    cotangents,
    failure_of,
    observation,
    observe,
)
from moe_course.exercises.outputs import at, leaves
from moe_course.exercises.spec import Case, Exercise

from .bundle import drive_spec
from .inside.channel import ProtocolError, receive, send
from .inside.memory import lay_out, take_up
from .inside.wire import Packer, Unpacker
from .pages import printable

SPARE, TIMES = 1 << 20, 16  # bytes that any output may have, and how many times a right one's
KINDS = ("exception", "time limit", "not attempted")


class _FarTooLarge:
    """Stands for an output; its name is what a message says of it."""


class Prepared:
    """What does not change from one submission to the next."""

    def __init__(self, exercise: Exercise, seed: int) -> None:
        self.exercise = exercise
        self.inputs = exercise.inputs(seed)
        self.trees: list[tuple[Any, Any]] = []
        self.extents: list[tuple[int, int]] = []  # of each case's first copy
        parts: list[tuple[int, bytes]] = []
        size = 0
        for case in exercise.cases:
            trees = []
            for _ in range(2):
                start = size
                tree, found, size = lay_out(self.inputs[case.name], size)
                parts += found
                trees.append(tree)
                if len(trees) == 1:
                    self.extents.append((start, size))
            self.trees.append((trees[0], trees[1]))
        self.memory = (parts, size)
        self.bytes = bytearray(size)
        for offset, raw in parts:
            self.bytes[offset : offset + len(raw)] = raw
        self.request = {
            "returns": exercise.returns,
            "drive": drive_spec(exercise.drive),
            "size": size,
            "cases": [
                {"grad": case.grad, "calls": trees} for case, trees in zip(exercise.cases, self.trees, strict=True)
            ],
        }

    @cached_property
    def likes(self) -> dict[str, Any]:
        """What the reference returns in each case: its dataclasses are the course's own."""
        record = observe(self.exercise, self.exercise.reference, self.inputs, time_limit=60)
        return {name: one.structure for name, one in record.observations.items()}

    @cached_property
    def limits(self) -> dict[str, int]:
        """How many bytes of tensors an output of each case may have and still be looked at."""
        return {
            name: SPARE + TIMES * sum(leaf.nbytes for leaf in leaves(like).values() if isinstance(leaf, Tensor))
            for name, like in self.likes.items()
        }

    def changed(self, number: int, memory: int) -> tuple[str, ...]:
        """Which inputs of a case's first call are no longer what they were."""
        start, end = self.extents[number]
        now = os.pread(memory, end - start, start)
        if now == self.bytes[start:end]:
            return ()
        whole = bytearray(self.bytes)
        whole[start : start + len(now)] = now
        return changes(self.inputs[self.exercise.cases[number].name], take_up(self.trees[number][0], whole))


class Talk:
    """The conversation about one exercise, and what came of it."""

    def __init__(self, prepared: Prepared) -> None:
        self.prepared = prepared
        self.observations: dict[str, Observation] = {}
        self.frames: list[list[Any]] = []
        self.out_of_time = False
        self._case: Case = prepared.exercise.cases[0]

    def run(self, channel: socket.socket, memory: int, deadline: float) -> None:
        """Take in the answer's part, case by case.

        Raises:
            Closed, TimeoutError, ProtocolError: it ended before its time.
        """

        def listen() -> tuple[dict[str, Any], bytearray]:
            return receive(channel, deadline)

        defined, _ = listen()
        if "failure" in defined:
            self.stop(self._failure(defined))
            return
        for number, case in enumerate(self.prepared.exercise.cases):
            self._case = case
            if not self._observe(number, case, channel, memory, listen):
                return

    def stop(self, failure: Failure) -> None:
        """Note that the case at hand, and with it the conversation, ended by a failure."""
        self.observations[self._case.name] = Observation(failure=failure)
        self.out_of_time = failure.kind == "time limit"

    def _observe(
        self,
        number: int,
        case: Case,
        channel: socket.socket,
        memory: int,
        listen: Callable[[], tuple[dict[str, Any], bytearray]],
    ) -> bool:
        exercise = self.prepared.exercise
        message, blob = self._of(number, listen)
        if "failure" in message:
            failure = self._failure(message)
            self.stop(failure)
            return failure.kind == "exception"
        first = self._output(message, blob)
        changed = self.prepared.changed(number, memory)
        own = None  # a failure on this side
        if case.grad:
            packer, heads = Packer(), {}
            try:
                weights = cotangents(exercise, first)
                heads = {name: packer.tensor(weight) for name, weight in weights.items()}
            except Exception as error:  # an output that `normalise` can make nothing of
                own = failure_of(error)
            channel.settimeout(5)
            send(channel, {"weights": heads}, packer.blob)
        message, blob = self._of(number, listen)
        again: Any = None
        gradients: dict[str, Any] = {}
        second = own
        if "failure" in message:
            second = self._failure(message)
            self.out_of_time = second.kind == "time limit"
        else:
            again = self._output(message, blob)
            gradients = self._gradients(case, message.get("gradients"), blob)
        try:
            self.observations[case.name] = observation(exercise, first, changed, again, gradients, second)
        except Exception as error:  # values that torch cannot compare, such as those of exotic dtypes
            self.observations[case.name] = Observation(failure=failure_of(error))
        return not self.out_of_time

    def _output(self, message: dict[str, Any], blob: bytearray) -> Any:
        """What the answer returned; one that is larger than any right one is not looked at, which could take long."""
        name = self._case.name
        output = Unpacker(blob).unpack(message.get("output"), self.prepared.likes[name])
        return _FarTooLarge() if len(blob) > self.prepared.limits[name] else output

    @staticmethod
    def _of(number: int, listen: Callable[[], tuple[dict[str, Any], bytearray]]) -> tuple[dict[str, Any], bytearray]:
        message, blob = listen()
        if message.get("case") != number or type(message.get("case")) is not int:
            raise ProtocolError("a message out of turn")
        return message, blob

    def _gradients(self, case: Case, heads: Any, blob: bytearray) -> dict[str, Any]:
        if not isinstance(heads, dict) or not heads.keys() <= set(case.grad):
            raise ProtocolError("gradients that nobody asked for")
        found = {path: None if head is None else Unpacker(blob).tensor(head) for path, head in heads.items()}
        for path, gradient in found.items():
            like = at(self.prepared.inputs[case.name], path)
            if gradient is not None and (gradient.shape, gradient.dtype) != (like.shape, like.dtype):
                raise ProtocolError("a gradient of another shape than its input")
        return found

    def _failure(self, message: dict[str, Any]) -> Failure:
        told = message["failure"]
        if not isinstance(told, dict) or told.get("kind") not in KINDS or not isinstance(told.get("message"), str):
            raise ProtocolError("a failure of no known kind")
        line, text, frames = told.get("line"), told.get("text"), told.get("frames")
        if isinstance(frames, list) and not self.frames:
            self.frames = [
                [str(frame[0])[:40], frame[1], printable(str(frame[2]))[:200]]
                for frame in frames[:5]
                if isinstance(frame, list) and len(frame) == 3 and type(frame[1]) is int
            ]
        return Failure(
            told["kind"],
            printable(told["message"])[:400],
            line if type(line) is int else None,
            printable(text)[:200] if isinstance(text, str) else "",
        )
