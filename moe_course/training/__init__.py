"""Training on text that every machine has: an offline corpus and a small, honest loop."""

from moe_course.training.corpora import Characters, draw_batches, python_docs, windows
from moe_course.training.loop import Curve, train

__all__ = ["Characters", "Curve", "draw_batches", "python_docs", "train", "windows"]
