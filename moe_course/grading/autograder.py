"""Gradescope's autograder: the zip to upload, and what runs there for each submission.

    python -m moe_course.grading.autograder ROOT LESSON

grades ROOT/submission and writes ROOT/results/results.json. Gradescope's ROOT is /autograder; a test's is a folder laid
out like it.
"""

import json
import shutil
import sys
import tempfile
import traceback
import zipfile
from pathlib import Path

from .gradescope import not_graded, results_json
from .stage import PACKAGE

SETUP = """\
#!/usr/bin/env bash
# Gradescope runs this once, when it builds the autograder's image.
set -euo pipefail
root=/autograder
apt-get update -qq
apt-get install -y -qq bubblewrap
for version in 3.14 3.13 3.12 3.11; do
    if command -v "python$version" >/dev/null && "python$version" -c "import ensurepip, venv" 2>/dev/null; then
        python="python$version"
        break
    fi
done
if [ -z "${python:-}" ]; then
    apt-get install -y -qq python3.11 python3.11-venv
    python=python3.11
fi
"$python" -m venv "$root/venv"
cd "$root/source/moe-course"
# Only what the course needs: the course itself stays where a student's process, another user's, cannot read it.
"$root/venv/bin/pip" install -q --extra-index-url https://download.pytorch.org/whl/cpu -c constraints.txt -r needs.txt
chmod -R go-rwx "$root/source"
"""
RUN = """\
#!/usr/bin/env bash
# Gradescope runs this for each submission.
set -u
root="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
python="$root/venv/bin/python"
[ -x "$python" ] || python="${MOE_COURSE_PYTHON:-python3}"
cd "$root/source/moe-course" && exec "$python" -m moe_course.grading.autograder "$root" LESSON
"""


def build_zip(lesson: str, handout: Path, out: Path) -> None:
    """Write the zip that Gradescope takes as an autograder.

    Args:
        lesson: number of the lesson it grades, such as "02".
        handout: the lesson's notebook as students got it.
        out: the zip to write.
    """
    import tomllib

    root = PACKAGE.parent
    needs = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    fresh = out.with_name(f".{out.name}.part")
    with zipfile.ZipFile(fresh, "w", zipfile.ZIP_DEFLATED) as archive:
        _add(archive, "setup.sh", SETUP, 0o755)
        _add(archive, "run_autograder", RUN.replace("LESSON", lesson), 0o755)
        _add(archive, "moe-course/needs.txt", "\n".join(needs) + "\n")
        _add(archive, "moe-course/constraints.txt", (root / "constraints.txt").read_text(encoding="utf-8"))
        _add(archive, f"moe-course/lessons/{handout.name}", handout.read_text(encoding="utf-8"))
        for path in sorted(PACKAGE.rglob("*.py")):
            name = path.relative_to(root).as_posix()
            _add(archive, f"moe-course/{name}", path.read_text(encoding="utf-8"))
    fresh.replace(out)


def grade_submission(root: Path, lesson: str) -> None:
    """Grade what a student handed in; whatever goes wrong, leave a results.json that says so."""
    from .handouts import GradingError
    from .run import grade
    from .submissions import NothingHandedIn, Refused

    out = root / "results" / "results.json"
    out.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        one = Path(scratch) / "class"
        shutil.copytree(root / "submission", one / "you", symlinks=True)
        try:
            run = grade(one, Path(scratch) / "report", lessons=(lesson,))
            (result,) = run.results.values()
            data = results_json([result]) | {"extra_data": {"seed": run.settings.seed, "isolation": result.level}}
        except NothingHandedIn:
            data = not_graded(f"Your submission holds no notebook. Hand in lesson {lesson}'s, an .ipynb file.")
        except (GradingError, Refused) as error:
            data = not_graded(f"This could not be graded: {error}. Tell your instructor.")
        except Exception:
            traceback.print_exc()  # Gradescope shows it to the instructor
            data = not_graded("The grader itself failed over this. Tell your instructor.")
    out.write_text(json.dumps(data, indent=1), encoding="utf-8")


def _add(archive: zipfile.ZipFile, name: str, text: str, mode: int = 0o644) -> None:
    """Add a file with a fixed date, so that the same course makes the same zip."""
    member = zipfile.ZipInfo(name, (2026, 1, 1, 0, 0, 0))
    member.external_attr = (0o100000 | mode) << 16
    member.compress_type = zipfile.ZIP_DEFLATED
    archive.writestr(member, text)


if __name__ == "__main__":
    grade_submission(Path(sys.argv[1]), sys.argv[2])
