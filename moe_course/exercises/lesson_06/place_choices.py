"""Exercise 06.place_choices: every choice finds its place among the sorted rows, without atomics."""

import torch
from torch import Generator, Tensor

from ..launch import ReferenceKernel, kernel_drive, not_all_written, unwritten
from ..spec import Case, Exercise, Misconception, Property
from . import count_experts
from .inputs import Inputs, Make, ceil_div, flat_choices, kernel, offsets_of, order_of


def spec(expert_ids: Tensor, starts: Tensor, block: int) -> Tensor:
    """order (N,): the number of the choice in each sorted row; an expert's choices stay in their old order."""
    return order_of(expert_ids)


def starts_of(expert_ids: Tensor, num_experts: int, block: int) -> Tensor:
    """starts (B, E): the row in which block b's first choice of expert e goes."""
    counts = count_experts.spec(expert_ids, num_experts, block)
    earlier_blocks = counts.cumsum(0) - counts
    return (offsets_of(expert_ids, num_experts)[:-1] + earlier_blocks).int()


def launch(kernel, expert_ids: Tensor, starts: Tensor, block: int) -> Tensor:
    """One program instance for each block."""
    num_choices, num_experts = len(expert_ids), starts.shape[1]
    order = unwritten(num_choices, dtype=torch.int32)
    grid = (ceil_div(num_choices, block),)
    kernel[grid](expert_ids, starts, order, num_choices, num_experts, BLOCK=block)
    return order


def _stand_in(ids_ptr, starts_ptr, order_ptr, num_choices, num_experts, BLOCK):
    order_ptr.copy_(spec(ids_ptr, starts_ptr, BLOCK))


def _given(expert_ids: Tensor, num_experts: int, block: int) -> Inputs:
    return {"expert_ids": expert_ids, "starts": starts_of(expert_ids, num_experts, block), "block": block}


def _by_hand(generator: Generator) -> Inputs:
    return _given(torch.tensor([2, 0, 1, 2, 2, 1]), 3, 4)


def _choices(num_tokens: int, num_experts: int, top_k: int, block: int, without: tuple[int, ...] = ()) -> Make:
    def make(generator: Generator) -> Inputs:
        return _given(flat_choices(num_tokens, num_experts, top_k, generator, without), num_experts, block)

    return make


def _all_to_one(generator: Generator) -> Inputs:
    return _given(torch.full((20,), 1), 3, 8)


def _no_permutation(inputs: Inputs, output: Tensor) -> str | None:
    missing = not_all_written(output)
    if missing:
        return missing
    present = set(output.tolist())
    absent = [choice for choice in range(len(inputs["expert_ids"])) if choice not in present]
    return f"choice {absent[0]} has no row" if absent else None


PLACE_CHOICES = Exercise(
    id="06.place_choices",
    entry="place_choices",
    title="Every choice finds its row",
    points=3,
    difficulty=3,
    minutes=20,
    hints=(
        "A choice's row is where its block's rows of its expert start, plus how many earlier choices *of the same "
        "block* go to the same expert. The first is in `starts`; the second, the rank, you compute.",
        "For the rank, compare all ids of the block with each other: `ids[:, None] == ids[None, :]` is a (BLOCK, "
        "BLOCK) table. Keep only the lanes before one's own, `lanes[None, :] < lanes[:, None]`, and sum along the row.",
        "`start = tl.load(starts_ptr + block * num_experts + ids, mask=here, other=0)`, "
        "`rank = tl.sum((same & earlier).to(tl.int32), axis=1)`, and "
        "`tl.store(order_ptr + start + rank, choices, mask=here)`: the address is the row, the value the choice.",
    ),
    reference=ReferenceKernel(kernel("place_choices"), spec, _stand_in),
    cases=(
        Case("six choices by hand, blocks of 4", _by_hand),
        Case("two full blocks", _choices(16, 4, 2, 16)),
        Case("a ragged last block", _choices(21, 4, 1, 8)),
        Case("idle first and last expert", _choices(12, 5, 2, 8, without=(0, 4))),
        Case("all choices to one expert", _all_to_one),
        Case("every expert, K = E", _choices(5, 3, 3, 16)),
    ),
    properties=(Property("every choice has a row", _no_permutation),),
    misconceptions=(
        Misconception(
            "later-lanes-first",
            "The choices of an expert come in reverse within a block, so the sort is not stable: you count the lanes "
            "*after* each. A choice's rank is the number of equal ids before it.",
            kernel("place_choices", ("lanes[None, :] < lanes[:, None]", "lanes[None, :] > lanes[:, None]")),
        ),
        Misconception(
            "counts-itself",
            "Each choice counts itself, so all ranks are one too large. The first choice of an expert has rank 0: "
            "compare lanes with `<`, not `<=`.",
            kernel("place_choices", ("lanes[None, :] < lanes", "lanes[None, :] <= lanes")),
        ),
        Misconception(
            "rank-missing",
            "All choices of an expert in one block go to the same row, and overwrite each other. Add the rank: how "
            "many earlier choices of the block have the same expert.",
            kernel("place_choices", ("start + rank", "start")),
        ),
        Misconception(
            "inverse-for-order",
            "You stored, for each choice, the row that it goes to. That is the inverse, which combine will need. "
            "`order` says for each row which choice it holds: the row belongs into the address, the choice is the "
            "value.",
            kernel("place_choices", ("order_ptr + start + rank, choices", "order_ptr + choices, start + rank")),
        ),
        Misconception(
            "lane-for-choice",
            "You stored lane numbers, which start again at 0 in each block. The number of a choice is "
            "`block * BLOCK + lane`.",
            kernel("place_choices", ("start + rank, choices", "start + rank, lanes")),
        ),
        Misconception(
            "starts-of-block-0",
            "Every block starts where block 0 starts, so blocks overwrite each other. Row b of `starts` is yours: "
            "`starts_ptr + block * num_experts + ids`.",
            kernel("place_choices", ("starts_ptr + block * num_experts + ids", "starts_ptr + ids")),
        ),
        Misconception(
            "ids-loaded-without-mask",
            "The last block is ragged, and your load reads past the last id: load with `mask=choices < num_choices`.",
            kernel("place_choices", ("choices, mask=here, other=-1", "choices")),
        ),
        Misconception(
            "by-atomics",
            "Choices take the next free row by an atomic, first come, first served. Nobody says who comes first, so "
            "the sort is not stable, and `starts` is changed on the way. A choice's rank follows from the ids alone.",
            kernel(
                "place_choices",
                ("tl.load(starts_ptr", "tl.atomic_add(starts_ptr"),
                ("ids, mask=here, other=0)", "ids, 1, mask=here)"),
                ("start + rank", "start"),
            ),
        ),
        Misconception(
            "padding-gets-a-row",
            "The lanes past the last choice store as well, over the rows of real ones. Mask the store, not only the "
            "loads.",
            kernel("place_choices", ("choices, mask=here)", "choices)")),
        ),
    ),
    alternatives=(kernel("place_choices"), kernel("place_choices_by_cumsum")),
    drive=kernel_drive(launch),
)
