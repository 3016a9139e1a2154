"""`triton_dispatch` against the loop over experts in float64: values, gradients, and the ways it is called."""

import pytest
import torch
from torch.nn import functional as F

from moe_course.kernels import triton_dispatch
from moe_course.layers import MoELayer, loop_dispatch
from tests.kernels.problems import DEVICE, check_against_float64, gradients, problem

each_activation = pytest.mark.parametrize("activation", ["gelu", "swiglu"])

SHAPES = {
    "uneven, one expert empty": (17, 5, 2),
    "no tokens": (0, 4, 2),
    "one token": (1, 4, 1),
    "one expert": (5, 1, 1),
    "K = E": (6, 3, 3),
    "more experts than choices": (3, 18, 2),
}


@each_activation
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_float32(shape, activation):
    check_against_float64(triton_dispatch, problem(*shape, activation))


@each_activation
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype, activation):
    check_against_float64(triton_dispatch, problem(20, 4, 2, activation, dtype))


@pytest.mark.parametrize(
    ("tokens", "num_experts", "top_k", "d_model", "d_ff"),
    [
        (70, 2, 2, 136, 72),  # tiles of 64 rows; widths that end within a block, or just after one
        (130, 1, 1, 64, 130),  # three tiles of one expert
        (580, 1, 1, 16, 8),  # tiles of 128 rows
    ],
)
def test_tall_tiles(tokens, num_experts, top_k, d_model, d_ff):
    """float16, because float32 always takes tiles of 64 rows."""
    check_against_float64(
        triton_dispatch, problem(tokens, num_experts, top_k, "swiglu", torch.float16, d_model=d_model, d_ff=d_ff)
    )


def test_one_expert_gets_all_and_another_a_single_token():
    x, ids, *rest = problem(30, 4, 1)
    ids = torch.full_like(ids, 2)
    ids[7] = 3
    check_against_float64(triton_dispatch, (x, ids, *rest))


def test_non_contiguous_input():
    x, ids, weights, w_in, w_out, activation = problem(9, 4, 2)
    odd = (x.T.contiguous().T, ids.T.contiguous().T, weights.T.contiguous().T, w_in.mT.contiguous().mT, w_out)
    assert not odd[0].is_contiguous() and not odd[3].is_contiguous()
    check_against_float64(triton_dispatch, (*odd, activation))
    # A gradient without memory of its own, as that of a sum.
    x.requires_grad_()
    grad = torch.autograd.grad(triton_dispatch(x, ids, weights, w_in, w_out).sum(), x)[0]
    assert torch.isfinite(grad).all()


def test_the_same_input_gives_the_same_bits():
    arguments = problem(20, 4, 3, "swiglu")
    for first, second in zip(gradients(triton_dispatch, arguments), gradients(triton_dispatch, arguments), strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("wanted", range(4))
def test_gradient_of_one_argument_alone(wanted):
    x, ids, weights, w_in, w_out, activation = problem(6, 3, 2)
    tensors = [x, weights, w_in, w_out]
    tensors[wanted] = tensors[wanted].clone().requires_grad_()
    results = []
    for dispatch in (triton_dispatch, loop_dispatch):
        out = dispatch(tensors[0], ids, *tensors[1:], activation)
        results += torch.autograd.grad(out.sum(), tensors[wanted])
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "remedy"),
    [
        (lambda a: {"weights": a["weights"][:, :1]}, "pass one weight for each id"),
        (lambda a: {"x": a["x"][:3]}, "for the same T tokens"),
        (lambda a: {"x": a["x"][:, :4]}, "do not fit together"),
        (lambda a: {"activation": "swiglu"}, "for swiglu pass"),
        (lambda a: {"activation": "relu"}, "choose 'gelu' or 'swiglu'"),
        (lambda a: {"x": a["x"].double()}, "choose dispatch='sorted', which also takes float64"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_remedy(change, remedy):
    names = ("x", "ids", "weights", "w_in", "w_out", "activation")
    arguments = dict(zip(names, problem(4, 3, 2), strict=True))
    with pytest.raises(ValueError, match=remedy):
        triton_dispatch(*(arguments | change(arguments)).values())


def test_an_expert_that_does_not_exist_is_refused_on_a_cpu_and_adds_nothing_on_a_gpu():
    x, ids, weights, *rest = problem(5, 4, 2)
    ids[3, 1] = 4
    if DEVICE == "cpu":
        with pytest.raises(ValueError, match="pass ids from 0 to 3"):
            triton_dispatch(x, ids, weights, *rest)
    else:
        without = weights.clone()
        without[3, 1] = 0
        ids_within = ids.clamp(max=3)
        torch.testing.assert_close(
            triton_dispatch(x, ids, weights, *rest), triton_dispatch(x, ids_within, without, *rest)
        )


@each_activation
def test_moe_layer(activation):
    torch.manual_seed(0)
    layer = MoELayer(16, 24, num_experts=4, top_k=2, activation=activation, dispatch="triton", device=DEVICE)
    x = torch.randn(2, 7, 16, device=DEVICE)
    results = []
    for dispatch in ("triton", "sorted"):
        layer.dispatch = dispatch
        layer.zero_grad()
        out, _ = layer(x)
        F.mse_loss(out, x).backward()
        results.append([out.detach(), *(parameter.grad for parameter in layer.parameters())])
    for ours, reference in zip(*results, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-4, atol=1e-6)


def test_autocast_computes_in_half_precision_and_returns_float32_gradients():
    torch.manual_seed(0)
    layer = MoELayer(16, 24, num_experts=4, top_k=2, dispatch="triton", device=DEVICE)
    x = torch.randn(12, 16, device=DEVICE)
    exact, _ = layer(x)
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast(DEVICE, dtype=dtype):
            out, _ = layer(x)
        assert out.dtype == dtype
        assert 0 < (out.float() - exact).abs().max() < 0.02 * exact.abs().max()
        (grad,) = torch.autograd.grad(out.float().square().sum(), layer.experts.w_in)
        assert grad.dtype == torch.float32
