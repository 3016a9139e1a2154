"""Which files of this machine student code may read: Python and the system's libraries, but nothing of the course."""

import os
import shutil
import site
import sys
from collections.abc import Iterator
from pathlib import Path

from .stage import PACKAGE

SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib64", "/lib32", "/etc/ld.so.cache", "/etc/alternatives")
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")


def bubblewrap(course: Path) -> list[list[str]]:
    """The commands that may start a sandbox, best first; `course` is what of the course is seen in it."""
    program = shutil.which("bwrap")
    if program is None:
        return []
    arguments = [program, "--die-with-parent", "--new-session", "--unshare-pid", "--unshare-net", "--unshare-ipc"]
    arguments += ["--unshare-uts", "--unshare-cgroup-try", "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"]
    for path in SYSTEM:
        if os.path.islink(path):
            arguments += ["--symlink", os.readlink(path), path]
    shared = {path for path in SYSTEM if os.path.exists(path) and not os.path.islink(path)} | set(_pythons())
    hidden = {str(path) for path in secrets() if any(_is_below(str(path), each) for each in shared)}
    for path in sorted(shared | hidden, key=lambda path: path.count("/")):  # what lies deeper wins
        if path in hidden:
            arguments += ["--tmpfs", path]
        else:
            for parent in reversed(Path(path).parents[:-1]):
                arguments += ["--perms", "0755", "--dir", str(parent)]  # else only root could enter
            arguments += ["--ro-bind", path, path]
    arguments += ["--ro-bind", str(course), "/course", "--chdir", "/tmp", "--cap-add", "ALL"]
    # What bubblewrap makes itself could be written to, and what one student leaves there the next would find.
    for path in ("/", "/dev", *sorted(hidden)):
        arguments += ["--remount-ro", path]
    # Without root, the zygote is root of a user namespace of its own, which lets it make namespaces for students.
    unprivileged = [*arguments, "--unshare-user", "--uid", "0", "--gid", "0"]
    return [arguments, unprivileged] if os.getuid() == 0 else [unprivileged]


def landlock(course: Path) -> dict[str, list[str]]:
    """The same for Landlock: what may be read, of what the names may be seen, and what may be written."""
    readable: list[str] = []
    listable: list[str] = []
    for path in (*SYSTEM, *_pythons(), str(course)):
        for each, whole in _around(Path(path), secrets()):
            (readable if whole else listable).append(str(each))
    return {"readable": readable, "listable": listable, "writable": list(DEVICES)}


def secrets() -> list[Path]:
    """What must not be seen even where it lies among the system's or Python's own files: every copy of the course."""
    clone = PACKAGE.parent
    installed = {Path(path) / PACKAGE.name for path in (*sys.path, *site.getsitepackages()) if path}
    found = {clone if (clone / "solutions").is_dir() else PACKAGE, PACKAGE, *installed}
    return sorted({Path(os.path.realpath(path)) for path in found if path.is_dir()})


def _pythons() -> list[str]:
    """The folders of this Python that lie outside the system's."""
    prefixes = {os.path.realpath(sys.base_prefix), sys.base_prefix, sys.prefix, os.path.realpath(sys.prefix)}
    return sorted(prefix for prefix in prefixes if not _is_below(prefix, "/usr"))


def _is_below(path: str, folder: str) -> bool:
    return Path(path).is_relative_to(folder)


def _around(path: Path, holes: list[Path]) -> Iterator[tuple[Path, bool]]:
    """The files and folders in `path` that leave out the holes; with False, a folder of which only names are seen."""
    real = Path(os.path.realpath(path))
    if _is_hidden(real, holes):
        return
    if not any(hole.is_relative_to(real) for hole in holes):
        yield path, True
        return
    yield path, False
    for child in sorted(path.iterdir()):
        if not child.is_symlink():
            yield from _around(child, holes)


def _is_hidden(path: Path, holes: list[Path]) -> bool:
    """Whether a hole is the innermost of what a path lies in: Python may lie in a clone of the course, in .venv."""
    pythons = [Path(os.path.realpath(prefix)) for prefix in (sys.prefix, sys.base_prefix)]
    around = [each for each in (*pythons, *holes) if path.is_relative_to(each)]
    return bool(around) and max(around, key=lambda each: len(each.parts)) in holes
