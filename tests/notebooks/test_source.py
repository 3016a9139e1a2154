"""Every fault a source can have is named, with the cell and what to do."""

import re

import pytest

from moe_course.notebooks.source import SourceError, read_lesson, read_lessons
from tests.notebooks.conftest import FIGURES, first_lesson, second_lesson

ID = "02.router_logits"

FAULTS = {
    "no header": ("# ---\n", "", r"no `jupyter: moe_course:` block; copy one"),
    "header not YAML": ("title: The first", "title: The: first", r"(?s)not valid YAML.*quote values"),
    "no objectives": ("#     objectives: [Do this, Do that]\n", "", r"lacks `objectives`"),
    "empty objectives": ("[Do this, Do that]", "[]", r"`objectives` in the header must be a list that is not empty"),
    "unknown key": ("#     minutes: 10", "#     minutes: 10\n#     length: 3", r"unknown key `length`"),
    "wrong difficulty": ("difficulty: 2", "difficulty: 4", r"choose 1, 2 or 3"),
    "no parameters": (' tags=["parameters"]', "", r'0 cells are tagged "parameters"; there must be exactly one'),
    "two parameters": ("# %%\nfrom", '# %% tags=["parameters"]\nfrom', r"2 cells"),
    "late parameters": ("# %% tags=", "# %%\nimport math\n\n# %% tags=", r"first code cell"),
    "parameter without type": ("seed: int = 0", "seed = 0", r"`seed = 0 .*`.*name: type = value  # what it sets"),
    "parameter without comment": ("  # of everything", "", r"`seed: int = 0`.*# what it sets"),
    "unknown exercise": (f'"{ID}"', '"02.no_such"', r"no exercise '02.no_such'; add it to"),
    "another lesson's": (f'"{ID}"', '"03.run_experts"', r"belongs to lesson 03"),
    "an exercise twice": ("02.tokens_per_expert", ID, r"stands twice; keep one"),
    "an exercise left out": ("left out", "", r"02.router_logits is not in the lesson"),
    "another name": ("def router_logits", "def logits", r"defines no `router_logits`"),
    "no task": ("# %% [markdown]\n# Write `tokens_per_expert`.\n", "", r"states its task in markdown; add one"),
    "no check": (f'check="{ID}"', "", r'the next cell must be its check: `# %% check="02.router_logits"`'),
    "check of another": (f'check="{ID}"', 'check="02.route"', r"the next cell must be its check"),
    "check with more": ("= check(router_logits)", "= check(router_logits)  # !", r"holds just `router_logits = check"),
    "check alone": (f'exercise="{ID}"', "", r"`router_logits = check|a solution outside an exercise"),
    "no END": ("    ### END SOLUTION\n", "", r"`### BEGIN SOLUTION` without `### END SOLUTION` below it; add one"),
    "no BEGIN": ("    ### BEGIN SOLUTION\n", "", r"`### END SOLUTION` without `### BEGIN SOLUTION` above"),
    "no solution": (re.compile(r" {4}### BEGIN.*?### END SOLUTION\n", re.S), "    return 1\n", r"without a solution"),
    "stub not commented": ("    ### END", "    ### STUB\n    return 1\n    ### END", r"`return 1`.*behind a `# `"),
    "stub that answers": ("    ### END", "    ### STUB\n    # return 1\n    ### END", r"raise NotImplementedError"),
    "stub with a slip": (
        "    ### END",
        "    ### STUB\n    # raise NotImplementedError(\n    ### END",
        r"not valid Python.*line \d",
    ),
    "unknown role": ("# %%\nfrom", '# %% exercize="02.route"\nfrom', r"`exercize`.*check, exercise, tags"),
    "unknown tag": ("nbval-check-output", "nbval-check-ouput", r"tag 'nbval-check-ouput'.*nbval-check-output"),
    "interact": ("sliders(line", "interact(line", r"`interact`.*use sliders"),
    "Output widget": ("print(seed", "widgets.Output(); print(seed", r"`Output`.*use sliders"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_with_its_remedy(tmp_path, fault):
    old, new, says = FAULTS[fault]
    text = first_lesson() + FIGURES
    if fault == "an exercise left out":
        start = text.index("# %% [markdown]\n# Write `router_logits`")
        broken = text[:start] + text[text.index("# %% [markdown]", start + 1) :]
    else:
        broken = re.sub(old, new, text, count=1) if isinstance(old, re.Pattern) else text.replace(old, new, 1)
    assert broken != text
    path = tmp_path / "02_first.py"
    path.write_text(broken, encoding="utf-8")

    with pytest.raises(SourceError, match=says) as error:
        read_lesson(path)

    assert str(error.value).startswith("02_first.py")


def test_a_message_names_the_line_of_the_cell(tmp_path):
    path = tmp_path / "02_first.py"
    text = first_lesson().replace(f'"{ID}"', '"02.no_such"', 1)
    path.write_text(text, encoding="utf-8")
    line = text.splitlines().index('# %% exercise="02.no_such"') + 1

    with pytest.raises(SourceError, match=rf"^02_first.py:{line}:"):
        read_lesson(path)


def test_lessons_come_in_order_with_their_data(course):
    (course / "solutions" / "notes.py").write_text("no lesson")

    first, second = read_lessons(course / "solutions")

    assert (first.name, first.number, second.name) == ("02_first", "02", "90_second")
    assert (first.header.title, first.header.objectives, first.header.minutes) == (
        "The first",
        ["Do this", "Do that"],
        10,
    )
    assert second.text == second_lesson()
