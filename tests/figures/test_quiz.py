"""The quiz judges as soon as an answer is chosen and reads without a kernel."""

from importlib import import_module
from typing import Any

import pytest

from moe_course.figures import Question, quiz
from moe_course.figures.quiz import build_quiz

QUESTION = Question("Is `E` < 9?", ["yes, `E` is 8", "no"], 0, ["Right: `E` = 8.", "Count again."])


def test_each_choice_gets_its_own_remark() -> None:
    radio, feedback = _parts(build_quiz(QUESTION))
    assert feedback.value == ""
    radio.value = 1
    assert "✗" in feedback.value and "Count again." in feedback.value
    radio.value = 0
    assert "✓" in feedback.value and "<code>E</code> = 8" in feedback.value


def test_one_reason_serves_every_choice() -> None:
    radio, feedback = _parts(build_quiz(Question("?", ["a", "b"], 1, "b is second")))
    for choice in (0, 1):
        radio.value = choice
        assert "b is second" in feedback.value


def test_without_a_kernel_the_answer_is_folded_away(monkeypatch) -> None:
    shown: list[dict[str, Any]] = []
    module = import_module("moe_course.figures.quiz")  # the package's `quiz` is the function
    monkeypatch.setattr(module, "display", lambda bundle, raw: shown.append(bundle))
    quiz(QUESTION)
    page = shown[0]["text/html"]
    assert "Is <code>E</code> &lt; 9?" in page
    assert page.index("<details>") < page.index("Right:")
    assert "a) yes, `E` is 8" in shown[0]["text/plain"]


@pytest.mark.parametrize(("answer", "why"), [(2, "x"), (-1, "x"), (0, ["only one"])])
def test_question_that_cannot_be_answered_is_refused(answer, why) -> None:
    with pytest.raises(ValueError, match="options"):
        Question("?", ["a", "b"], answer, why)


def _parts(panel: Any) -> tuple[Any, Any]:
    _, radio, feedback = panel.children[1].children
    return radio, feedback
