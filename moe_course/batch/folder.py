"""The folder of a batch: its runs, each whole or not there, and one batch at a time in it.

sweep.toml, plan.json       what was planned
runs/ID.json, ID.ipynb      a run that went well: its row of the table, then its notebook
failed/ID.json, ID.ipynb    one that did not; the notebook as far as it got
"""

import contextlib
import json
import os
import re
import socket
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from moe_course import __version__
from moe_course.batch.plan import Plan, Run

TAIL = 20_000  # bytes at the end of a notebook, in which its metadata stand
WHOLE = re.compile(rb'"nbformat_minor": \d+\s*}\s*$')  # how a notebook ends, its keys in order
UNFINISHED = ".unfinished-"  # how the names of files start that are being written


class FolderError(Exception):
    """The folder cannot be used; the message says what to do."""


class Folder:
    """A batch's folder.

    Args:
        path: what `--out` names; is made by `open`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextmanager
    def open(self, plan: Plan) -> Iterator[None]:
        """Keep other batches out of the folder, and write down what is planned.

        Raises:
            FolderError: another batch is at work here, or the folder holds something else.
        """
        self._check(plan)
        for name in ("runs", "failed"):
            (self.path / name).mkdir(parents=True, exist_ok=True)
        with _lock(self.path / ".lock", self.path):
            for leftover in self.path.glob(f"*/{UNFINISHED}*"):
                leftover.unlink(missing_ok=True)
            self._write("sweep.toml", plan.sweep.text)
            planned = [
                {"id": r.id, "key": r.key, "lesson": r.lesson, "parameters": r.parameters, "seed": r.seed}
                for r in plan.runs
            ]
            about = {"sweep": plan.sweep.name, "record": plan.sweep.record, "package": __version__}
            about["created"] = datetime.now(UTC).isoformat()
            self._write("plan.json", json.dumps(about | {"runs": planned}))
            yield

    def is_done(self, run: Run) -> bool:
        """Whether a run is there, whole, and made from what its key says."""
        try:
            if json.loads((self.path / f"runs/{run.id}.json").read_text("utf-8"))["key"] != run.key:
                return False
            with (self.path / f"runs/{run.id}.ipynb").open("rb") as file:
                file.seek(-min(TAIL, file.seek(0, os.SEEK_END)), os.SEEK_END)
                tail = file.read()
            return WHOLE.search(tail) is not None and f'"key": "{run.key}"'.encode() in tail
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def has_failed(self, run: Run) -> bool:
        """Whether a run was tried, and failed."""
        return (self.path / f"failed/{run.id}.json").exists()

    def save(self, row: dict[str, Any], notebook: str | None) -> None:
        """Keep a run: its row first, so that where there is a notebook, all is there."""
        place = "runs" if row["status"] == "done" else "failed"
        if place == "failed" and notebook is None:
            (self.path / f"failed/{row['id']}.ipynb").unlink(missing_ok=True)
        self._write(f"{place}/{row['id']}.json", json.dumps(row, ensure_ascii=False))
        if notebook is not None:
            self._write(f"{place}/{row['id']}.ipynb", notebook)
        if place == "runs":
            for kind in ("ipynb", "json"):
                (self.path / f"failed/{row['id']}.{kind}").unlink(missing_ok=True)

    def seconds(self) -> dict[str, list[float]]:
        """How long each lesson's earlier runs took."""
        seconds: dict[str, list[float]] = defaultdict(list)
        for path in self.path.glob("runs/*.json"):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                row = json.loads(path.read_text("utf-8"))
                seconds[row["lesson"]].append(float(row["seconds"]))
        return seconds

    def _check(self, plan: Plan) -> None:
        if not self.path.is_dir() or not any(self.path.iterdir()):
            return
        try:
            before = json.loads((self.path / "plan.json").read_text("utf-8"))["sweep"]
        except (OSError, ValueError, KeyError, TypeError):
            if {path.name for path in self.path.iterdir()} <= {"runs", "failed", ".lock", "sweep.toml"}:
                return  # a batch that was cut off before it had written its plan
            raise FolderError(f"{self.path} holds something else than a batch; give an empty or a new --out") from None
        if before != plan.sweep.name:
            raise FolderError(f"{self.path} holds the sweep {before!r}, not {plan.sweep.name!r}; give another --out")

    def _write(self, name: str, text: str) -> None:
        """Write a file that is there whole or not at all, whenever the machine stops."""
        path = self.path / name
        unfinished = path.with_name(UNFINISHED + path.name)
        try:
            with unfinished.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                unfinished.unlink(missing_ok=True)
            raise


@contextmanager
def _lock(path: Path, folder: Path) -> Iterator[None]:
    """Hold a lock that the system lets go of when this process ends, however it ends."""
    with path.open("a+", encoding="utf-8") as file:
        if not _try_lock(file):
            file.seek(0)
            who = file.read().strip() or "another process"
            raise FolderError(f"another batch ({who}) is at work in {folder}; wait for it, or give another --out")
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


def _try_lock(file: IO[str]) -> bool:
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        file.seek(0)
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        except OSError:
            return False
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
