"""MoE Course: learn Mixture-of-Experts by building one.

`from moe_course import check, show, sliders, quiz, Question, record` is what a lesson starts with;
`moe_course.layers` is the reference code.
"""

import os
import sys
from importlib import import_module
from typing import Any

__version__ = "0.1.0"
__all__ = ["Question", "check", "quiz", "record", "show", "sliders"]

# Importing this optional dependency of jsonschema costs more than 2 s in every process that reads a notebook
# (jsonschema #1428). `None` makes the import fail at once, which jsonschema expects.
sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]


def _install_shape_checks() -> None:
    """Check the shapes in the signatures of `moe_course.layers` at call time, where people learn and test.

    On in a Jupyter kernel and under pytest, off elsewhere; MOE_COURSE_SHAPE_CHECKS=0 or 1 decides otherwise.
    """
    default = "1" if "ipykernel" in sys.modules or "pytest" in sys.modules else "0"
    if os.environ.get("MOE_COURSE_SHAPE_CHECKS", default) == "1":
        from jaxtyping import install_import_hook

        import moe_course.shape_checks  # noqa: F401  the hook looks its checker up as an attribute

        install_import_hook("moe_course.layers", "moe_course.shape_checks.checked")


_install_shape_checks()

# Loaded on first use: `import moe_course` must stay cheap for the command line.
_LAZY = {
    "check": "moe_course.exercises",
    "show": "moe_course.figures.interactive",
    "sliders": "moe_course.figures.interactive",
    "quiz": "moe_course.figures.quiz",
    "Question": "moe_course.figures.quiz",
    "record": "moe_course.batch.record",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'moe_course' has no attribute {name!r}; it has {', '.join(__all__)}")
    value = globals()[name] = getattr(import_module(_LAZY[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
