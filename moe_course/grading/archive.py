"""Reads zip archives that strangers made: by name only what may be a notebook, and never more than was promised.

Nothing is unpacked to where its name says. A notebook is copied to a numbered file of ours; links, absolute names and
names that climb out of the archive are reason enough to refuse the whole of it. A file in it that is damaged or far too
large is a problem of whoever handed it in, and of nobody else.
"""

import itertools
import lzma
import re
import stat
import time
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

MAX_MEMBERS = 20_000
MAX_FILE = 64 << 20  # bytes of one notebook
MAX_TOTAL = 4 << 30  # bytes of all that is unpacked from one archive
MAX_OF_STUDENT = 256 << 20  # the same, where a student handed the archive in
MAX_RATIO = 200  # to which a file may have been packed; a notebook of zeros and pictures stays far below
SUFFIXES = (".ipynb", ".zip")
METADATA = "submission_metadata.yml"  # Gradescope's, with the students' names


class Refused(Exception):
    """An archive that is damaged or dangerous; the message says how."""


@dataclass(frozen=True)
class Found:
    """A file that was handed in.

    Args:
        parts: folders and name, as handed in.
        path: where its content lies; None where there is a problem.
        modified: when, in seconds since 1970.
        problem: why it cannot be read.
    """

    parts: tuple[str, ...]
    path: Path | None
    modified: float
    problem: str = ""


# What reading a zip that is damaged, encrypted or of an unknown kind may raise.
DAMAGE = (
    *(zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error, lzma.LZMAError),
    *(EOFError, OSError, ValueError, NotImplementedError, RuntimeError),
)


class Unpacker:
    """Copies files out of archives to a folder of our own.

    Args:
        folder: an empty one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._numbers = itertools.count()

    def unpack(self, archive: Path, above: tuple[str, ...] = (), nested: bool = False) -> list[Found]:
        """The notebooks in an archive, and those in archives in it.

        Args:
            archive: a zip file.
            above: the folders that it stands for.
            nested: whether a student handed it in; an archive in it is not opened.

        Raises:
            Refused: it is none, or a dangerous one.
        """
        left = MAX_OF_STUDENT if nested else MAX_TOTAL
        found: list[Found] = []
        try:
            with zipfile.ZipFile(archive) as opened:
                members = opened.infolist()
                _check(members)
                for member in members:
                    parts = PurePosixPath(member.filename).parts
                    if not is_wanted(parts) or member.is_dir():
                        continue
                    path, problem = self._copy(opened, member)
                    found += self._opened((*above, *parts), path, problem, _modified(member), nested)
                    left -= path.stat().st_size if path else 0
                    if left < 0:
                        raise Refused("the zip unpacks to far too much: a zip bomb")
        except DAMAGE as error:
            raise Refused(f"the zip is damaged ({str(error)[:80]})") from None
        except Refused:
            for each in found:
                if each.path:
                    each.path.unlink(missing_ok=True)
            raise
        return found

    def _opened(
        self, parts: tuple[str, ...], path: Path | None, problem: str, modified: float, nested: bool
    ) -> list[Found]:
        if path is None or not parts[-1].lower().endswith(".zip"):
            return [Found(parts, path, modified, problem)]
        if nested:
            return [Found(parts, None, modified, "a zip in a zip in a zip was not opened")]
        return unpacked(self, path, parts, modified)

    def _copy(self, opened: zipfile.ZipFile, member: zipfile.ZipInfo) -> tuple[Path | None, str]:
        """A copy of a file of ours, or None and why there is none."""
        path, size = self.folder / f"{next(self._numbers)}", 0
        try:
            with opened.open(member) as packed, path.open("wb") as out:
                while piece := packed.read(1 << 20):
                    size += len(piece)
                    if size > MAX_FILE or size > MAX_RATIO * max(member.compress_size, 5000):
                        path.unlink()
                        return None, f"{member.filename[:80]!r} in the zip unpacks to far too much: a zip bomb"
                    out.write(piece)
        except DAMAGE as error:
            path.unlink(missing_ok=True)
            why = "encrypted" if member.flag_bits & 1 else f"damaged ({str(error)[:80]})"
            return None, f"{member.filename[:80]!r} in the zip is {why}"
        return path, ""


def unpacked(unpacker: Unpacker, path: Path, parts: tuple[str, ...], modified: float) -> list[Found]:
    """What an archive that a student handed in holds; it stands for a folder. A refused one is a problem of theirs."""
    above = parts[:-1] if len(parts) > 1 else (PurePosixPath(parts[-1]).stem,)
    try:
        return unpacker.unpack(path, above, nested=True)
    except Refused as error:
        return [Found(parts, None, modified, str(error))]


def is_wanted(parts: tuple[str, ...]) -> bool:
    """Whether a file may hold answers; what systems and JupyterLab leave behind does not."""
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in parts)
    return bool(parts) and not hidden and (parts[-1].lower().endswith(SUFFIXES) or parts[-1] == METADATA)


def _check(members: list[zipfile.ZipInfo]) -> None:
    if len(members) > MAX_MEMBERS:
        raise Refused(f"the zip holds more than {MAX_MEMBERS} files")
    for member in members:
        name = member.filename
        climbs = ".." in re.split(r"[/\\]", name) or name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:", name)
        if climbs or "\0" in name or "\0" in member.orig_filename.removesuffix("\0"):
            raise Refused(f"the zip holds a file that would land outside: {name[:80]!r}")
        kind = stat.S_IFMT(member.external_attr >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise Refused(f"the zip holds a link or a device: {name[:80]!r}")
    offsets = [member.header_offset for member in members]
    if len(set(offsets)) < len(offsets):
        raise Refused("the zip lists the same bytes as several files: a zip bomb")


def _modified(member: zipfile.ZipInfo) -> float:
    try:
        return time.mktime((*member.date_time, 0, 0, -1))
    except (ValueError, OverflowError):
        return 0.0
