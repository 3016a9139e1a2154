"""A hash of all that a result depends on: a result with the key that it would get now need not be made again."""

import hashlib
from functools import cache
from typing import Any

from .stage import PACKAGE


def key_of(*parts: Any) -> str:
    """The key of what depends on `parts`, bytes and plain values, and on the code."""
    digest = hashlib.sha256()
    for part in (*parts, code_hash()):
        raw = part if isinstance(part, bytes) else repr(part).encode()
        digest.update(len(raw).to_bytes(8, "big") + raw)
    return digest.hexdigest()


@cache
def code_hash() -> str:
    """A hash of the code that scores depend on."""
    digest = hashlib.sha256()
    for folder in ("exercises", "grading", "kernels", "layers", "training"):
        for path in sorted((PACKAGE / folder).rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()
