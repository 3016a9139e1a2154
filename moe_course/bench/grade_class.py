"""A class that hands in lesson 02, for `bench grade`: some right, some with a misconception, some half done."""

import json
from pathlib import Path

from moe_course.grading.stage import PACKAGE

LESSON = "02_router"
# What a student changes in the solved cell of an exercise: a text and what stands in its place.
SLIPS = {
    "02.tokens_per_expert": (", minlength=num_experts", ""),
    "02.route": ("if renormalize:", "if False:"),
    "02.router_scores": ("logits = logits.float()", "pass"),
}


def hand_in(folder: Path, students: int) -> None:
    """Write `students` notebooks, as a tree `student/02_router.ipynb`, each a little different."""
    handout = PACKAGE.parent / "lessons" / f"{LESSON}.ipynb"
    solved = _answers(json.loads((PACKAGE.parent / "solutions" / f"{LESSON}.ipynb").read_text(encoding="utf-8")))
    for number in range(students):
        notebook = json.loads(handout.read_text(encoding="utf-8"))
        for place, cell in enumerate(notebook["cells"]):
            exercise = cell["metadata"].get("moe_course", {}).get("exercise")
            # Every third student is right, every third slips somewhere, every third stops half-way.
            if exercise in solved and not (number % 3 == 2 and place > len(notebook["cells"]) / 2):
                slip = SLIPS.get(exercise, ("", "")) if number % 3 == 1 and number % 2 else ("", "")
                cell["source"] = solved[exercise].replace(*slip) if slip[0] else solved[exercise]
                cell["source"] += f"\n# {number}"
        path = folder / f"student{number:03}" / f"{LESSON}.ipynb"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(notebook), encoding="utf-8")


def _answers(notebook: dict) -> dict[str, str]:
    """The solved cells, by exercise."""
    found = {}
    for cell in notebook["cells"]:
        if "exercise" in cell["metadata"].get("moe_course", {}):
            found[cell["metadata"]["moe_course"]["exercise"]] = "".join(cell["source"])
    return found
