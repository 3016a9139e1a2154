"""The notebooks that a sweep names: where they are, what they can be given, and what their results depend on."""

import ast
import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import moe_course
from moe_course.batch.parameters import Parameter, read_parameters

PACKAGE = Path(moe_course.__file__).parent
# The parts of the package that a notebook can depend on. The grader and the commands are none of them.
USED_BY_NOTEBOOKS = (
    *("__init__.py", "interop.py", "batch/record.py", "batch/plain.py"),
    *("layers", "kernels", "exercises", "figures", "training"),
)


class LessonError(Exception):
    """A notebook is not there, or cannot be run; the message says what to do."""


@dataclass(frozen=True)
class Lesson:
    """A notebook to run.

    Args:
        name: its file's name without `.ipynb`.
        path: where it lies.
        text: the notebook as JSON, without outputs.
        parameters: of its cell tagged `parameters`; None where it has no such cell.
        records: names it gives to `record`; None where they cannot be told without running it.
        digest: of its code.
        packages: the versions of what it imports; for moe_course also a hash of the code.
    """

    name: str
    path: Path
    text: str
    parameters: dict[str, Parameter] | None
    records: frozenset[str] | None
    digest: str
    packages: dict[str, str]


def find_lessons(patterns: Iterable[str], beside: Path) -> list[Path]:
    """The notebooks of numbers ("04"), names, globs ("0[45]*") and paths ("my/*.ipynb"), each once.

    Args:
        patterns: what a sweep says.
        beside: the sweep's folder, where paths start if they don't start here.

    Raises:
        LessonError: one of them matches nothing.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        matches = _by_path(pattern, beside) if pattern.endswith(".ipynb") else _by_name(pattern)
        found |= dict.fromkeys(path.resolve() for path in matches)
    return list(found)


def read_lesson(path: Path) -> Lesson:
    """Read a notebook; nothing of it is run.

    Raises:
        LessonError: it is no Python notebook.
    """
    try:
        notebook = json.loads(path.read_text("utf-8"))
        cells = notebook["cells"]
        code = [cell for cell in cells if cell["cell_type"] == "code"]
        sources = ["".join(cell["source"]) for cell in code]
        tags = [cell.get("metadata", {}).get("tags", []) for cell in code]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise LessonError(f"{path} is not a notebook that can be read ({error!r})") from None
    language = notebook.get("metadata", {}).get("kernelspec", {}).get("language", "python")
    if language != "python":
        raise LessonError(f"{path} is written in {language}; a batch runs Python notebooks only")
    for cell in code:
        cell["outputs"], cell["execution_count"] = [], None
    notebook["metadata"].pop("widgets", None)
    # In what kernel the notebook was saved does not matter: it runs in this environment.
    notebook["metadata"]["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return Lesson(
        name=path.stem,
        path=path,
        text=json.dumps(notebook, ensure_ascii=False),
        parameters=_parameters(path, sources, tags),
        records=_records(sources),
        digest=_digest([sources, tags]),
        packages=_packages(sources),
    )


@lru_cache(maxsize=1)
def package_digest() -> str:
    """A hash of the code of moe_course that a notebook can use; an edit of it makes earlier runs stale."""
    digest = hashlib.sha256()
    for part in USED_BY_NOTEBOOKS:
        for path in sorted([PACKAGE / part] if part.endswith(".py") else (PACKAGE / part).rglob("*.py")):
            digest.update(f"{path.relative_to(PACKAGE).as_posix()}\n".encode())
            digest.update(path.read_bytes() if path.exists() else b"")
    return digest.hexdigest()


def _by_path(pattern: str, beside: Path) -> list[Path]:
    for base in (Path.cwd(), beside):
        if Path(pattern).is_absolute():
            base, relative = Path(Path(pattern).anchor), str(Path(pattern).relative_to(Path(pattern).anchor))
        else:
            relative = pattern
        if (base / relative).is_file():
            return [base / relative]
        if matches := sorted(path for path in base.glob(relative) if path.is_file()):
            return matches
    raise LessonError(f"there is no notebook {pattern}; paths start in this folder or in the sweep's")


def _by_name(pattern: str) -> list[Path]:
    number = f"{int(pattern):02}" if pattern.isdigit() else pattern
    folders = [base / "solutions" for base in (Path.cwd(), PACKAGE.parent)]
    folders = [folder for folder in folders if folder.is_dir()]
    if not folders:
        raise LessonError(
            f"there is no folder solutions/ to find lesson {pattern!r} in; run this where the course was cloned, or "
            "give the path of a notebook"
        )
    for glob in (f"{number}.ipynb", f"{number}_*.ipynb") if number[0] != "*" else ("*.ipynb",):
        if matches := sorted(folders[0].glob(glob)):
            return matches
    from moe_course.batch.sweep import nearest

    known = [path.stem for path in sorted(folders[0].glob("*.ipynb"))]
    hint = nearest(pattern, [*known, *(name[3:] for name in known)]) or f"choose one of {', '.join(known)}"
    raise LessonError(f"no lesson is called {pattern!r}; {hint}")


def _parameters(path: Path, sources: list[str], tags: list[list[str]]) -> dict[str, Parameter] | None:
    for source, its_tags in zip(sources, tags, strict=True):
        if "parameters" in its_tags:
            try:
                return read_parameters(source)
            except SyntaxError as error:
                raise LessonError(f"the parameters cell of {path} is not valid Python: {error.msg}") from None
    return None


def _records(sources: list[str]) -> frozenset[str] | None:
    names: set[str] = set()
    for source in sources:
        if "record" not in source:
            continue
        try:
            tree = ast.parse(source)
        except SyntaxError:  # a line of IPython's, such as %timeit
            return None
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] == "record":
                if any(keyword.arg is None for keyword in node.keywords):
                    return None
                names |= {keyword.arg for keyword in node.keywords if keyword.arg}
    return frozenset(names)


def _packages(sources: list[str]) -> dict[str, str]:
    modules = set(re.findall(r"^\s*(?:from|import)\s+(\w+)", "\n".join(sources), re.MULTILINE))
    if "moe_course" in modules:
        modules.add("torch")
    packages = {}
    for module in sorted(modules - {"moe_course"}):
        try:
            packages[module] = version(module)
        except (PackageNotFoundError, ValueError):  # the standard library, or a name unlike its package's
            continue
    if "moe_course" in modules:
        packages["moe_course"] = f"{moe_course.__version__} {package_digest()}"
    return packages


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
