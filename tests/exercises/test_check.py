"""Whatever a learner hands to `check`, it answers with a sentence, never with a traceback, and never hangs."""

import dataclasses
import time

import pytest
import torch
from torch import nn

from moe_course.exercises import Case, Exercise, call_module, check
from moe_course.exercises.checking import evaluate
from moe_course.exercises.show import verdict_html, verdict_text
from tests.exercises.conftest import reference


def say(exercise, answer):
    verdict = evaluate(exercise, answer, 0)
    assert verdict.status == "failed"
    assert verdict.points < exercise.points
    return verdict_text(verdict)


def test_right_answer_comes_back_itself(exercise, capsys):
    def toy_route(logits, top_k):
        return reference(logits, top_k)

    assert check(toy_route) is toy_route
    assert "all checks pass, 10 of 10 points" in capsys.readouterr().out


def test_wrong_answer_is_replaced_and_diagnosed(exercise, capsys):
    def toy_route(logits, top_k):
        return tuple(logits.softmax(-1).topk(top_k, -1))

    assert check(toy_route) is exercise.reference
    said = capsys.readouterr().out
    assert "Diagnosis: The `weights` do not sum to 1." in said
    assert "reference implementation until yours passes" in said
    assert "tiny: a row sums to" in said


def test_reference_handed_out_before_earns_nothing(exercise, monkeypatch, capsys):
    def toy_route(logits, top_k):
        return None

    monkeypatch.setattr(exercise.reference, "__name__", "toy_route")
    again = check(check(toy_route))
    assert again is exercise.reference
    said = capsys.readouterr().out
    assert "is the reference, not yours" in said and "all checks pass" not in said


def test_stub_is_not_attempted(exercise, capsys):
    def toy_route(logits, top_k):
        raise NotImplementedError

    assert check(toy_route) is exercise.reference
    assert "not attempted" in capsys.readouterr().out


def test_misconception_with_another_slip_is_still_named(exercise):
    def slip(logits, top_k):
        if logits.dtype == torch.bfloat16:
            raise RuntimeError("no bf16 here")
        return tuple(logits.softmax(-1).topk(top_k, -1))

    assert evaluate(exercise, slip, 0).misconception.id == "not-renormalised"


def test_lost_gradient_is_named(exercise):
    said = say(exercise, lambda logits, top_k: tuple(part.detach() for part in reference(logits, top_k)))
    assert "no gradient reaches logits" in said and "The router gets no gradient." in said


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (lambda logits, top_k: None, "is a `return` missing?"),
        (lambda logits, top_k: (None, None), "weights is None"),
        (lambda logits, top_k: 3, "returned one int; expected weights, expert_ids"),
        (lambda logits, top_k: "route", "returned one str; expected weights, expert_ids"),
        (lambda logits, top_k: reference, "returned one function"),
        (lambda logits, top_k: (1.0, 2), "weights is a float; expected a tensor of shape (3, 2)"),
        (lambda logits, top_k: reference(logits, 1), "weights has shape (3, 1); expected (3, 2)"),
        (
            lambda logits, top_k: (reference(logits, 2)[0].double(), reference(logits, 2)[1]),
            "weights has dtype float64; expected float32",
        ),
        (
            lambda logits, top_k: (reference(logits, 2)[0] * float("nan"), reference(logits, 2)[1]),
            "6 of 6 values are NaN, first at [0, 0]",
        ),
        (lambda logits: logits, "TypeError"),
        (lambda logits, top_k: exit(), "SystemExit"),
        (lambda logits, top_k: [[[[[[[[logits]]]]]]]], "returned one list"),
    ],
)
def test_wrong_kinds_of_answer(exercise, answer, expected):
    assert expected in say(exercise, answer)


def test_exception_shows_the_learners_own_line(exercise):
    def toy_route(logits, top_k):
        return torch.cat([logits, top_k])  # the faulty line

    said = say(exercise, toy_route)
    assert "TypeError" in said and "# the faulty line" in said and "observe.py" not in said


def test_exception_that_cannot_be_printed(exercise):
    class Nasty(Exception):
        def __str__(self):
            raise RuntimeError

    def toy_route(logits, top_k):
        raise Nasty

    assert "Nasty" in say(exercise, toy_route)


def test_change_of_inputs_is_told(exercise):
    def toy_route(logits, top_k):
        logits += 1
        return reference(logits, top_k)

    said = say(exercise, toy_route)
    assert "logits was modified in place" in said


def test_random_answer_is_told(exercise):
    said = say(exercise, lambda logits, top_k: reference(logits + torch.randn_like(logits), top_k))
    assert "a second call with the same inputs gave another answer" in said


