"""The four dispatches compute the same, gradients included, whatever the routing looks like."""

import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import moe_course.layers.sorted as sorted_module
from moe_course.layers import DenseFFN, MoELayer, einsum_dispatch, grouped_dispatch, loop_dispatch, sorted_dispatch


def blocks_of(rows):
    """sorted_dispatch with small blocks: few tokens then take the path that is meant for many."""

    def dispatch(*arguments):
        with mock.patch.object(sorted_module, "BLOCK_ROWS", rows):
            return sorted_dispatch(*arguments)

    return dispatch


OTHERS = {
    "einsum": einsum_dispatch,
    "grouped": grouped_dispatch,
    "sorted": sorted_dispatch,
    "blocks of one expert": blocks_of(0),
    "blocks": blocks_of(7),
}
each_other = pytest.mark.parametrize("dispatch", OTHERS.values(), ids=OTHERS.keys())
each_activation = pytest.mark.parametrize("activation", ["gelu", "swiglu"])


def problem(tokens, num_experts, top_k, activation="gelu", dtype=torch.float64, seed=0, d_model=5, d_ff=6):
    """Random arguments of a dispatch; expert 0 gets nothing where there is a choice."""
    generator = torch.Generator().manual_seed(seed)
    lowest = 1 if num_experts > top_k else 0
    ids = [torch.randperm(num_experts - lowest, generator=generator)[:top_k] + lowest for _ in range(tokens)]
    rows = 2 * d_ff if activation == "swiglu" else d_ff
    draw = [
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
        for shape in [(tokens, d_model), (tokens, top_k), (num_experts, rows, d_model), (num_experts, d_model, d_ff)]
    ]
    x, weights, w_in, w_out = draw
    expert_ids = torch.stack(ids) if tokens else torch.zeros(0, top_k, dtype=torch.int64)
    return x, expert_ids, weights, w_in, w_out, activation


def gradients(dispatch, arguments):
    """The output and the gradients of x, expert_weights, w_in and w_out."""
    x, ids, weights, w_in, w_out, activation = arguments
    wanted = [tensor.clone().requires_grad_() for tensor in (x, weights, w_in, w_out)]
    out = dispatch(wanted[0], ids, *wanted[1:], activation)
    cotangent = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    return out.detach(), torch.autograd.grad(out, wanted, cotangent)


SHAPES = {
    "usual": (17, 5, 2),
    "no tokens": (0, 4, 2),
    "one token": (1, 4, 1),
    "one expert": (6, 1, 1),
    "K = E": (7, 3, 3),
    "more experts than choices": (3, 300, 2),
}


@each_other
@each_activation
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_equals_the_loop_in_float64(dispatch, activation, shape):
    arguments = problem(*shape, activation)
    out, grads = gradients(dispatch, arguments)
    expected, expected_grads = gradients(loop_dispatch, arguments)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(grad, expected_grad, rtol=1e-12, atol=1e-12)


@each_other
def test_all_tokens_to_one_expert(dispatch):
    x, ids, weights, w_in, w_out, activation = problem(9, 4, 1)
    arguments = (x, torch.full_like(ids, 2), weights, w_in, w_out, activation)
    torch.testing.assert_close(dispatch(*arguments), loop_dispatch(*arguments), rtol=1e-12, atol=1e-12)


@each_activation
def test_many_rows_span_several_blocks(activation):
    """More rows than one block of the sorted dispatch holds, and one expert with more than a whole block."""
    x, ids, weights, w_in, w_out, _ = problem(6000, 6, 2, activation, d_model=4, d_ff=3)
    ids[:4800, 0] = torch.where(ids[:4800, 1] == 3, 2, 3)
    arguments = (x, ids, weights, w_in, w_out, activation)
    out, grads = gradients(sorted_dispatch, arguments)
    expected, expected_grads = gradients(loop_dispatch, arguments)
    torch.testing.assert_close(out, expected, rtol=1e-11, atol=1e-11)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(grad, expected_grad, rtol=1e-10, atol=1e-10)


