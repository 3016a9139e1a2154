"""What of the course exists inside the sandbox: a folder with copies of the few files that know no answer."""

import importlib.util
import shutil
from functools import cache
from pathlib import Path

import moe_course

PACKAGE = Path(moe_course.__file__).parent
# Of `exercises`: how an answer is called and what is written down about it. Not the exercises, nor who judges.
WITHHELD = {"__init__.py", "registry.py", "checking.py", "judge.py", "compare.py", "show.py"}
ALONE = ("kernels/availability.py",)  # what those files need from elsewhere, without its package's own imports

TOP = '''\
"""MoE Course, as far as graded answers see it: `check` gives back what it gets, and nothing is shown."""

import sys

__version__ = "graded"
sys.modules.setdefault("rfc3987_syntax", None)


def check(answer):
    return answer


def show(*args, **kwargs):
    return None


sliders = quiz = Question = show
'''


def stage(folder: Path) -> Path:
    """Write the package that student code may import to `folder`; the folder to put first on its path."""
    inside = folder / "moe_course"
    for package in ("exercises", "grading", "kernels"):
        (inside / package).mkdir(parents=True)
        (inside / package / "__init__.py").write_text("")
    (inside / "__init__.py").write_text(TOP)
    for path in sorted((PACKAGE / "exercises").glob("*.py")):
        if path.name not in WITHHELD:
            shutil.copyfile(path, inside / "exercises" / path.name)
    shutil.copytree(PACKAGE / "grading" / "inside", inside / "grading" / "inside", ignore=_CACHES)
    for name in ALONE:
        if (PACKAGE / name).exists():
            shutil.copyfile(PACKAGE / name, inside / name)
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)  # the student's process is another user
    return folder


_CACHES = shutil.ignore_patterns("__pycache__")


@cache
def is_staged(module: str) -> bool:
    """Whether a module of the course exists inside the sandbox."""
    try:
        found = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        return False
    path = Path(found.origin) if found and found.origin else None
    return path is not None and path.parent == PACKAGE / "exercises" and path.name not in WITHHELD
