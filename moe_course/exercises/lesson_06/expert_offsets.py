"""Exercise 06.expert_offsets: where each expert's rows begin, an exclusive running total."""

import torch
from torch import Generator, Tensor

from ..launch import ReferenceKernel, kernel_drive, not_all_written, unwritten
from ..spec import Case, Exercise, Misconception, Property
from .inputs import Inputs, Make, kernel, next_power_of_2


def spec(totals: Tensor) -> Tensor:
    """offsets (E + 1): expert e owns the rows from offsets[e] up to, but without, offsets[e + 1]."""
    return torch.cat([totals.new_zeros(1), totals.cumsum(0)]).int()


def launch(kernel, totals: Tensor) -> Tensor:
    """One program instance does it all: there are few experts."""
    num_experts = len(totals)
    offsets = unwritten(num_experts + 1, dtype=torch.int32)
    kernel[(1,)](totals, offsets, num_experts, EXPERTS=next_power_of_2(num_experts))
    return offsets


def _stand_in(totals_ptr, offsets_ptr, num_experts, EXPERTS):
    offsets_ptr.copy_(spec(totals_ptr))


def _totals(*numbers: int) -> Make:
    return lambda generator: {"totals": torch.tensor(numbers, dtype=torch.int32)}


def _random(num_experts: int) -> Make:
    def make(generator: Generator) -> Inputs:
        return {"totals": torch.randint(0, 9, (num_experts,), generator=generator, dtype=torch.int32)}

    return make


def _unwritten(inputs: Inputs, output: Tensor) -> str | None:
    return not_all_written(output)


EXPERT_OFFSETS = Exercise(
    id="06.expert_offsets",
    entry="expert_offsets",
    title="Where each expert begins",
    points=2,
    difficulty=1,
    minutes=10,
    hints=(
        "With totals 1, 2, 3 the rows of expert 0 begin at 0, those of expert 1 at 1, those of expert 2 at 3. After "
        "all of them comes the total, 6. That makes E + 1 numbers.",
        "`tl.cumsum` is inclusive: it gives 1, 3, 6, where each expert *ends*. Either subtract what each expert has "
        "itself, or store these numbers one place further to the right.",
        "`totals = tl.load(totals_ptr + experts, mask=experts < num_experts, other=0)`. Store "
        "`tl.cumsum(totals, axis=0) - totals` under the same mask, and `tl.sum(totals, axis=0)` at "
        "`offsets_ptr + num_experts`.",
    ),
    reference=ReferenceKernel(kernel("expert_offsets"), spec, _stand_in),
    cases=(
        Case("totals 1, 2, 3, 2", _totals(1, 2, 3, 2)),
        Case("three experts", _totals(4, 1, 2)),
        Case("five experts", _random(5)),
        Case("eight experts", _random(8)),
        Case("first and last expert idle", _totals(0, 3, 5, 0)),
        Case("one expert", _totals(7)),
        Case("no tokens", _totals(0, 0, 0, 0)),
    ),
    properties=(Property("every offset is written", _unwritten),),
    misconceptions=(
        Misconception(
            "inclusive-for-exclusive",
            "Your running total includes the expert itself, so offsets[e] is where expert e *ends*. Its rows begin "
            "where the expert before ends: the total must be exclusive.",
            kernel("expert_offsets", (" - totals, mask", ", mask")),
        ),
        Misconception(
            "last-offset-missing",
            "offsets has E + 1 entries, and the last was never written. It holds the number of all rows: without it, "
            "nobody knows where the last expert ends.",
            kernel("expert_offsets", ("tl.store(offsets_ptr + num_experts, tl.sum(totals, axis=0))", "pass")),
        ),
        Misconception(
            "last-expert-not-added",
            "The last entry repeats where the last expert begins. It is where it ends: the sum of all totals.",
            kernel(
                "expert_offsets",
                (
                    "tl.sum(totals, axis=0))",
                    "tl.sum(tl.where(experts < num_experts - 1, totals, 0), axis=0))",
                ),
            ),
        ),
        Misconception(
            "totals-loaded-without-mask",
            "A block has EXPERTS lanes, a power of two. With three experts the fourth lane reads past the end of "
            "`totals`: load with a mask, and 0 for what is missing.",
            kernel("expert_offsets", (", mask=experts < num_experts, other=0)", ")")),
        ),
        Misconception(
            "offsets-stored-without-mask",
            "The lanes above num_experts store as well, past the end of `offsets`. Mask the store too, not only the "
            "load.",
            kernel("expert_offsets", ("- totals, mask=experts < num_experts)", "- totals)")),
        ),
        Misconception(
            "no-running-total",
            "You stored how many rows each expert has. Where they begin is the running total of those before: "
            "`tl.cumsum`.",
            kernel("expert_offsets", ("tl.cumsum(totals, axis=0) - totals", "totals")),
        ),
    ),
    alternatives=(kernel("expert_offsets"), kernel("expert_offsets_shifted")),
    drive=kernel_drive(launch),
)
