"""Exercises of lesson 06, the Triton dispatch kernel: one file each, in the lesson's order."""

from .combine_rows import COMBINE_ROWS
from .count_experts import COUNT_EXPERTS
from .expert_offsets import EXPERT_OFFSETS
from .expert_tile import EXPERT_TILE
from .gather_rows import GATHER_ROWS
from .place_choices import PLACE_CHOICES
from .tile_map import TILE_MAP
from .tiled_experts import TILED_EXPERTS

EXERCISES = (
    COUNT_EXPERTS,
    EXPERT_OFFSETS,
    PLACE_CHOICES,
    GATHER_ROWS,
    EXPERT_TILE,
    TILE_MAP,
    COMBINE_ROWS,
    TILED_EXPERTS,
)