@each_activation
@pytest.mark.parametrize("dispatch", [loop_dispatch, *OTHERS.values()])
def test_gradcheck(dispatch, activation):
    x, ids, weights, w_in, w_out, _ = problem(4, 3, 2, activation, d_model=3, d_ff=2)
    wanted = [tensor.requires_grad_() for tensor in (x, weights, w_in, w_out)]
    assert torch.autograd.gradcheck(lambda x, g, a, b: dispatch(x, ids, g, a, b, activation), wanted)


@pytest.mark.parametrize("wanted", range(4))
def test_gradient_of_one_argument_alone(wanted):
    x, ids, weights, w_in, w_out, activation = problem(9, 4, 2)
    tensors = [x, weights, w_in, w_out]
    tensors[wanted] = tensors[wanted].clone().requires_grad_()
    results = []
    for dispatch in (blocks_of(7), loop_dispatch):
        out = dispatch(tensors[0], ids, *tensors[1:], activation)
        results.append(torch.autograd.grad(out.sum(), tensors[wanted])[0])
    torch.testing.assert_close(results[0], results[1], rtol=1e-12, atol=1e-12)


@each_other
def test_float32_and_bfloat16_stay_close(dispatch):
    exact = loop_dispatch(*problem(24, 4, 2, d_model=8, d_ff=16))
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 0.3)):
        out = dispatch(*problem(24, 4, 2, dtype=dtype, d_model=8, d_ff=16))
        assert out.dtype == dtype
        assert (out.double() - exact).abs().max() < tolerance * exact.abs().max()


@each_other
def test_non_contiguous_input(dispatch):
    x, ids, weights, w_in, w_out, activation = problem(8, 4, 2)
    odd = (x.T.contiguous().T, ids.T.contiguous().T, weights.T.contiguous().T, w_in.mT.contiguous().mT, w_out)
    assert not odd[0].is_contiguous() and not odd[3].is_contiguous()
    out, grads = gradients(dispatch, (*odd, activation))
    expected, expected_grads = gradients(loop_dispatch, (x, ids, weights, w_in, w_out, activation))
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(grad, expected_grad, rtol=1e-12, atol=1e-12)


@each_activation
@pytest.mark.parametrize("block_rows", [0, 40, 4096])
@pytest.mark.parametrize("layout", ["contiguous", "transposed", "strided", "shifted", "odd widths"])
def test_float32_weights_of_any_layout(layout, block_rows, activation):
    """float32 goes through F.grouped_mm where layout and alignment allow; float64 never does."""
    d_model, d_ff = (5, 6) if layout == "odd widths" else (16, 8)
    x, ids, weights, w_in, w_out, _ = problem(50, 6, 3, activation, torch.float32, d_model=d_model, d_ff=d_ff)
    change = {
        "contiguous": lambda w: w,
        "odd widths": lambda w: w,
        "transposed": lambda w: w.mT.contiguous().mT,
        "strided": lambda w: w.repeat_interleave(2, dim=-1)[..., ::2],
        "shifted": lambda w: torch.cat([w.new_zeros(1), w.flatten()])[1:].view_as(w),
    }[layout]
    arguments = (x, ids, weights, change(w_in), change(w_out), activation)
    doubles = [tensor.double() for tensor in (x, weights, w_in, w_out)]
    expected = gradients(loop_dispatch, (doubles[0], ids, *doubles[1:], activation))
    for dispatch in (blocks_of(block_rows), grouped_dispatch):
        wanted = [arguments[i].detach().requires_grad_() for i in (0, 2, 3, 4)]
        out = dispatch(wanted[0], ids, *wanted[1:], activation)
        cotangent = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view_as(out).float()
        grads = torch.autograd.grad(out, wanted, cotangent)
        for got, exact in zip((out, *grads), (expected[0], *expected[1]), strict=True):
            assert (got.double() - exact).abs().max() < 1e-5 * exact.abs().max()


@pytest.mark.parametrize("dispatch", [loop_dispatch, *OTHERS.values()])
@pytest.mark.parametrize("wrong", [-1, 4])
def test_an_expert_that_does_not_exist_is_refused(dispatch, wrong):
    x, ids, weights, w_in, w_out, activation = problem(5, 4, 2)
    ids[3, 1] = wrong
    with pytest.raises(ValueError, match="pass ids from 0 to 3"):
        dispatch(x, ids, weights, w_in, w_out, activation)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 12), st.integers(1, 5), st.sampled_from([0, 4, 4096]), st.data())
