"""The operators keep the promises that torch.library, torch.compile and checkpointing rely on."""

import torch
from torch.utils.checkpoint import checkpoint

from moe_course.kernels import ops, triton_dispatch
from tests.kernels.problems import gradients, problem


def test_opcheck():
    x, ids, weights, w_in, w_out, activation = problem(6, 3, 2, d_model=8, d_ff=8)
    torch.library.opcheck(ops.permute, (ids, 3))
    order = ops.permute(ids, 3)
    leaves = [tensor.requires_grad_() for tensor in (x, weights, w_in, w_out)]
    torch.library.opcheck(ops.expert_ffn, (*leaves, *order, activation, True))
    with torch.no_grad():
        _, pre = ops.expert_ffn(x, weights, w_in, w_out, *order, activation, True)
        backward = (torch.ones_like(x), x, weights, w_in, w_out, pre, *order, activation)
    detached = [argument.detach() if isinstance(argument, torch.Tensor) else argument for argument in backward]
    torch.library.opcheck(ops.expert_ffn_backward, detached)


def test_compile_in_one_graph():
    """Forward and backward, without breaking the graph, and for another number of tokens too."""
    compiled = torch.compile(triton_dispatch, fullgraph=True)
    for tokens in (12, 9):
        arguments = problem(tokens, 4, 2, "swiglu")
        pairs = zip(gradients(compiled, arguments), gradients(triton_dispatch, arguments), strict=True)
        for ours, eager in pairs:
            torch.testing.assert_close(ours, eager, rtol=1e-5, atol=1e-6)


def test_nothing_is_saved_where_no_gradient_is_wanted():
    x, ids, weights, w_in, w_out, activation = problem(6, 3, 2)
    order = ops.permute(ids, 3)
    _, pre = ops.expert_ffn(x, weights, w_in, w_out, *order, activation, False)
    assert pre.shape == (0, 24)


def test_memory_saved_for_backward():
    """At most 1.15 times the pre-activations, which are the least without computing a GEMM again."""
    tokens, top_k, d_ff = 100, 2, 96
    x, ids, weights, w_in, w_out, activation = problem(tokens, 4, top_k, "swiglu", d_ff=d_ff)
    wanted = [tensor.requires_grad_() for tensor in (x, weights, w_in, w_out)]
    given = {tensor.untyped_storage().data_ptr() for tensor in [*wanted, ids]}
    saved = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in given:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = triton_dispatch(x, ids, weights, w_in, w_out, activation)
    least = top_k * tokens * 2 * d_ff * 4
    assert least <= sum(saved.values()) <= 1.15 * least
    del out


def test_checkpointing():
    x, ids, weights, w_in, w_out, activation = problem(6, 3, 2)

    def dispatch(*arguments):
        return checkpoint(triton_dispatch, *arguments, use_reentrant=False)

    arguments = (x, ids, weights, w_in, w_out, activation)
    for ours, plain in zip(gradients(dispatch, arguments), gradients(triton_dispatch, arguments), strict=True):
        assert torch.equal(ours, plain)
