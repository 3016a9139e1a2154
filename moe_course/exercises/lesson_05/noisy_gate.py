"""Exercise 05.NoisyGate: the whole router as a module, with the smooth load that its loss needs."""

from collections.abc import Callable

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from ...layers import kth_excluding, noisy_top_k_routing, smooth_load
from ..drive import call_module
from ..spec import Case, Exercise, Misconception, Property
from .inputs import Inputs, Make, spread

Output = tuple[Tensor, Tensor, Tensor]


class NoisyGate(nn.Module):
    """A noisy top-k router: x (T, D) and noise (T, E) to weights (T, K), expert_ids (T, K) and smooth load (E,)."""

    def __init__(self, d_model: int, num_experts: int, top_k: int) -> None:
        super().__init__()
        self.top_k = top_k
        self.w_gate = nn.Parameter(torch.zeros(num_experts, d_model))
        self.w_noise = nn.Parameter(torch.zeros(num_experts, d_model))

    def forward(self, x: Tensor, noise: Tensor) -> Output:
        clean, scale = x @ self.w_gate.T, F.softplus(x @ self.w_noise.T)
        routing = noisy_top_k_routing(clean, scale, self.top_k, noise if self.training else None)
        return routing.weights, routing.expert_ids, smooth_load(routing)


def _gate(num_tokens: int, num_experts: int, top_k: int, training: bool = True) -> Make:
    """Tokens and a gate that has learnt something; no two noisy logits of a token are close."""

    def make(generator: Generator) -> Inputs:
        noisy_logits = spread(num_tokens, num_experts, generator=generator)
        x = torch.randn(num_tokens, 4, generator=generator)
        w_gate = torch.randn(num_experts, 4, generator=generator)
        w_noise = 0.3 * torch.randn(num_experts, 4, generator=generator)
        noise = (noisy_logits - x @ w_gate.T) / F.softplus(x @ w_noise.T)
        return {
            "init": {"d_model": 4, "num_experts": num_experts, "top_k": top_k},
            "state": {"w_gate": w_gate, "w_noise": w_noise},
            "training": training,
            "x": x,
            "noise": noise,
        }

    return make


def _fresh(generator: Generator) -> Inputs:
    inputs = _gate(6, 4, 2)(generator)
    del inputs["state"]
    return inputs


def _by_expert_id(output: Output) -> Output:
    """The order of a token's experts is free: sort them by id."""
    weights, expert_ids, load = output
    order = expert_ids.argsort(dim=-1)
    return weights.gather(-1, order), expert_ids.gather(-1, order), load


def _fresh_gate_prefers(inputs: Inputs, output: Output) -> str | None:
    """Without signal the noise alone decides."""
    if "state" in inputs:
        return None
    best = inputs["noise"].topk(inputs["init"]["top_k"], dim=-1).indices
    if torch.equal(best.sort(-1).values, output[1].sort(-1).values):
        return None
    return "a fresh gate does not follow the noise alone: start both matrices at zero"


def _wrong_sum(inputs: Inputs, output: Output) -> str | None:
    for total in output[0].sum(-1).tolist():
        if not abs(total - 1) < 1e-3:
            return f"the weights of a token sum to {total:.3g}, not 1"
    return None


class _StepByStep(nn.Module):
    """A right answer in other words."""

    def __init__(self, d_model: int, num_experts: int, top_k: int) -> None:
        super().__init__()
        self.top_k = top_k
        self.w_gate, self.w_noise = (nn.Parameter(torch.zeros(num_experts, d_model)) for _ in range(2))

    def forward(self, x: Tensor, noise: Tensor) -> Output:
        clean, scale = F.linear(x, self.w_gate), F.softplus(F.linear(x, self.w_noise))
        noisy = clean + noise * scale if self.training else clean
        best, expert_ids = noisy.topk(self.top_k, dim=-1)
        ahead = (clean - kth_excluding(noisy, self.top_k)) / scale
        return best.softmax(-1), expert_ids, torch.distributions.Normal(0.0, 1.0).cdf(ahead).sum(0)


class _ThroughFullSoftmax(_StepByStep):
    """Another one: softmax over all, top-k, renormalised."""

    def forward(self, x: Tensor, noise: Tensor) -> Output:
        _, expert_ids, load = super().forward(x, noise)
        clean, scale = x @ self.w_gate.T, F.softplus(x @ self.w_noise.T)
        probs = (clean + noise * scale * self.training).softmax(-1).gather(-1, expert_ids)
        return probs / probs.sum(-1, keepdim=True), expert_ids, load


# Wrong answers: from the clean logits, the noisy ones, the scale and the right output to a wrong one.

Spoil = Callable[[Tensor, Tensor, Tensor, Output], Output]


def _with(spoil: Spoil) -> type[nn.Module]:
    class Wrong(NoisyGate):
        def forward(self, x: Tensor, noise: Tensor) -> Output:
            clean, scale = x @ self.w_gate.T, F.softplus(x @ self.w_noise.T)
            noisy = clean + noise * scale if self.training else clean
            return spoil(clean, noisy, scale, super().forward(x, noise))

    return Wrong


