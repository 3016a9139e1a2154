"""Exercise 08.hybrid_cost: which blocks have experts, and what that costs."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator

from ...layers import TransformerConfig
from ..spec import Case, Exercise, Misconception
from .inputs import Inputs, Make

Cost = tuple[list[int], int, int]


@dataclass(frozen=True)
class _Model:
    """The entry's arguments."""

    num_layers: int
    moe_every: int
    dense_ffn: int
    expert: int
    router: int
    num_experts: int
    top_k: int


def hybrid_cost(
    num_layers: int, moe_every: int, dense_ffn: int, expert: int, router: int, num_experts: int, top_k: int
) -> Cost:
    """The blocks with an MoE layer, and the total and active parameters of all FFNs and MoE layers."""
    config = TransformerConfig(vocab_size=1, num_layers=num_layers, moe_every=moe_every)
    blocks = list(config.moe_blocks)
    dense = (num_layers - len(blocks)) * dense_ffn
    total = dense + len(blocks) * (router + num_experts * expert)
    return blocks, total, dense + len(blocks) * (router + top_k * expert)


def _model(num_layers: int, moe_every: int, num_experts: int = 8, top_k: int = 2) -> Make:
    """A model of drawn widths."""

    def make(generator: Generator) -> Inputs:
        d_model, d_ff = (32 * int(torch.randint(3, 20, (), generator=generator)) for _ in range(2))
        return {
            "num_layers": num_layers,
            "moe_every": moe_every,
            "dense_ffn": 3 * d_model * d_ff * top_k + 64,  # no whole number of experts: each mistake shows
            "expert": 3 * d_model * d_ff,
            "router": d_model * num_experts,
            "num_experts": num_experts,
            "top_k": top_k,
        }

    return make


def _block_by_block(
    num_layers: int, moe_every: int, dense_ffn: int, expert: int, router: int, num_experts: int, top_k: int
) -> Cost:
    blocks, total, active = [], 0, 0
    for i in range(num_layers):
        if moe_every and (i + 1) % moe_every == 0:
            blocks.append(i)
            total, active = total + router + num_experts * expert, active + router + top_k * expert
        else:
            total, active = total + dense_ffn, active + dense_ffn
    return blocks, total, active


def _from_the_pth(layers: int, every: int) -> list[int]:
    """The right blocks."""
    return list(range(every - 1, layers, every)) if every else []


def _from_one(layers: int, every: int) -> list[int]:
    return list(range(every, layers + 1, every)) if every else []


def _where(blocks: Callable[[int, int], list[int]]) -> Callable[..., Cost]:
    """The right costs of the wrong blocks."""
    return _counted(_costs, blocks)


def _counted(
    costs: Callable[[_Model, list[int]], tuple[int, int]],
    blocks: Callable[[int, int], list[int]] = _from_the_pth,
) -> Callable[..., Cost]:
    def wrong(**given: int) -> Cost:
        model = _Model(**given)
        chosen = blocks(model.num_layers, model.moe_every)
        return (chosen, *costs(model, chosen))

    return wrong


def _costs(m: _Model, chosen: list[int]) -> tuple[int, int]:
    fixed = (m.num_layers - len(chosen)) * m.dense_ffn + len(chosen) * m.router
    return fixed + len(chosen) * m.num_experts * m.expert, fixed + len(chosen) * m.top_k * m.expert


def _from_the_first(layers: int, every: int) -> list[int]:
    return list(range(0, layers, every)) if every else []


def _the_others(layers: int, every: int) -> list[int]:
    return [i for i in range(layers) if not every or (i + 1) % every]


HYBRID_COST = Exercise(
    id="08.hybrid_cost",
    entry="hybrid_cost",
    title="Which blocks have experts",
    points=2,
    difficulty=1,
    minutes=10,
    hints=(
        "First the list of blocks. The P-th block is number P − 1, because blocks count from 0; then every P-th after.",
        "`[i for i in range(num_layers) if (i + 1) % moe_every == 0]`, and an empty list for moe_every = 0. All other "
        "blocks have a dense FFN *in place of* the MoE layer.",
        "With n MoE blocks: total = (num_layers − n) · dense_ffn + n · (router + num_experts · expert). For the active "
        "count put top_k in the place of num_experts. A token meets the whole router.",
    ),
    reference=hybrid_cost,
    returns=("moe_blocks", "total", "active"),
    cases=(
        Case("every block of four", _model(4, 1)),
        Case("every second of six", _model(6, 2)),
        Case("every fourth of ten", _model(10, 4)),
        Case("every third of seven, top-1 of 16", _model(7, 3, num_experts=16, top_k=1)),
        Case("the last block alone", _model(5, 5)),
        Case("no block: a dense model", _model(4, 0)),
    ),
    misconceptions=(
        Misconception(
            "counted-from-the-first",
            "Your MoE blocks are 0, P, 2P, …. The P-th block is number P − 1: here, as in most models, a stack of P "
            "blocks begins with dense ones. For P = 2 you swapped the two kinds.",
            _where(_from_the_first),
        ),
        Misconception(
            "dense-and-moe-swapped",
            "You gave every P-th block the dense FFN and experts to all others.",
            _where(_the_others),
        ),
        Misconception(
            "blocks-from-one",
            "Your blocks count from 1. In code the first block is `blocks[0]`, so the P-th is number P − 1.",
            _where(_from_one),
        ),
        Misconception(
            "dense-beside-experts",
            "Your MoE blocks have a dense FFN besides their experts. The MoE layer replaces it.",
            _counted(lambda m, chosen: tuple(c + len(chosen) * m.dense_ffn for c in _costs(m, chosen))),  # type: ignore[arg-type,return-value]
        ),
        Misconception(
            "router-forgotten",
            "The routers are missing. They are small, and every token meets the whole of each.",
            _counted(lambda m, chosen: tuple(c - len(chosen) * m.router for c in _costs(m, chosen))),  # type: ignore[arg-type,return-value]
        ),
        Misconception(
            "all-experts-active",
            "Your active count has all experts in it. A token meets top_k of them.",
            _counted(lambda m, chosen: (_costs(m, chosen)[0],) * 2),
        ),
        Misconception(
            "total-counts-top-k",
            "Your total has only top_k experts in it. The others are idle for a token, but memory holds them all.",
            _counted(lambda m, chosen: (_costs(m, chosen)[1],) * 2),
        ),
        Misconception(
            "router-shared-out",
            "Your active count has top_k / num_experts of the router. All its rows are needed to know which experts "
            "are best.",
            _counted(
                lambda m, chosen: (
                    _costs(m, chosen)[0],
                    _costs(m, chosen)[1] - len(chosen) * (m.router - m.router * m.top_k // m.num_experts),
                )
            ),
        ),
    ),
    alternatives=(_block_by_block,),
)
