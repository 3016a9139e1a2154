"""Training on text that every machine has: an offline corpus, a small, honest loop, a monitor of experts."""

from moe_course.training.accumulation import StepLoss, accumulate
from moe_course.training.checkpointing import CheckpointedMoELayer, checkpoint_experts, saved_for_backward
from moe_course.training.corpora import Characters, draw_batches, python_docs, windows
from moe_course.training.domains import Corpus, Domain, encode_domains, evaluate_domains, text_domains
from moe_course.training.language_model import LanguageModelLoss, language_model_loss
from moe_course.training.loop import Curve, train
from moe_course.training.monitor import ExpertMonitor, LayerLoad
from moe_course.training.step_profile import Cost, profile_step, profile_steps
from moe_course.training.tokenizer import BPETokenizer, ByteTokenizer, train_bpe
from moe_course.training.trainer import History, Trainer, rise_and_fall

__all__ = [
    "BPETokenizer",
    "ByteTokenizer",
    "Characters",
    "CheckpointedMoELayer",
    "Corpus",
    "Cost",
    "Curve",
    "Domain",
    "ExpertMonitor",
    "History",
    "LanguageModelLoss",
    "LayerLoad",
    "StepLoss",
    "Trainer",
    "accumulate",
    "checkpoint_experts",
    "draw_batches",
    "encode_domains",
    "evaluate_domains",
    "language_model_loss",
    "profile_step",
    "profile_steps",
    "python_docs",
    "rise_and_fall",
    "saved_for_backward",
    "text_domains",
    "train",
    "train_bpe",
    "windows",
]
