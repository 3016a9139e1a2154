"""Where a report keeps what belongs to a student."""

import hashlib
from pathlib import Path


def result_file(out: Path, student: str, lesson: str) -> Path:
    """Where a result is kept."""
    return out / "results" / f"{slug(student)}.{lesson}.json"


def slug(student: str) -> str:
    """A file name for a student, whatever they are called; different for different students."""
    plain = "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "_" for c in student)[:60]
    if plain and plain == student.lower():  # some file systems do not tell Ada from ada
        return plain
    return f"{plain}-{hashlib.sha256(student.encode('utf-8', 'surrogatepass')).hexdigest()[:16]}"
