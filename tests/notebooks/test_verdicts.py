"""Verdicts are read from any notebook, however malformed."""

import pytest

from moe_course.notebooks.verdicts import SavedVerdict, read_verdicts

ABOUT = {"exercise": "02.route", "status": "failed", "points": 1.5, "max_points": 3, "message": "rows sum to 2"}


def cell(check: object, *abouts: object) -> dict:
    """A check cell with an output for each of `abouts`."""
    outputs = [{"output_type": "display_data", "data": {}, "metadata": {"moe_course": about}} for about in abouts]
    return {"cell_type": "code", "metadata": {"moe_course": {"check": check}}, "outputs": outputs}


def test_verdicts_come_in_order_and_checks_without_output_are_not_run():
    notebook = {"cells": [cell("02.scores"), {"cell_type": "markdown", "metadata": {}}, cell("02.route", ABOUT)]}

    assert read_verdicts(notebook) == [
        SavedVerdict("02.scores", "not run"),
        SavedVerdict("02.route", "failed", 1.5, 3, "rows sum to 2"),
    ]


def test_the_last_verdict_of_an_exercise_counts():
    again = ABOUT | {"status": "passed", "points": 3}

    (verdict,) = read_verdicts({"cells": [cell("02.route", ABOUT), cell("02.route", again)]})

    assert (verdict.status, verdict.points) == ("passed", 3)


@pytest.mark.parametrize(
    "about",
    [
        None,
        [],
        "passed",
        {},
        {"exercise": "02.route"},
        {"exercise": 2, "status": "passed"},
        {"exercise": ["02.route"], "status": "passed"},
        {"exercise": "02.route", "status": ["passed"]},
        {"exercise": "02.route", "status": "excellent"},
    ],
)
def test_an_output_that_holds_no_verdict_counts_as_not_there(about):
    assert read_verdicts({"cells": [cell("02.route", about)]}) == [SavedVerdict("02.route", "not run")]


def test_points_and_message_of_a_wrong_type_are_left_out():
    about = ABOUT | {"points": "all", "max_points": None, "message": None}

    assert read_verdicts({"cells": [cell("02.route", about)]}) == [SavedVerdict("02.route", "failed")]


@pytest.mark.parametrize(
    "notebook",
    [
        None,
        [],
        "notebook",
        {},
        {"cells": None},
        {"cells": {"0": {}}},
        {"cells": [None, "cell", []]},
        {"cells": [{"metadata": None, "outputs": None}]},
        {"cells": [{"metadata": [], "outputs": {}}]},
        {"cells": [{"metadata": {"moe_course": []}, "outputs": ["text"]}]},
        {"cells": [{"metadata": {}, "outputs": [{"metadata": None}, {"metadata": []}]}]},
        {"cells": [cell(7), cell(None), cell(["02.route"])]},
    ],
)
def test_a_malformed_notebook_holds_no_verdicts(notebook):
    assert read_verdicts(notebook) == []
