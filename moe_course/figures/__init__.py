"""Figures of the lessons: one style, pure functions from tensors to plotly figures, thin widgets around them."""

from moe_course.figures.interactive import show, sliders
from moe_course.figures.quiz import Question, quiz
from moe_course.figures.style import expert_colour

__all__ = ["Question", "expert_colour", "quiz", "show", "sliders"]
