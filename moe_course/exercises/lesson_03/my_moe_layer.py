"""Exercise 03.MyMoELayer: router, dispatch, experts and combine in one module."""

from collections.abc import Callable

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from ...layers import Routing, ffn, grouped_dispatch, loop_dispatch, top_k_routing
from ..drive import call_module
from ..spec import Case, Exercise, Misconception, Property
from .inputs import Inputs, Make, stacked_weights

Output = tuple[Tensor, Routing]


class _Layer(nn.Module):
    """The parameters that every answer has; they start as nn.Linear's do."""

    def __init__(self, d_model: int, d_ff: int, num_experts: int, top_k: int) -> None:
        super().__init__()
        self.top_k = top_k
        self.router = nn.Parameter(_uniform(num_experts, d_model))
        self.w_in = nn.Parameter(_uniform(num_experts, d_ff, d_model))
        self.w_out = nn.Parameter(_uniform(num_experts, d_model, d_ff))


def _uniform(*shape: int) -> Tensor:
    return (torch.rand(shape) * 2 - 1) * shape[-1] ** -0.5


class MyMoELayer(_Layer):
    """A Mixture-of-Experts layer: x (…, D) to the output (…, D) and the Routing of the flattened tokens."""

    def forward(self, x: Tensor) -> Output:
        tokens = x.reshape(-1, x.shape[-1])
        routing = top_k_routing(F.linear(tokens, self.router), self.top_k)
        out = grouped_dispatch(tokens, routing.expert_ids, routing.weights, self.w_in, self.w_out)
        return out.reshape(x.shape), routing


def _layer(
    *leading: int, d_model: int = 4, d_ff: int = 8, num_experts: int = 4, top_k: int = 2, transposed: bool = False
) -> Make:
    """Tokens of shape (*leading, D) and a layer's parameters.

    Args:
        transposed: x is not contiguous.
    """

    def make(generator: Generator) -> Inputs:
        w_in, w_out = stacked_weights(num_experts, d_model, d_ff, generator)
        x = torch.randn(*leading, d_model, generator=generator)
        return {
            "init": {"d_model": d_model, "d_ff": d_ff, "num_experts": num_experts, "top_k": top_k},
            "state": {
                "router": torch.randn(num_experts, d_model, generator=generator),
                "w_in": w_in,
                "w_out": w_out,
            },
            "x": x.transpose(0, -1).contiguous().transpose(0, -1) if transposed else x,
        }

    return make


def _bfloat16(generator: Generator) -> Inputs:
    """In bfloat16, with logits so far apart that rounding changes no choice."""
    inputs = _layer(6, d_model=8, num_experts=4)(generator)
    ranks = torch.rand(4, 8, generator=generator).argsort(dim=0) * 0.5
    inputs["state"]["router"] = ranks
    inputs["x"] = 2 * torch.eye(8)[:6] + 0.02 * torch.rand(6, 8, generator=generator)
    inputs["state"] = {name: tensor.bfloat16() for name, tensor in inputs["state"].items()}
    return inputs | {"x": inputs["x"].bfloat16()}


def _idle_experts(generator: Generator) -> Inputs:
    inputs = _layer(6, num_experts=6)(generator)
    inputs["x"] = inputs["x"].abs() + 0.1
    inputs["state"]["router"][3:] = -5.0  # against positive tokens, experts 3 to 5 are never chosen
    return inputs


def _not_the_dense_ffn(inputs: Inputs, output: Output) -> str | None:
    """With one expert there is nothing to route: the layer must be the dense FFN."""
    if inputs["init"]["num_experts"] != 1:
        return None
    state = inputs["state"]
    dense = ffn(inputs["x"], state["w_in"][0], state["w_out"][0])
    error = (output[0] - dense).abs().max().item()
    return None if error < 1e-4 else f"with E = 1 the output differs from the dense FFN's by up to {error:.3g}"


