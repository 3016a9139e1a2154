"""A small quiz: radio buttons with feedback, no Output widget and nothing loaded from the net."""

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from IPython.display import display

from moe_course.figures.interactive import _widget_bundle

# ipywidgets gives a radio button's label one line and lets a longer one spill over.
STYLE = """<style>
.moe-quiz .widget-radio-box label { display: flex; flex-direction: row-reverse; justify-content: flex-end;
  align-items: flex-start; gap: 0.5em; height: auto; margin: 2px 0; line-height: 18px; white-space: normal; }
.moe-quiz .widget-radio-box input { flex: none; align-self: flex-start; height: 13px; margin: 2.5px 0; top: 0; }
.moe-quiz .widget-radio, .moe-quiz .widget-radio-box { height: auto; max-width: 100%; margin-bottom: 0; }
</style>"""


@dataclass(frozen=True)
class Question:
    """One question with one right answer.

    Args:
        text: the question. `Code` stands between backticks, here and in the other texts.
        options: the answers offered, in plain text.
        answer: index of the right one.
        why: the reason the right one is right; or one remark for each option, shown when it is chosen.
    """

    text: str
    options: Sequence[str]
    answer: int
    why: str | Sequence[str]

    def __post_init__(self) -> None:
        if not 0 <= self.answer < len(self.options):
            raise ValueError(f"answer={self.answer} is none of {len(self.options)} options; count from 0")
        if not isinstance(self.why, str) and len(self.why) != len(self.options):
            raise ValueError(
                f"{len(self.why)} remarks for {len(self.options)} options; give one for each, or one string"
            )

    def remark(self, option: int) -> str:
        """What to say to a reader who chose `option`."""
        return self.why if isinstance(self.why, str) else self.why[option]


def quiz(*questions: Question) -> None:
    """Display `questions`; each answer is judged as soon as it is chosen, and may be changed."""
    bundle = _widget_bundle(build_quiz(*questions))
    display(bundle | {"text/html": _static_html(questions), "text/plain": _static_text(questions)}, raw=True)


def build_quiz(*questions: Question) -> Any:
    """Return the widget that `quiz` displays."""
    import ipywidgets as widgets

    panel = widgets.VBox([widgets.HTML(STYLE), *(_question(*numbered) for numbered in enumerate(questions, 1))])
    panel.add_class("moe-quiz")
    return panel


def _question(number: int, question: Question) -> Any:
    import ipywidgets as widgets

    text = widgets.HTML(
        f'<div style="line-height: 1.5"><b>{number}.</b> {_inline(question.text)}</div>', layout={"width": "auto"}
    )
    radio = widgets.RadioButtons(
        options=[(option.replace("`", ""), index) for index, option in enumerate(question.options)],
        value=None,
        layout={"width": "auto", "margin": "0 0 0 1.2em"},
    )
    feedback = widgets.HTML(layout={"width": "auto", "margin": "0 0 0.4em 1.2em"})

    def judge(change: Any) -> None:
        if change["new"] is not None:
            feedback.value = _feedback_html(question, change["new"])

    radio.observe(judge, names="value")
    return widgets.VBox([text, radio, feedback], layout={"width": "100%"})


def _feedback_html(question: Question, chosen: int) -> str:
    right = chosen == question.answer
    colour, verdict = ("#00966b", "✓ Right.") if right else ("#d9600d", "✗ Not this one.")
    return (
        f'<div style="border-left: 4px solid {colour}; padding: 2px 10px; line-height: 1.5">'
        f'<b style="color: {colour}">{verdict}</b> {_inline(question.remark(chosen))}</div>'
    )


def _static_html(questions: Sequence[Question]) -> str:
    return "\n".join(
        f"<p><b>{number}.</b> {_inline(question.text)}</p>\n<ol type='a'>"
        + "".join(f"<li>{_inline(option)}</li>" for option in question.options)
        + f"</ol>\n<details><summary>Answer</summary>{_inline(question.options[question.answer])}: "
        + f"{_inline(question.remark(question.answer))}</details>"
        for number, question in enumerate(questions, 1)
    )


def _static_text(questions: Sequence[Question]) -> str:
    return "\n".join(
        f"{number}. {question.text}\n"
        + "\n".join(f"   {letter}) {option}" for letter, option in zip("abcdefgh", question.options, strict=False))
        for number, question in enumerate(questions, 1)
    )


def _inline(text: str) -> str:
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text))
