"""The commands behind `moe-course NAME`: one file a command, each with one public function of that name.

A command's file is imported for `moe-course --help`, so heavy imports (torch, plotly, nbformat) stand inside
the functions. What the user got wrong is raised as `CommandError`: one sentence, no traceback.
"""

import difflib
from collections.abc import Iterable

# The exit codes of every command.
OK = 0
FAILED = 1  # the command ran, and what it examined is not in order: a stale notebook, a bar that does not hold
USAGE = 2  # the command could not run: a path that is not there, a name it does not know


class CommandError(Exception):
    """What the user can put right, in one sentence; `moe-course` prints it and exits with `USAGE`."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> CommandError:
    """The error for a name that does not exist, with the nearest name that does.

    Args:
        kind: what was named, in the singular ("lesson").
        name: what the user wrote.
        known: the names that exist.

    Returns:
        An error to raise: `no lesson is called 'ruoter'; did you mean 'router'?`
    """
    known = list(known)
    near = difflib.get_close_matches(name.lower(), [each.lower() for each in known], n=1, cutoff=0.5)
    remedy = [each for each in known if near and each.lower() == near[0]]
    if remedy:
        return CommandError(f"no {kind} is called {name!r}; did you mean {remedy[0]!r}?")
    return CommandError(f"no {kind} is called {name!r}; choose one of {', '.join(known)}")