def test_stateful_answer_is_told(exercise):
    calls = []

    def toy_route(logits, top_k):
        calls.append(1)
        return reference(logits * len(calls), top_k)

    assert "keep something between calls" in say(exercise, toy_route)


def test_check_leaves_the_learners_random_state_alone(exercise):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    evaluate(exercise, lambda logits, top_k: torch.rand(3), 0)
    assert torch.equal(torch.rand(3), expected)


def _forever(logits, top_k):
    while True:
        pass


def _forever_deaf(logits, top_k):
    while True:
        try:  # noqa: SIM105  what a learner would write
            time.sleep(1)
        except BaseException:
            pass


@pytest.mark.parametrize("answer", [_forever, _forever_deaf])
def test_endless_loop_is_stopped(exercise, answer, monkeypatch):
    monkeypatch.setattr("moe_course.exercises.observe.TIME_LIMIT", 0.3)
    started = time.monotonic()
    said = say(exercise, answer)
    assert time.monotonic() - started < 8
    assert "stopped after the time limit" in said and "a loop that never ends" in said


def test_flood_of_prints_is_kept_short(exercise):
    def toy_route(logits, top_k):
        print("x" * 10**6)
        return reference(logits, top_k)

    verdict = evaluate(exercise, toy_route, 0)
    assert verdict.passed and 0 < len(verdict.printed) <= 4000


@pytest.mark.parametrize("answer", [3, None, "toy_route", torch.ones(2), torch.relu])
def test_not_an_exercise(answer, capsys):
    assert check(answer) is answer
    said = capsys.readouterr().out
    assert "check(route)" in said or "There is no exercise named" in said


def test_html_escapes_what_the_learner_wrote(exercise):
    def toy_route(logits, top_k):
        raise ValueError("<script>alert(1)</script>")

    page = verdict_html(evaluate(exercise, toy_route, 0))
    assert "<script>" not in page and "&lt;script&gt;" in page
    assert "<code>hint</code>" in page and "Hint 3 of 3" in page


def test_under_nbgrader_an_unsolved_exercise_raises(exercise, monkeypatch):
    def toy_route(logits, top_k):
        raise NotImplementedError

    monkeypatch.setenv("NBGRADER_EXECUTION", "autograde")
    with pytest.raises(AssertionError, match="not attempted"):
        check(toy_route)


class Scale(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(size))

    def forward(self, x):
        return x * self.factor


class Unnamed(Scale):
    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.bias = nn.Parameter(torch.ones(size))


class TooWide(Scale):
    def __init__(self, size: int) -> None:
        super().__init__(size + 1)


class Doubled(Scale):
    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (Unnamed, "the module's parameters are named bias, factor; the exercise asks for factor"),
        (TooWide, "parameter factor has shape (4,); the exercise asks for (3,)"),
        (Doubled, "values are wrong"),
        (lambda size: 3, "must be a class that inherits from nn.Module"),
    ],
)
def test_module_exercise(answer, expected):
    exercise = Exercise(
        id="99.Scale",
        entry="Scale",
        title="A module",
        points=2,
        difficulty=1,
        minutes=1,
        hints=("", "", ""),
        reference=Scale,
        cases=(
            Case(
                "tiny",
                lambda generator: {
                    "init": {"size": 3},
                    "state": {"factor": torch.randn(3, generator=generator)},
                    "x": torch.randn(2, 3, generator=generator),
                },
                grad=("x", "state.factor"),
            ),
        ),
        misconceptions=(),
        alternatives=(),
        drive=call_module,
    )
    assert evaluate(exercise, Scale, 0).passed
    assert expected in say(exercise, answer)


@pytest.mark.parametrize(
    ("factor", "expected"), [(2.0, "output is 12; expected 6"), (float("nan"), "output is NaN; expected 6")]
)
def test_wrong_tensor_without_dimensions_is_shown_as_a_number(exercise, factor, expected):
    total = dataclasses.replace(
        exercise,
        reference=lambda x: x.sum(),
        cases=(Case("1 + 2 + 3", lambda generator: {"x": torch.tensor([1.0, 2.0, 3.0])}),),
        misconceptions=(),
        properties=(),
        returns=(),
    )
    assert expected in say(total, lambda x: factor * x.sum())


def test_answer_with_no_right_value_gets_no_points_for_its_manners(exercise):
    nothing = evaluate(dataclasses.replace(exercise, properties=()), lambda logits, top_k: None, 0)
    assert nothing.status == "failed" and nothing.points == 0
    assert "is a `return` missing?" in nothing.message
