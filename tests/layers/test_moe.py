"""The MoE layer, its router and its experts: shapes, autocast, compilation, and errors that say what to do."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from moe_course.layers import DenseFFN, Experts, MoELayer, ffn, top_k_routing


def test_leading_dimensions_are_kept():
    torch.manual_seed(0)
    layer = MoELayer(8, 16, num_experts=4, top_k=2)
    x = torch.randn(2, 3, 8)
    out, routing = layer(x)
    flat, flat_routing = layer(x.reshape(6, 8))
    assert out.shape == (2, 3, 8) and routing.expert_ids.shape == (6, 2)
    assert torch.equal(out.reshape(6, 8), flat)
    assert torch.equal(routing.expert_ids, flat_routing.expert_ids)
    assert routing.tokens_per_expert.sum() == 12
    assert layer(x[:0])[0].shape == (0, 3, 8)


@pytest.mark.parametrize("dispatch", ["loop", "einsum", "grouped", "sorted"])
def test_every_dispatch_trains_the_router_and_the_experts(dispatch):
    torch.manual_seed(0)
    layer = MoELayer(8, 16, num_experts=4, top_k=2, dispatch=dispatch)
    out, _ = layer(torch.randn(32, 8))
    out.square().mean().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("dispatch", ["loop", "einsum", "grouped", "sorted"])
def test_autocast_stays_close_and_gradients_flow(dispatch):
    torch.manual_seed(0)
    layer = MoELayer(8, 16, num_experts=4, top_k=2, dispatch=dispatch)
    x = torch.randn(32, 8, requires_grad=True)
    exact, _ = layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, _ = layer(x)
    if dispatch == "sorted":
        assert out.dtype == torch.bfloat16
    assert not torch.equal(out.float(), exact)  # bfloat16 was used
    assert (out.float() - exact).abs().max() < 0.05 * exact.abs().max() + 0.02
    out.float().sum().backward()
    assert x.grad is not None and x.grad.dtype == torch.float32
    for name, parameter in layer.named_parameters():
        assert parameter.grad.dtype == torch.float32 and parameter.grad.abs().max() > 0, name


def test_no_graph_without_grad_and_none_for_frozen_experts():
    layer = MoELayer(8, 16, num_experts=4, top_k=2)
    with torch.no_grad():
        assert not layer(torch.randn(5, 8))[0].requires_grad
    layer.experts.requires_grad_(False)
    layer(torch.randn(5, 8))[0].sum().backward()
    assert layer.experts.w_in.grad is None and layer.router.weight.grad is not None


COMPILED = """
import torch
from moe_course.layers import MoELayer

torch.manual_seed(0)
layer = MoELayer(8, 16, num_experts=4, top_k=2, activation="swiglu")
compiled = torch.compile(layer, backend="aot_eager")
x = torch.randn(12, 8)
results = []
for run in (layer, compiled, compiled):
    layer.zero_grad()
    out, routing = run(x)
    out.square().sum().backward()
    results.append([out.detach(), routing.expert_ids] + [p.grad.clone() for p in layer.parameters()])
