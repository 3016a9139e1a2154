"""Exercise 01.moe_cost: what an MoE layer weighs, what one token uses of it, and what a batch costs."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Generator

from ...layers import ffn_parameters
from ...layers.ffn import Activation
from ..spec import Case, Exercise, Misconception
from .inputs import Inputs, Make, draw

Cost = tuple[float, float, float]


def moe_cost(
    tokens: int, d_model: int, d_ff: int, num_experts: int, top_k: int, num_shared: int, activation: Activation
) -> Cost:
    """Total parameters, active parameters and forward FLOPs of one MoE layer."""
    expert = ffn_parameters(d_model, d_ff, activation)
    router = num_experts * d_model
    active = router + (top_k + num_shared) * expert
    return router + (num_experts + num_shared) * expert, active, 2 * tokens * active


def _idle_experts_taken_off(
    tokens: int, d_model: int, d_ff: int, num_experts: int, top_k: int, num_shared: int, activation: Activation
) -> Cost:
    expert = (3 if activation == "swiglu" else 2) * d_model * d_ff
    total = num_experts * (d_model + expert) + num_shared * expert
    active = total - (num_experts - top_k) * expert
    return total, active, 2 * tokens * active


def _flops_part_by_part(
    tokens: int, d_model: int, d_ff: int, num_experts: int, top_k: int, num_shared: int, activation: Activation
) -> Cost:
    matrices = [(d_ff, d_model)] * (2 if activation == "swiglu" else 1) + [(d_model, d_ff)]
    expert = sum(rows * columns for rows, columns in matrices)
    routing_flops = 2 * tokens * d_model * num_experts
    expert_flops = 2 * tokens * expert * (top_k + num_shared)
    fixed = d_model * num_experts + num_shared * expert
    return fixed + num_experts * expert, fixed + top_k * expert, routing_flops + expert_flops


@dataclass(frozen=True)
class _Layer:
    """What wrong answers are made of: parameters of one expert and of the router, and how many there are."""

    tokens: int
    expert: int
    router: int
    router_row: int
    E: int
    K: int
    S: int

    @property
    def total(self) -> int:
        return self.router + (self.E + self.S) * self.expert

    @property
    def active(self) -> int:
        return self.router + (self.K + self.S) * self.expert

    def cost(self, total: float | None = None, active: float | None = None, flops: float | None = None) -> Cost:
        """A cost with the given parts; the others right, FLOPs as they follow from the active parameters."""
        active = self.active if active is None else active
        flops = 2 * self.tokens * active if flops is None else flops
        return self.total if total is None else total, active, flops


def _wrong(cost: Callable[[_Layer], Cost]) -> Callable[..., Cost]:
    def wrong(
        tokens: int, d_model: int, d_ff: int, num_experts: int, top_k: int, num_shared: int, activation: Activation
    ) -> Cost:
        expert = ffn_parameters(d_model, d_ff, activation)
        return cost(_Layer(tokens, expert, num_experts * d_model, d_model, num_experts, top_k, num_shared))

    return wrong


def _drawn(num_experts: int, top_k: int, num_shared: int, activation: Activation, tokens: tuple[int, int]) -> Make:
    def make(generator: Generator) -> Inputs:
        return {
            "tokens": draw(generator, *tokens),
            "d_model": 64 * draw(generator, 2, 12),
            "d_ff": 64 * draw(generator, 12, 30),
            "num_experts": num_experts,
            "top_k": top_k,
            "num_shared": num_shared,
            "activation": activation,
        }

    return make


def _small(generator: Generator) -> Inputs:
    sizes = {"d_model": 2, "d_ff": 3, "num_experts": 4, "top_k": 2, "num_shared": 0}
    return {"tokens": 1, **sizes, "activation": "gelu"}


MOE_COST = Exercise(
    id="01.moe_cost",
    entry="moe_cost",
    title="What an MoE layer costs",
    points=3,
    difficulty=2,
    minutes=12,
    hints=(
        "Ask of each part two questions: how many are stored, and how many does one token go through? The parts are "
        "the router, the E routed experts and the shared experts.",
        "The router is a (E, D) matrix, and every token meets all of it: it has to score all experts before it can "
        "choose. Shared experts see every token, in addition to the K chosen ones.",
        "Let P be the parameters of one expert, from `ffn_cost`. total = E·D + (E + S)·P; active = E·D + (K + S)·P; "
        "flops = 2 · tokens · active.",
    ),
    reference=moe_cost,
    returns=("total", "active", "flops"),
    cases=(
        Case("four small experts, top-2, one token", _small),
        Case("8 experts, top-2 (Mixtral's form)", _drawn(8, 2, 0, "swiglu", (100, 900))),
        Case("64 experts, top-8 (OLMoE's form)", _drawn(64, 8, 0, "swiglu", (100, 900))),
        Case("32 experts, top-4, one shared", _drawn(32, 4, 1, "swiglu", (100, 900))),
        Case("GELU, 16 experts, top-1, two shared", _drawn(16, 1, 2, "gelu", (100, 900))),
        Case("every expert, K = E", _drawn(4, 4, 0, "gelu", (100, 900))),
        Case("no tokens", _drawn(8, 2, 1, "gelu", (0, 1))),
    ),
    misconceptions=(
        Misconception(
            "moe-saves-memory",
            "Your total holds only the K experts that one token uses. All E must be stored: the next token may want "
            "any of them. An MoE layer saves compute, not memory.",
            _wrong(lambda m: m.cost(total=m.active)),
        ),
        Misconception(
            "k-forgotten",
            "You counted one active expert. Each token goes through K of them.",
            _wrong(lambda m: m.cost(active=m.router + (1 + m.S) * m.expert)),
        ),
        Misconception(
            "scaled-by-k-over-e",
            "You scaled the whole layer by K/E. That holds for the routed experts only: the router and the shared "
            "experts serve every token in full.",
            _wrong(lambda m: m.cost(active=m.total * m.K / m.E)),
        ),
        Misconception(
            "router-forgotten",
            "You left out the router, a matrix of E·D numbers that every token is multiplied by.",
            _wrong(lambda m: m.cost(m.total - m.router, m.active - m.router, 2 * m.tokens * (m.active - m.router))),
        ),
        Misconception(
            "router-of-k-rows",
            "You counted only K rows of the router as active. To choose K experts it must score all E, so every row "
            "is used for every token.",
            _wrong(lambda m: m.cost(active=m.active - m.router + m.K * m.router_row)),
        ),
        Misconception(
            "router-without-flops",
            "Your parameters are right, but the router's product is missing from the FLOPs: 2·D·E for each token.",
            _wrong(lambda m: m.cost(flops=2 * m.tokens * (m.active - m.router))),
        ),
        Misconception(
            "shared-among-the-k",
            "Your active count has K experts in all. Shared experts come on top: each token uses K routed ones and "
            "every shared one.",
            _wrong(lambda m: m.cost(active=m.active - m.S * m.expert)),
        ),
        Misconception(
            "shared-forgotten",
            "You left out the shared experts. They are stored, and used by every token.",
            _wrong(lambda m: m.cost(total=m.total - m.S * m.expert, active=m.active - m.S * m.expert)),
        ),
        Misconception(
            "all-experts-compute",
            "Your FLOPs let every token through every expert. That is the dense way; routing is there to avoid it. "
            "Use the active parameters.",
            _wrong(lambda m: m.cost(flops=2 * m.tokens * m.total)),
        ),
        Misconception(
            "multiply-add-as-one",
            "Your FLOPs are half of what they should be: a multiply-add is 2 FLOPs.",
            _wrong(lambda m: m.cost(flops=m.tokens * m.active)),
        ),
        Misconception(
            "flops-of-one-token",
            "Your FLOPs do not depend on the number of tokens. Each token does this work.",
            _wrong(lambda m: m.cost(flops=2 * m.active)),
        ),
    ),
    alternatives=(_idle_experts_taken_off, _flops_part_by_part),
)
