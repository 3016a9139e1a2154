"""Checkpointed experts: same numbers, next to no memory, one decision of the router, tokens counted once."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from moe_course.layers import DenseFFN, MoELayer, MoETransformer, NoisyTopKRouter, TransformerConfig
from moe_course.training import CheckpointedMoELayer, ExpertMonitor, checkpoint_experts, saved_for_backward

T, D, F, E, K = 512, 32, 64, 8, 2
HIDDEN = K * T * F * 4 / 1e6  # MB of one hidden activation for each choice


def _layer(**options):
    torch.manual_seed(0)
    return MoELayer(D, F, E, K, **options)


def _tokens(num_tokens=T):
    return torch.randn(num_tokens, D, generator=torch.Generator().manual_seed(1))


def _run(layer, x):
    """Output and gradients, of x first."""
    x = x.clone().requires_grad_()
    out, routing = layer(x)
    (out.square().mean() + routing.probs.square().mean()).backward()
    return [out.detach(), x.grad, *(p.grad for p in layer.parameters())]


@pytest.mark.parametrize("dispatch", ["sorted", "loop"])
@pytest.mark.parametrize("num_tokens", [0, 1, T, 3000])
def test_the_same_numbers(dispatch, num_tokens):
    plain = _layer(dispatch=dispatch)
    checkpointed = checkpoint_experts(copy.deepcopy(plain))
    x = _tokens(num_tokens)
    for one, other in zip(_run(plain, x), _run(checkpointed, x), strict=True):
        torch.testing.assert_close(one, other)


def test_experts_keep_next_to_nothing():
    layer, x = _layer(), _tokens().requires_grad_()
    with saved_for_backward(x, layer) as plain:
        layer(x)
    with saved_for_backward(x, layer) as checkpointed:
        checkpoint_experts(layer)(x)
    assert plain.megabytes >= HIDDEN
    assert checkpointed.megabytes < 0.2 * HIDDEN


def test_every_layer_of_a_model_is_checkpointed_and_hooks_stay():
    model = MoETransformer(TransformerConfig(64, d_model=16, num_layers=2, num_heads=2, d_ff_expert=16, context=8))
    names = list(model.state_dict())
    calls = []
    model.blocks[0].ffn.register_forward_hook(lambda *call: calls.append(1))
    assert checkpoint_experts(model) is model
    assert all(type(block.ffn) is CheckpointedMoELayer for block in model.blocks)
    assert list(model.state_dict()) == names
    model(torch.zeros(1, 4, dtype=torch.int64)).logits.sum().backward()
    assert calls == [1]


def test_a_noisy_router_decides_once():
    layer = checkpoint_experts(_layer())
    layer.router = NoisyTopKRouter(D, E, K)
    decisions = []
    layer.router.register_forward_hook(lambda module, inputs, routing: decisions.append(routing.expert_ids))
    out, routing = layer(_tokens())
    out.sum().backward()
    assert len(decisions) == 1 and torch.equal(decisions[0], routing.expert_ids)


@pytest.mark.parametrize("whole", [False, True])
def test_the_monitor_counts_once(whole):
    layer = _layer() if whole else checkpoint_experts(_layer())
    with ExpertMonitor(layer) as monitor:
        out, _ = checkpoint(layer, _tokens(), use_reentrant=False) if whole else layer(_tokens())
        out.sum().backward()
    assert [row.tokens for row in monitor.layers()] == [T]


def test_experts_learn_where_nothing_before_them_does():
    layer = checkpoint_experts(_layer())
    layer.router.requires_grad_(False)
    layer(_tokens())[0].sum().backward()
    assert layer.experts.w_in.grad.abs().sum() > 0


def test_what_is_given_and_what_is_shared_does_not_count():
    linear, x = nn.Linear(D, D, bias=False), _tokens().requires_grad_()
    with saved_for_backward() as everything:
        linear(x)
    with saved_for_backward(x, linear) as nothing:
        linear(x)
    assert everything.megabytes == pytest.approx((T * D + D * D) * 4 / 1e6)
    assert nothing.megabytes == 0
    with saved_for_backward(x) as once:
        h = x.exp()  # its own output, which the next two keep as well
        h.square(), h.sin()
    assert once.megabytes == pytest.approx(T * D * 4 / 1e6)


def test_a_dense_model_cannot_be_checkpointed_so():
    with pytest.raises(ValueError, match="DenseFFN has no MoELayer"):
        checkpoint_experts(DenseFFN(4, 8))
