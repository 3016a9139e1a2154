"""Reads zip archives that strangers made: by name only what may be a notebook, and never more than was promised.

Nothing is unpacked to where its name says. A notebook is copied to a numbered file of ours; links, absolute names and
names that climb out of the archive are reason enough to refuse the whole of it.
"""

import itertools
import re
import stat
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

MAX_MEMBERS = 20_000
MAX_FILE = 64 << 20  # bytes of one notebook
MAX_TOTAL = 4 << 30  # bytes of all that is unpacked
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


class Unpacker:
    """Copies files out of archives to a folder of our own.

    Args:
        folder: an empty one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._numbers = itertools.count()
        self._total = 0

    def unpack(self, archive: Path, above: tuple[str, ...] = (), nested: bool = False) -> list[Found]:
        """The notebooks in an archive, and those in archives in it.

        Args:
            archive: a zip file.
            above: the folders that it stands for.
            nested: whether it comes out of another archive; a third one in it is not opened.

        Raises:
            Refused: it is none, or a dangerous one.
        """
        try:
            with zipfile.ZipFile(archive) as opened:
                members = opened.infolist()
                _check(members)
                found = []
                for member in members:
                    parts = PurePosixPath(member.filename).parts
                    if is_wanted(parts) and not member.is_dir():
                        found += self._member(opened, member, (*above, *parts), nested)
                return found
        except (zipfile.BadZipFile, zipfile.LargeZipFile, EOFError, OSError, ValueError, NotImplementedError) as error:
            raise Refused(f"the zip is damaged ({str(error)[:80]})") from None

    def _member(
        self, opened: zipfile.ZipFile, member: zipfile.ZipInfo, parts: tuple[str, ...], nested: bool
    ) -> list[Found]:
        modified = _modified(member)
        path = self._copy(opened, member)
        if not parts[-1].lower().endswith(".zip"):
            return [Found(parts, path, modified)]
        if nested:
            return [Found(parts, None, modified, "a zip in a zip in a zip was not opened")]
        return unpacked(self, path, parts, modified)

    def _copy(self, opened: zipfile.ZipFile, member: zipfile.ZipInfo) -> Path:
        if member.flag_bits & 1:
            raise Refused(f"{member.filename!r} in the zip is encrypted")
        path = self.folder / f"{next(self._numbers)}"
        size = 0
        with opened.open(member) as packed, path.open("wb") as out:
            while piece := packed.read(1 << 20):
                size += len(piece)
                self._total += len(piece)
                if size > MAX_FILE or self._total > MAX_TOTAL or size > MAX_RATIO * max(member.compress_size, 5000):
                    raise Refused(f"{member.filename[:80]!r} in the zip unpacks to far too much: a zip bomb")
                out.write(piece)
        return path


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
