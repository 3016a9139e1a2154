"""Exercises of lesson 07, expert capacity: one file each, in the lesson's order."""

from .capacity_slots import CAPACITY_SLOTS
from .capped_experts import CAPPED_EXPERTS
from .drop_in_groups import DROP_IN_GROUPS
from .expected_drop_rate import EXPECTED_DROP_RATE
from .expert_capacity import EXPERT_CAPACITY
from .place_by_score import PLACE_BY_SCORE
from .position_in_expert import POSITION_IN_EXPERT
from .slot_usage import SLOT_USAGE

EXERCISES = (
    EXPERT_CAPACITY,
    POSITION_IN_EXPERT,
    SLOT_USAGE,
    EXPECTED_DROP_RATE,
    CAPACITY_SLOTS,
    CAPPED_EXPERTS,
    PLACE_BY_SCORE,
    DROP_IN_GROUPS,
)