class _LoopLayer(_Layer):
    """A right answer in other words: softmax over the chosen logits, then the loop."""

    def forward(self, x: Tensor) -> Output:
        tokens = x.flatten(0, -2)
        logits = tokens @ self.router.mT
        best, expert_ids = logits.topk(self.top_k, dim=-1)
        weights = best.float().softmax(-1).to(x.dtype) if x.dtype == torch.bfloat16 else best.softmax(-1)
        out = loop_dispatch(tokens, expert_ids, weights, self.w_in, self.w_out)
        probs = logits.to(torch.promote_types(x.dtype, torch.float32)).softmax(-1)
        return out.view(x.shape), Routing(logits, probs, weights, expert_ids)


class _TokenByToken(_Layer):
    """A right answer in other words: the definition, one token at a time."""

    def forward(self, x: Tensor) -> Output:
        tokens = x.reshape(-1, x.shape[-1])
        routing = top_k_routing(tokens @ self.router.T, self.top_k)
        out = torch.zeros_like(tokens)
        for t, ids in enumerate(routing.expert_ids.tolist()):
            for k, e in enumerate(ids):
                out[t] += routing.weights[t, k] * ffn(tokens[t], self.w_in[e], self.w_out[e])
        return out.reshape(x.shape), routing


# Wrong answers: most of them get the routing right and then run the experts wrongly.

Run = Callable[[_Layer, Tensor, Routing], Tensor]


def _with(run: Run, renormalize: bool = True, fold: bool = True) -> type[_Layer]:
    """A layer that computes its output by `run(layer, tokens, routing)`, and may leave it flat."""

    class Wrong(_Layer):
        def forward(self, x: Tensor) -> Output:
            tokens = x.reshape(-1, x.shape[-1])
            routing = top_k_routing(F.linear(tokens, self.router), self.top_k, renormalize=renormalize)
            out = run(self, tokens, routing)
            return (out.reshape(x.shape) if fold else out), routing

    return Wrong


def _dispatch(layer: _Layer, tokens: Tensor, expert_ids: Tensor, weights: Tensor) -> Tensor:
    return loop_dispatch(tokens, expert_ids, weights, layer.w_in, layer.w_out)


def _as_routed(layer: _Layer, tokens: Tensor, routing: Routing) -> Tensor:
    return _dispatch(layer, tokens, routing.expert_ids, routing.weights)


def _plus_residual(layer: _Layer, tokens: Tensor, routing: Routing) -> Tensor:
    return tokens + _as_routed(layer, tokens, routing)


def _weighted_input(layer: _Layer, tokens: Tensor, routing: Routing) -> Tensor:
    out = torch.zeros_like(tokens)
    for e in range(len(layer.w_in)):
        rows, choice = torch.where(routing.expert_ids == e)
        weighed = routing.weights[rows, choice, None] * tokens[rows]
        out = out.index_add(0, rows, ffn(weighed, layer.w_in[e], layer.w_out[e]))
    return out


def _unweighted(layer: _Layer, tokens: Tensor, routing: Routing) -> Tensor:
    return _dispatch(layer, tokens, routing.expert_ids, torch.ones_like(routing.weights))


def _router_cut_off(layer: _Layer, tokens: Tensor, routing: Routing) -> Tensor:
    return _dispatch(layer, tokens, routing.expert_ids, routing.weights.detach())


def _all_experts(layer: _Layer, tokens: Tensor, routing: Routing) -> Tensor:
    out = torch.zeros_like(tokens)
    for e in range(len(layer.w_in)):
        out = out + routing.probs[:, e, None].to(tokens.dtype) * ffn(tokens, layer.w_in[e], layer.w_out[e])
    return out


def _relu(layer: _Layer, tokens: Tensor, routing: Routing) -> Tensor:
    out = torch.zeros_like(tokens)
    for e in range(len(layer.w_in)):
        rows, choice = torch.where(routing.expert_ids == e)
        y = F.linear(F.relu(F.linear(tokens[rows], layer.w_in[e])), layer.w_out[e])
        out = out.index_add(0, rows, routing.weights[rows, choice, None] * y)
    return out


