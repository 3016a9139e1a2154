"""Training on text that every machine has: an offline corpus, a small, honest loop, a monitor of experts."""

from moe_course.training.corpora import Characters, draw_batches, python_docs, windows
from moe_course.training.loop import Curve, train
from moe_course.training.monitor import ExpertMonitor, LayerLoad

__all__ = ["Characters", "Curve", "ExpertMonitor", "LayerLoad", "draw_batches", "python_docs", "train", "windows"]
