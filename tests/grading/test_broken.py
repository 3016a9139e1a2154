"""Notebooks that are damaged, altered or strange are graded as far as they deserve; the report says what was odd."""

import copy
import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from moe_course.exercises import LESSONS
from moe_course.exercises.checking import evaluate
from moe_course.grading.run import Run, grade
from tests.grading.conftest import hand_in, notebook

COUNTS = "02.tokens_per_expert"
WRONG = "def tokens_per_expert(expert_ids, num_experts):\n    return None\n"
Answers = dict[str, str]


def _bare(data: dict[str, Any]) -> dict[str, Any]:
    """What a round trip through another system leaves of a notebook."""
    cells = [{"cell_type": c["cell_type"], "metadata": {}, "source": c["source"], "outputs": []} for c in data["cells"]]
    return {"nbformat": 4, "nbformat_minor": 0, "metadata": {"kernelspec": {"name": "colab-x"}}, "cells": cells}


def _version_3(data: dict[str, Any]) -> dict[str, Any]:
    cells = [
        {"cell_type": "code", "input": c["source"], "language": "python", "metadata": {}}
        for c in data["cells"]
        if c["cell_type"] == "code"
    ]
    return {"nbformat": 3, "nbformat_minor": 0, "metadata": {}, "worksheets": [{"cells": cells}]}


def _only_exercises(data: dict[str, Any]) -> dict[str, Any]:
    return data | {"cells": [c for c in data["cells"] if "exercise" in c["metadata"].get("moe_course", {})]}


def _retyped(data: dict[str, Any]) -> dict[str, Any]:
    for cell in data["cells"]:
        if cell["metadata"].get("moe_course", {}).get("exercise") == COUNTS:
            cell["cell_type"], cell["source"] = "markdown", f"```python\n{cell['source']}\n```"
    return data


def _without_counts(data: dict[str, Any]) -> dict[str, Any]:
    return data | {"cells": [c for c in data["cells"] if c["metadata"].get("moe_course", {}).get("exercise") != COUNTS]}


def _cell(source: Any, **more: Any) -> dict[str, Any]:
    return {"cell_type": "code", "metadata": {}, "source": source, "outputs": [], "execution_count": None} | more


def _plus(*cells: Any, first: bool = False) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda data: data | {"cells": [*cells, *data["cells"]] if first else [*data["cells"], *cells]}


def _renamed(solved: Answers) -> Answers:
    return solved | {COUNTS: solved[COUNTS].replace("def tokens_per_expert", "def my_own_name")}


def _hard_coded(solved: Answers) -> Answers:
    """Knows the answers for the inputs that `check` shows."""
    (exercise,) = [each for each in LESSONS["02"] if each.id == COUNTS]
    inputs = exercise.inputs(0).values()
    known = [((i["expert_ids"].tolist(), i["num_experts"]), exercise.reference(**i).tolist()) for i in inputs]
    body = "for key, value in KNOWN:\n        if key == (expert_ids.tolist(), num_experts): return torch.tensor(value)"
    head = f"KNOWN = {known}\ndef tokens_per_expert(expert_ids, num_experts):"
    source = f"{head}\n    {body}\n    return torch.full((num_experts,), 99)\n"
    return solved | {COUNTS: source}


# Name: (what becomes of the solved answers, what becomes of the notebook, total of 12, what a note must say).
ALTERED: dict[str, tuple[Any, Any, float, str]] = {
    "stripped": (None, _bare, 12, ""),
    "version-3": (None, _version_3, 12, "old notebook format 3"),
    "reversed": (None, lambda data: data | {"cells": data["cells"][::-1]}, 12, ""),
    "only-exercises": (None, _only_exercises, 12, ""),
    "retyped": (None, _retyped, 12, "no code cell any more"),
    "deleted": (None, _without_counts, 11, ""),
    "renamed": (_renamed, None, 12, "called my_own_name, not tokens_per_expert"),
    "foreign-kernel": (None, lambda d: d | {"metadata": {"kernelspec": {"language": "R"}}}, 12, "not Python's"),
    "twice-wrong-last": (None, _plus(_cell(WRONG)), 11, "the last definition counts"),
    "twice-right-last": (None, _plus(_cell(WRONG), first=True), 12, "the last definition counts"),
    "copied-cell": (None, lambda d: d | {"cells": [c for c in d["cells"] for _ in "12"]}, 12, "last definition counts"),
    "odd-cells": (None, _plus(1, None, "x", [], {"cell_type": "code", "source": 3}), 12, "were passed over"),
    "broken-cell": (None, _plus(_cell("def tokens_per_expert(:")), 12, ""),
    "magic": (None, _plus(_cell("%matplotlib inline\n!pip install x\nroute?\nx = 1"), _cell("%%bash\nrm -rf")), 12, ""),
    "raising-cell": (None, _plus(_cell("raise SystemExit"), _cell("1 / 0"), first=True), 12, ""),
    "raw-carriage-returns": (None, lambda d: json.loads(json.dumps(d).replace("\\n", "\\r\\n")), 12, ""),
    "syntax-error": (lambda s: s | {COUNTS: "def tokens_per_expert(x:\n  return"}, None, 11, ""),
    "unsolved-before": (lambda s: {k: v for k, v in s.items() if k != "02.router_scores"}, None, 10, ""),
    "hard-coded": (_hard_coded, None, 11.5, ""),
    "counted": (
        lambda s: (
            s | {COUNTS: "def tokens_per_expert(expert_ids, num_experts):\n    return counted(expert_ids, num_experts)"}
        ),
        _plus(
            _cell("import torch as t, no_such_module\n"),
            _cell("def counted(i, n): return t.bincount(i.flatten(), minlength=n)"),
        ),
        12,
        "",
    ),
    "wrong-global": (
        lambda s: s | {COUNTS: "def tokens_per_expert(expert_ids, num_expert):\n    return best_expert\n"},
        None,
        11,
        "",
    ),
}
RAW: dict[str, Callable[[str], bytes]] = {
    "utf-16": lambda text: text.encode("utf-16"),
    "latin-1": lambda text: text.replace("\\u00b7", "·").replace("seed", "sééd", 1).encode("latin-1", "replace"),
    "with-mark": lambda text: b"\xef\xbb\xbf" + text.encode(),
}
UNREADABLE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "empty"),
    "text": (b"my answers", "not JSON"),
    "list": (b"[]", "no notebook"),
    "no-cells": (b"{}", "no cells"),
    "cells-number": (b'{"cells": 3}', "no cells"),
    "deep": (b"[" * 10**6, ""),
    "nul": (b"\0" * 1000, "not JSON"),
    "number": (b'{"cells": [' + b"9" * 10**5 + b"]}", ""),
}


