"""Exercises of lesson 03, the expert layer: one file each, in the lesson's order."""

from .combine_choices import COMBINE_CHOICES
from .my_moe_layer import MY_MOE_LAYER
from .one_hot_slots import ONE_HOT_SLOTS
from .run_experts import RUN_EXPERTS
from .sort_choices import SORT_CHOICES
from .visit_experts import VISIT_EXPERTS

EXERCISES = (RUN_EXPERTS, VISIT_EXPERTS, ONE_HOT_SLOTS, SORT_CHOICES, COMBINE_CHOICES, MY_MOE_LAYER)
