"""A hash of all that a result depends on: a result with the key that it would get now need not be made again."""

import hashlib
from functools import cache
from pathlib import Path
from typing import Any

from .stage import PACKAGE
from .submissions import Submission


def key_of(submission: Submission, handout: Path, *settings: Any) -> str:
    """The key of a submission's result, graded against a lesson's handout."""
    digest = hashlib.sha256()
    for part in (*settings, submission.lesson, submission.name, submission.notes, _code()):
        digest.update(repr(part).encode())
    digest.update(handout.read_bytes())
    digest.update(submission.path.read_bytes() if submission.path else submission.problem.encode())
    return digest.hexdigest()


@cache
def _code() -> str:
    """A hash of the code that scores depend on."""
    digest = hashlib.sha256()
    for folder in ("exercises", "grading", "layers"):
        for path in sorted((PACKAGE / folder).rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()