ALL_STATE = ("state.router", "state.w_in", "state.w_out")

MY_MOE_LAYER = Exercise(
    id="03.MyMoELayer",
    entry="MyMoELayer",
    title="A Mixture-of-Experts layer of your own",
    points=6,
    difficulty=3,
    minutes=18,
    hints=(
        "Four steps: flatten (…, D) to (T, D); route; run one of your three dispatches; give the output the "
        "shape of x. Each is one or two lines, because you have written the parts.",
        "Routing: the logits are `F.linear(tokens, self.router)`, and `top_k_routing(logits, self.top_k)` "
        "of lesson 02 turns them into a `Routing` with `.expert_ids` and `.weights`, renormalised. The "
        "dispatch takes both, the tokens, `self.w_in` and `self.w_out`.",
        "`tokens = x.reshape(-1, x.shape[-1])` to begin with and `out.reshape(x.shape)` to end with. "
        "Between them, `visit_experts(tokens, routing.expert_ids, …)` does the work. Return the pair: "
        "output first, then the routing. Add no residual, and detach nothing.",
    ),
    reference=MyMoELayer,
    cases=(
        Case("two tokens, top-1 of two", _layer(2, d_model=2, d_ff=2, num_experts=2, top_k=1)),
        Case("top-2 of four", _layer(7), grad=("x", *ALL_STATE)),
        Case("a batch of sequences, (B, S, D)", _layer(3, 5), grad=ALL_STATE),
        Case("one expert, E = 1", _layer(5, num_experts=1, top_k=1)),
        Case("every expert, K = E", _layer(5, num_experts=3, top_k=3)),
        Case("experts without tokens", _idle_experts),
        Case("wide and narrow experts", _layer(6, d_model=8, d_ff=3, num_experts=5, top_k=3)),
        Case("no tokens at all", _layer(0)),
        Case("not contiguous", _layer(4, 3, transposed=True)),
        Case("bfloat16", _bfloat16),
    ),
    properties=(Property("one expert is the dense FFN", _not_the_dense_ffn),),
    returns=("output", "routing"),
    drive=call_module,  # type: ignore[arg-type]
    misconceptions=(
        Misconception(
            "residual-inside",
            "Your layer returns x plus the experts' output. The residual belongs to the block around the "
            "layer, which would then add x twice.",
            _with(_plus_residual),
        ),
        Misconception(
            "weights-on-the-input",
            "The weights scale what goes into the experts. They belong on what comes out: an expert is not linear.",
            _with(_weighted_input),
        ),
        Misconception(
            "weights-forgotten",
            "The chosen experts are added without their weights. Then the router's logits do not touch the "
            "output, and the router gets no gradient.",
            _with(_unweighted),
        ),
        Misconception(
            "router-cut-off",
            "The output is right, but its gradient does not reach the router: the weights were detached "
            "before the weighted sum.",
            _with(_router_cut_off),
        ),
        Misconception(
            "not-renormalised",
            "The K weights of a token do not sum to 1. This layer renormalises them, as Mixtral does; OLMoE does not.",
            _with(_as_routed, renormalize=False),
        ),
        Misconception(
            "every-expert-runs",
            "You mix all E experts by their probabilities. That is a dense mixture: it costs E/K times as "
            "much, and the choice of the router has no effect.",
            _with(_all_experts),
        ),
        Misconception(
            "relu-for-gelu",
            "Your experts use a ReLU, where the FFN of lesson 01 uses a GELU. With one expert the layer "
            "then is not the dense FFN that it stands in for.",
            _with(_relu),
        ),
        Misconception(
            "output-left-flat",
            "For a (B, S, D) input you return (B·S, D). A layer that replaces an FFN must return the shape "
            "it was given: `out.reshape(x.shape)`.",
            _with(_as_routed, fold=False),
        ),
    ),
    alternatives=(_LoopLayer, _TokenByToken),
)