@pytest.fixture(scope="module")
def graded(tmp_path_factory, solved) -> Run:
    folder = tmp_path_factory.mktemp("broken")
    for name, (answers, change, _, _) in ALTERED.items():
        data = notebook(answers(solved) if answers else solved)
        hand_in(folder / "class", name, change(copy.deepcopy(data)) if change else data)
    for name, encode in RAW.items():
        hand_in(folder / "class", name, "").write_bytes(encode(json.dumps(notebook(solved))))
    for name, (raw, _) in UNREADABLE.items():
        hand_in(folder / "class", name, "").write_bytes(raw)
    (folder / "class" / "link").mkdir()
    (folder / "class" / "link" / "02_router.ipynb").symlink_to(folder / "class" / "stripped" / "02_router.ipynb")
    cut = json.dumps(notebook(solved))
    hand_in(folder / "class", "truncated", cut[: len(cut) // 2])
    return grade(folder / "class", folder / "report", seconds=5, jobs=2)


@pytest.mark.parametrize("name", ALTERED)
def test_an_altered_notebook_gets_what_it_deserves(graded, name):
    result = graded.results[name, "02"]
    total, note = ALTERED[name][2:]
    rows = [(row.id, row.status, row.points, row.message, row.notes) for row in result.exercises]
    assert result.points == pytest.approx(total, abs=0.01), rows
    assert note in " ".join([*result.notes, *(each for row in result.exercises for each in row.notes)])


@pytest.mark.parametrize("name", RAW)
def test_an_encoding_does_not_matter(graded, name):
    assert graded.results[name, "02"].points == 12


@pytest.mark.parametrize("name", [*UNREADABLE, "link", "truncated"])
def test_what_is_no_notebook_is_unreadable_and_says_why(graded, name):
    result = graded.results[name, "02"]
    assert {row.status for row in result.exercises} == {"unreadable"}
    assert result.points == 0 and UNREADABLE.get(name, (b"", ""))[1] in " ".join(result.notes)


@pytest.mark.parametrize(
    ("name", "status", "says"),
    [
        ("deleted", "missing", "no cell defines tokens_per_expert"),
        ("syntax-error", "unreadable", "SyntaxError"),
        ("wrong-global", "graded", "TypeError"),
        ("hard-coded", "graded", "values are wrong"),
    ],
)
def test_the_exercise_says_what_was_wrong(graded, name, status, says):
    (row,) = [row for row in graded.results[name, "02"].exercises if row.id == COUNTS]
    assert row.status == status and says in row.message


def test_a_later_answer_does_not_suffer_from_an_earlier_one(graded):
    rows = {row.id: row for row in graded.results["unsolved-before", "02"].exercises}
    assert rows["02.router_scores"].status == "not attempted"
    assert rows["02.route"].points == 3
    assert "was given the course's router_scores" in rows["02.route"].notes[0]


def test_hard_coded_outputs_fool_the_check_that_shows_its_inputs(solved):
    import torch

    (exercise,) = [each for each in LESSONS["02"] if each.id == COUNTS]
    space: dict[str, Any] = {"torch": torch}
    exec(_hard_coded(solved)[COUNTS], space)
    assert evaluate(exercise, space["tokens_per_expert"], 0).passed


def test_messages_tell_no_expected_value(graded):
    said = [f["message"] for r in graded.results.values() for row in r.exercises for f in row.findings]
    assert any("values are wrong" in each for each in said)
    assert not [each for each in said if re.search(r"expected -?[\d.]+$|; first", each)]
