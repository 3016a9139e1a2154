"""A student's process: defines the answers of one submission, calls them, sends back what they returned.

It knows how to call an answer and nothing of what is right. Whatever student code does to this process, it can only
make it say other numbers, and it does not know the right ones.
"""

import ast
import dataclasses
import importlib
import linecache
import os
import socket
import sys
import time
import traceback
import types
from collections.abc import Callable
from typing import Any

import torch

from moe_course.exercises.limits import call_within
from moe_course.exercises.observe import Failure, failure_of, pull_back
from moe_course.exercises.outputs import at, frozen, leaves, map_tensors

from .channel import Closed, receive, send
from .memory import mapped, take_up
from .wire import Packer, Unpacker

FRAMES = 5  # lines of the student's own that a traceback shows


def serve(channel: socket.socket) -> None:
    """Answer requests, one an exercise, until the grader hangs up."""
    while True:
        try:
            request, _ = receive(channel)
        except Closed:
            return
        _, descriptors, _, _ = socket.recv_fds(channel, 1, 1)
        memory = mapped(descriptors[0], request["size"])
        os.close(descriptors[0])
        torch.manual_seed(0)
        _answer(channel, request, memory)


def _answer(channel: socket.socket, request: dict[str, Any], memory: Any) -> None:
    deadline = time.monotonic() + request["seconds"]

    def limited(function: Callable[[], Any]) -> Any:
        return call_within(max(deadline - time.monotonic(), 0.05), function)

    try:
        _clear()
        drive = _drive(request["drive"])
        entry = limited(lambda: _define(request))
    except BaseException as error:
        send(channel, {"failure": _told(error)})
        return
    send(channel, {"defined": True})
    for number, case in enumerate(request["cases"]):
        if not _observe(channel, number, case, drive, entry, request["returns"], memory, limited):
            return


def _observe(
    channel: socket.socket,
    number: int,
    case: dict[str, Any],
    drive: Callable[..., Any],
    entry: Any,
    returns: list[str],
    memory: Any,
    limited: Callable[[Callable[[], Any]], Any],
) -> bool:
    """Call the answer twice, as `observe` does; whether to go on with the next case."""
    given = take_up(case["calls"][0], memory)
    try:
        output = limited(lambda: drive(entry, given))
        packer = Packer()
        tree = packer.pack(map_tensors(frozen, output))
    except BaseException as error:
        failure = _told(error)
        send(channel, {"case": number, "failure": failure})
        return bool(failure["kind"] == "exception")
    send(channel, {"case": number, "output": tree}, packer.blob)
    weights = {}
    if case["grad"]:
        # The weights come only now, when the output can no longer be changed.
        reply, blob = receive(channel)
        weights = {name: Unpacker(blob).tensor(head) for name, head in reply["weights"].items()}

    given = take_up(case["calls"][1], memory)
    differentiable = {path: at(given, path).requires_grad_() for path in case["grad"]}
    gradients: dict[str, Any] = {}
    packer = Packer()
    try:
        again = limited(lambda: drive(entry, given))
        if case["grad"]:
            gradients = limited(lambda: pull_back(leaves(again, tuple(returns)), weights, differentiable))
        tree = packer.pack(map_tensors(frozen, again))
        heads = {path: None if value is None else packer.tensor(value) for path, value in gradients.items()}
    except BaseException as error:
        failure = _told(error)
        send(channel, {"case": number, "failure": failure})
        return bool(failure["kind"] != "time limit")
    send(channel, {"case": number, "output": tree, "gradients": heads}, packer.blob)
    return True


def _define(request: dict[str, Any]) -> Any:
    """Run the chosen statements of the student's cells; the answer that they define."""
    _take_in(request["modules"])
    main = types.ModuleType("__main__")
    sys.modules["__main__"] = main
    main.__dict__.update(display=_nothing, get_ipython=_nothing)
    for name, part in request["given"].items():
        main.__dict__[name] = _given(part)
    for cell in request["cells"]:
        lines = cell["source"].splitlines(keepends=True)
        linecache.cache[cell["name"]] = (len(cell["source"]), None, lines, cell["name"])
        tree = ast.parse(cell["source"], cell["name"])
        tree.body = [tree.body[index] for index in cell["statements"]]
        for statement in tree.body:
            _only(statement, cell["names"])
        exec(compile(tree, cell["name"], "exec"), main.__dict__)
    return main.__dict__[request["entry"]]


def _only(statement: ast.stmt, names: list[str]) -> None:
    """Of an import, leave only the names that the answer needs: another one may fail here."""
    if isinstance(statement, ast.ImportFrom | ast.Import):
        kept = [a for a in statement.names if (a.asname or a.name).split(".")[0] in names or a.name == "*"]
        statement.names = kept or statement.names


_added: list[str] = []  # modules of the course that exist here only for the answer at hand


def _clear() -> None:
    for name in _added:
        sys.modules.pop(name, None)
    _added.clear()


def _take_in(pieces: list[list[str]]) -> None:
    """Run statements of the course, each in the module it comes from."""
    for number, (module, source) in enumerate(pieces):
        filename = f"<{module}, {number}>"
        linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
        exec(compile(source, filename, "exec"), _module(module).__dict__)


def _module(name: str) -> types.ModuleType:
    if name not in sys.modules:
        made = types.ModuleType(name)
        made.__path__ = []
        sys.modules[name] = made
        _added.append(name)
        parent, _, last = name.rpartition(".")
        setattr(_module(parent), last, made)
    return sys.modules[name]


def _given(part: dict[str, Any]) -> Any:
    """A function or class of the course, from `bundle.pieces`."""
    _take_in(part["pieces"])
    return getattr(_module(part["module"]), part["name"])


def _drive(spec: dict[str, Any]) -> Callable[..., Any]:
    found = getattr(importlib.import_module(spec["module"]), spec["name"])
    if "arguments" in spec:
        return found(**{name: _given(part) for name, part in spec["arguments"].items()})
    return found


def _told(error: BaseException) -> dict[str, Any]:
    """A failure as JSON, with the lines of the student's own that led to it."""
    failure: Failure = failure_of(error)
    trace = traceback.extract_tb(error.__traceback__)
    if isinstance(error, SyntaxError) and error.filename and error.filename.startswith("cell "):
        failure = dataclasses.replace(failure, line=error.lineno, text=(error.text or "").strip())
    own = [frame for frame in trace if frame.filename.startswith("cell ")][-FRAMES:]
    frames = [[frame.filename, frame.lineno or 0, (frame.line or "")[:200]] for frame in own]
    return {
        "kind": failure.kind,
        "message": failure.message[:400],
        "line": failure.line,
        "text": failure.text[:200],
        "frames": frames,
    }


def _nothing(*args: Any, **kwargs: Any) -> None:
    """Stands for what only a notebook's kernel has."""