def test_laws(tokens, num_experts, block_rows, data):
    """Permuting tokens permutes outputs; renaming experts changes nothing; the output is linear in the weights."""
    dispatch = blocks_of(block_rows)
    top_k = data.draw(st.integers(1, num_experts))
    x, ids, weights, w_in, w_out, activation = problem(tokens, num_experts, top_k, seed=tokens)
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    out = dispatch(x, ids, weights, w_in, w_out, activation)

    order = torch.randperm(tokens, generator=generator)
    shuffled = dispatch(x[order], ids[order], weights[order], w_in, w_out, activation)
    torch.testing.assert_close(shuffled, out[order], rtol=1e-12, atol=1e-12)

    names = torch.randperm(num_experts, generator=generator)
    renamed = dispatch(x, names.argsort()[ids], weights, w_in[names], w_out[names], activation)
    torch.testing.assert_close(renamed, out, rtol=1e-12, atol=1e-12)

    other = torch.randn(weights.shape, generator=generator, dtype=weights.dtype)
    parts = out + 3 * dispatch(x, ids, other, w_in, w_out, activation)
    together = dispatch(x, ids, weights + 3 * other, w_in, w_out, activation)
    torch.testing.assert_close(together, parts, rtol=1e-10, atol=1e-10)


@each_activation
@pytest.mark.parametrize("tokens", [1, 16, 700, 5000])  # the last is more than a block
def test_one_expert_is_the_dense_ffn_to_the_bit(activation, tokens):
    torch.manual_seed(0)
    dense = DenseFFN(16, 32, activation)
    layer = MoELayer(16, 32, num_experts=1, top_k=1, activation=activation)
    with torch.no_grad():
        layer.experts.w_in[0], layer.experts.w_out[0] = dense.w_in, dense.w_out
    x = torch.randn(tokens, 16)
    out, routing = layer(x)
    assert torch.equal(out, dense(x))
    assert routing.tokens_per_expert.tolist() == [tokens]


@each_activation
def test_memory_saved_for_backward(activation):
    """At most 1.15 times the pre-activations, which are the least without recomputing a GEMM."""
    tokens, top_k, d_ff = 2500, 2, 64  # more than a block
    arguments = problem(tokens, 8, top_k, activation, torch.float32, d_model=32, d_ff=d_ff)
    x, ids, weights, w_in, w_out, _ = arguments
    wanted = [tensor.requires_grad_() for tensor in (x, weights, w_in, w_out)]
    given = {tensor.untyped_storage().data_ptr() for tensor in [*wanted, ids]}
    saved = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in given:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = sorted_dispatch(x, ids, weights, w_in, w_out, activation)
    least = top_k * tokens * w_in.shape[1] * 4
    assert 0 < sum(saved.values()) <= 1.15 * least
    del out


REFUSALS = """
import torch
from moe_course import layers
from tests.layers.test_dispatch import problem

x, ids, weights, w_in, w_out, activation = problem(4, 3, 2)
for dispatch in (layers.loop_dispatch, layers.einsum_dispatch, layers.grouped_dispatch, layers.sorted_dispatch):
    for wrong in [
        (x, ids, weights[:, :1], w_in, w_out, activation),
        (x[:3], ids, weights, w_in, w_out, activation),
        (x[:, :4], ids, weights, w_in, w_out, activation),
        (x, ids, weights, w_in, w_out, "swiglu"),
        (x, ids, weights, w_in, w_out, "relu"),
    ]:
        try:
            dispatch(*wrong)
        except ValueError as error:
            print(error)
        else:
            print("accepted")
"""


def test_what_does_not_fit_is_refused_with_a_remedy():
    """Without the shape checks of notebooks and tests, which would refuse it first, in their own words."""
    done = subprocess.run(
        [sys.executable, "-c", REFUSALS],
        env=os.environ | {"MOE_COURSE_SHAPE_CHECKS": "0"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    said = done.stdout.splitlines()
    assert len(said) == 20, done.stderr
    remedies = [
        "pass one weight for each id",
        "for the same T tokens",
        "do not fit together",
        "for swiglu pass",
        "choose 'gelu' or 'swiglu'",
    ]
    for line, remedy in zip(said, remedies * 4, strict=True):
        assert remedy in line