class _AlwaysNoisy(NoisyGate):
    def forward(self, x: Tensor, noise: Tensor) -> Output:
        clean, scale = x @ self.w_gate.T, F.softplus(x @ self.w_noise.T)
        routing = noisy_top_k_routing(clean, scale, self.top_k, noise)
        return routing.weights, routing.expert_ids, smooth_load(routing)


class _StartsAtOne(NoisyGate):
    def __init__(self, d_model: int, num_experts: int, top_k: int) -> None:
        super().__init__(d_model, num_experts, top_k)
        nn.init.eye_(self.w_gate)
        nn.init.eye_(self.w_noise)


def _counted(output: Output, num_experts: int) -> Tensor:
    return torch.bincount(output[1].flatten(), minlength=num_experts).to(output[0].dtype)


def _chosen_clean(clean: Tensor, noisy: Tensor, scale: Tensor, right: Output) -> Output:
    expert_ids = clean.topk(right[1].shape[-1], dim=-1).indices
    return noisy.gather(-1, expert_ids).softmax(-1), expert_ids, right[2]


NOISY_GATE = Exercise(
    id="05.NoisyGate",
    entry="NoisyGate",
    title="The noisy router as a module",
    points=5,
    difficulty=2,
    minutes=18,
    hints=(
        "You have all parts: `noisy_logits`, top-k with a softmax over the K chosen logits, `selection_probability`. "
        "The module owns the two matrices and knows by `self.training` which mode it is in.",
        "`noisy, clean, scale = noisy_logits(x, self.w_gate, self.w_noise, noise, self.training)`. Choose and weigh by "
        "the noisy logits: `best, expert_ids = noisy.topk(self.top_k, dim=-1)`.",
        "The weights are `best.softmax(dim=-1)`. The load is `selection_probability(clean, noisy, scale, "
        "self.top_k).sum(dim=0)`, a sum over tokens. Both matrices are "
        "`nn.Parameter(torch.zeros(num_experts, d_model))`.",
    ),
    reference=NoisyGate,
    returns=("weights", "expert_ids", "load"),
    normalise=_by_expert_id,
    drive=call_module,  # type: ignore[arg-type]
    cases=(
        Case("two tokens, top-1 of two", _gate(2, 2, 1)),
        Case("training, top-2 of five", _gate(7, 5, 2), grad=("x", "state.w_gate", "state.w_noise")),
        Case("evaluation, top-2 of five", _gate(7, 5, 2, training=False), grad=("state.w_gate", "state.w_noise")),
        Case("fresh from the constructor", _fresh),
        Case("every expert, K = E", _gate(5, 3, 3)),
        Case("no tokens", _gate(0, 4, 2)),
    ),
    properties=(
        Property("the weights of a token sum to 1", _wrong_sum),
        Property("a fresh gate has no preferences", _fresh_gate_prefers),
    ),
    misconceptions=(
        Misconception(
            "noise-in-evaluation",
            "Your module adds noise whatever its mode. `model.eval()` sets `self.training` to False, and a router in "
            "evaluation must route the same token the same way each time.",
            _AlwaysNoisy,
        ),
        Misconception(
            "starts-with-preferences",
            "Your matrices do not start at zero. Zero is the paper's choice: no signal and some noise, so that the "
            "load is even before any loss has had time to work.",
            _StartsAtOne,
        ),
        Misconception(
            "weights-from-clean-logits",
            "You choose by the noisy logits and weigh by the clean ones. The paper's gate is a softmax of the noisy "
            "ones it kept: only so does W_noise get a gradient from the task.",
            _with(
                lambda clean, noisy, scale, right: (clean.gather(-1, right[1]).softmax(-1), *right[1:]),
            ),
        ),
        Misconception(
            "chosen-by-clean-logits",
            "You choose by the clean logits. Then noise changes weights but never who is chosen, and an expert that "
            "is behind is never tried.",
            _with(_chosen_clean),
        ),
        Misconception(
            "softmax-over-all",
            "Your weights come from a softmax over all experts and do not sum to 1. Keep the top k first, then take "
            "the softmax of those, or renormalise.",
            _with(lambda clean, noisy, scale, right: (noisy.softmax(-1).gather(-1, right[1]), *right[1:])),
        ),
        Misconception(
            "load-counted",
            "Your load has no gradient: it counts choices, or it was detached. A loss on it teaches nothing. Sum the "
            "probabilities of selection instead.",
            _with(lambda clean, noisy, scale, right: (*right[:2], _counted(right, clean.shape[-1]))),
        ),
        Misconception(
            "load-over-experts",
            "You summed the probabilities over the experts of a token. That is about K for every token. Sum over the "
            "tokens, `dim=0`, to get a load for each expert.",
            _with(
                lambda clean, noisy, scale, right: (
                    *right[:2],
                    torch.special.ndtr((clean - kth_excluding(noisy, right[1].shape[-1])) / scale).sum(-1),
                )
            ),
        ),
        Misconception(
            "load-from-softmax",
            "Your load sums softmax probabilities. They say how much weight an expert would get, not how likely it is "
            "among the top k, and their sum is T and not T·K.",
            _with(lambda clean, noisy, scale, right: (*right[:2], noisy.softmax(-1).sum(0))),
        ),
    ),
    alternatives=(_StepByStep, _ThroughFullSoftmax),
)
