"""Exercise 06.count_experts: a histogram of expert ids for each block of choices."""

import torch
from torch import Generator, Tensor

from ..launch import ReferenceKernel, kernel_drive, not_all_written, unwritten
from ..spec import Case, Exercise, Misconception, Property
from .inputs import Inputs, Make, ceil_div, flat_choices, kernel, next_power_of_2


def spec(expert_ids: Tensor, num_experts: int, block: int) -> Tensor:
    """counts (B, E): row b counts choices b·block to b·block + block − 1."""
    return torch.stack([part.bincount(minlength=num_experts) for part in expert_ids.split(block)]).int()


def launch(kernel, expert_ids: Tensor, num_experts: int, block: int) -> Tensor:
    """One program instance for each block."""
    num_choices = len(expert_ids)
    blocks = ceil_div(num_choices, block)
    counts = unwritten(blocks, num_experts, dtype=torch.int32)
    experts = next_power_of_2(num_experts)
    kernel[(blocks,)](expert_ids, counts, num_choices, num_experts, BLOCK=block, EXPERTS=experts)
    return counts


def _stand_in(ids_ptr, counts_ptr, num_choices, num_experts, BLOCK, EXPERTS):
    counts_ptr.copy_(spec(ids_ptr, num_experts, BLOCK))


def _by_hand(generator: Generator) -> Inputs:
    return {"expert_ids": torch.tensor([2, 0, 1, 2, 2, 1]), "num_experts": 4, "block": 4}


def _choices(num_tokens: int, num_experts: int, top_k: int, block: int, without: tuple[int, ...] = ()) -> Make:
    def make(generator: Generator) -> Inputs:
        expert_ids = flat_choices(num_tokens, num_experts, top_k, generator, without)
        return {"expert_ids": expert_ids, "num_experts": num_experts, "block": block}

    return make


def _unwritten(inputs: Inputs, output: Tensor) -> str | None:
    return not_all_written(output)


COUNT_EXPERTS = Exercise(
    id="06.count_experts",
    entry="count_experts",
    title="Count, block by block",
    points=2,
    difficulty=2,
    minutes=15,
    hints=(
        "Three steps: load the ids of your block, count, store E numbers. Program instance b owns the choices from "
        "b·BLOCK on and row b of `counts`. `tl.arange(0, BLOCK)` gives the lanes of a block.",
        "The last block may be ragged, so its load needs a mask. What should the missing lanes hold, so that they "
        "count for nobody? To count without a loop, compare all ids with all experts: a (BLOCK, EXPERTS) table of true "
        "and false, summed over the ids.",
        "`ids = tl.load(ids_ptr + choices, mask=choices < num_choices, other=-1)`, then "
        "`tl.sum((ids[:, None] == experts[None, :]).to(tl.int32), axis=0)`. The store starts at "
        "`counts_ptr + block * num_experts` and masks out `experts >= num_experts`.",
    ),
    reference=ReferenceKernel(kernel("count_experts"), spec, _stand_in),
    cases=(
        Case("six choices by hand, blocks of 4", _by_hand),
        Case("two full blocks", _choices(16, 4, 2, 16)),
        Case("a ragged last block", _choices(21, 4, 1, 8)),
        Case("expert 0 idle, ragged", _choices(9, 4, 2, 16, without=(0,))),
        Case("five experts, three blocks", _choices(24, 5, 2, 16)),
        Case("one expert", _choices(9, 1, 1, 8)),
        Case("fewer choices than a block", _choices(3, 4, 1, 16)),
    ),
    properties=(Property("every count is written", _unwritten),),
    misconceptions=(
        Misconception(
            "padding-counted-for-expert-0",
            "The lanes past the last choice count for expert 0. A masked load fills them with `other`: give it a value "
            "that is no expert, such as -1.",
            kernel("count_experts", ("other=-1", "other=0")),
        ),
        Misconception(
            "ids-loaded-without-mask",
            "The last block is ragged, and your load reads past the last id. What lies there is another tensor's, or "
            "nobody's: load with `mask=choices < num_choices`.",
            kernel("count_experts", (", mask=choices < num_choices, other=-1", "")),
        ),
        Misconception(
            "counts-stored-without-mask",
            "EXPERTS is the number of experts rounded up to a power of two. Without a mask on the store, the lanes "
            "above num_experts write into the next block's row, and past the end.",
            kernel("count_experts", (", mask=experts < num_experts)", ")")),
        ),
        Misconception(
            "all-blocks-in-one-row",
            "All program instances store to row 0, so one overwrites the other. Instance b owns row b: the store "
            "starts at `counts_ptr + block * num_experts`.",
            kernel("count_experts", ("counts_ptr + block * num_experts + experts", "counts_ptr + experts")),
        ),
        Misconception(
            "rounded-row-length",
            "Your rows are EXPERTS long. The tensor's rows hold num_experts numbers; EXPERTS is only how many lanes a "
            "block has.",
            kernel("count_experts", ("block * num_experts", "block * EXPERTS")),
        ),
        Misconception(
            "every-instance-counts-block-0",
            "Every program instance counts the first block. Which choices are yours follows from "
            "`tl.program_id(0) * BLOCK`.",
            kernel("count_experts", ("block * BLOCK + tl.arange", "tl.arange")),
        ),
        Misconception(
            "counts-added-over-blocks",
            "Row b counts all choices up to block b. It is to count those of block b alone; adding up comes later.",
            lambda expert_ids, num_experts, block: spec(expert_ids, num_experts, block).cumsum(0).int(),
        ),
    ),
    alternatives=(kernel("count_experts"), kernel("count_experts_by_histogram")),
    drive=kernel_drive(launch),
)