for result in results[1:]:
    for got, expected in zip(result, results[0], strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
out, _ = compiled(torch.randn(5, 8))
assert out.shape == (5, 8)
print("equal")
"""


def test_compiled_layer_equals_the_eager_one():
    """In a process of its own: dynamo cannot trace through the shape checks that tests switch on."""
    done = subprocess.run(
        [sys.executable, "-c", COMPILED],
        env=os.environ | {"MOE_COURSE_SHAPE_CHECKS": "0"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "equal", done.stderr[-2000:]


def test_softmax_before_or_after_top_k_is_the_same_when_renormalised():
    logits = torch.randn(20, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    routing = top_k_routing(logits, 3)
    torch.testing.assert_close(routing.weights, logits.topk(3).values.softmax(-1), rtol=1e-12, atol=1e-12)
    assert torch.equal(routing.expert_ids, logits.topk(3).indices)


def test_scores_of_each_kind():
    logits = torch.tensor([[2.0, 0.0, 1.0]])
    plain = top_k_routing(logits, 2, renormalize=False)
    torch.testing.assert_close(plain.weights, logits.softmax(-1)[:, [0, 2]])
    sigmoid = top_k_routing(logits, 2, score="sigmoid", renormalize=False)
    torch.testing.assert_close(sigmoid.weights, logits.sigmoid()[:, [0, 2]])
    shared = top_k_routing(logits, 2, score="sigmoid")
    chosen = logits.sigmoid()[:, [0, 2]]
    torch.testing.assert_close(shared.weights, chosen / chosen.sum())
    lost = top_k_routing(torch.full((1, 3), -1000.0), 2, score="sigmoid")
    assert lost.weights.isfinite().all()


def test_top_1_renormalised_leaves_the_router_without_a_gradient():
    for renormalize in (True, False):
        logits = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
        top_k_routing(logits, 1, renormalize=renormalize).weights.square().sum().backward()
        assert (logits.grad.abs().max() < 1e-12) == renormalize


def test_bfloat16_logits_are_scored_in_float32():
    routing = top_k_routing(torch.randn(4, 8).bfloat16(), 2)
    assert routing.probs.dtype == torch.float32 and routing.weights.dtype == torch.bfloat16


def test_swiglu_is_gate_rows_then_up_rows():
    torch.manual_seed(0)
    layer = DenseFFN(6, 10, "swiglu")
    x = torch.randn(3, 6)
    gate, up = layer.w_in[:10], layer.w_in[10:]
    torch.testing.assert_close(layer(x), (F.silu(x @ gate.T) * (x @ up.T)) @ layer.w_out.T)
    torch.testing.assert_close(ffn(x, gate, layer.w_out), F.gelu(x @ gate.T) @ layer.w_out.T)


def test_an_expert_starts_like_a_dense_ffn():
    torch.manual_seed(0)
    experts, dense = Experts(64, 32, 48), DenseFFN(32, 48)
    for name in ("w_in", "w_out"):
        ratio = getattr(experts, name).std() / getattr(dense, name).std()
        assert 0.9 < ratio < 1.1, name


REFUSALS = """
import torch
from moe_course.layers import DenseFFN, Experts, MoELayer, Router, top_k_routing

for wrong in [
    lambda: MoELayer(8, 16, num_experts=8, top_k=9),
    lambda: Router(8, 4, 0),
    lambda: top_k_routing(torch.randn(2, 4), 5),
    lambda: top_k_routing(torch.randn(2, 4), 2, score="tanh"),
    lambda: DenseFFN(8, 16, "relu"),
    lambda: DenseFFN(8, 0),
    lambda: Experts(0, 8, 16),
    lambda: MoELayer(8, 16, num_experts=4, top_k=2, dispatch="magic"),
    lambda: MoELayer(8, 16, num_experts=4, top_k=2)(torch.randn(3, 7)),
    lambda: DenseFFN(8, 16)(torch.randn(3, 7)),
]:
    try:
        wrong()
    except ValueError as error:
        print(error)
    else:
        print("accepted")
"""


WRONG_WIDTH = (
    "x has shape (3, 7) but this {} has d_model=8; pass x of shape (..., 8), or build the layer with x's width"
)


def test_bad_arguments_are_refused_with_a_remedy():
    """Without the shape checks of notebooks and tests, which would refuse some of it first, in their own words."""
    done = subprocess.run(
        [sys.executable, "-c", REFUSALS],
        env=os.environ | {"MOE_COURSE_SHAPE_CHECKS": "0"},
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines() == [
        "top_k=9 is larger than num_experts=8; choose top_k ≤ num_experts",
        "top_k=0 sends a token to no expert; choose top_k ≥ 1",
        "top_k=5 is larger than num_experts=4; choose top_k ≤ num_experts",
        "score='tanh' is unknown; choose 'softmax' or 'sigmoid'",
        "activation='relu' is unknown; choose 'gelu' or 'swiglu'",
        "d_ff=0 is not a size; choose d_ff ≥ 1",
        "num_experts=0 is not a size; choose num_experts ≥ 1",
        "dispatch='magic' is unknown; choose one of 'loop', 'einsum', 'grouped', 'sorted', 'triton'",
        WRONG_WIDTH.format("MoELayer"),
        WRONG_WIDTH.format("DenseFFN"),
    ], done.stderr
