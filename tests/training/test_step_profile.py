"""A step's time is charged to the parts that spend it, forward and backward."""

import time

import pytest
import torch
from torch import nn

from moe_course.layers import DenseFFN, MoELayer, MoETransformer, TransformerConfig
from moe_course.training import checkpoint_experts, language_model_loss, profile_step, profile_steps


class Slow(torch.autograd.Function):
    """Takes 100 ms in the forward and 200 ms in the backward pass, however busy the machine is."""

    @staticmethod
    def forward(ctx, x):
        time.sleep(0.1)
        return x.clone()

    @staticmethod
    def backward(ctx, dout):
        time.sleep(0.2)
        return dout.clone()


class SlowAttention(nn.Module):
    def forward(self, x):
        return Slow.apply(x)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.attention = DenseFFN(4, 8), SlowAttention()

    def forward(self, x):
        return self.attention(self.first(x))


def _costs(model, x):
    optimizer = torch.optim.AdamW(model.parameters())

    def step():
        optimizer.zero_grad()
        model(x).sum().backward()
        optimizer.step()

    total = {}
    for part, phase, _, milliseconds in profile_step(step, model, repeats=2):
        total[part, phase] = total.get((part, phase), 0) + milliseconds
    return total


def test_each_part_is_charged_for_its_own_time():
    total = _costs(Model(), torch.randn(3, 4))
    assert 100 <= total["attention", "forward"] < 200 <= total["attention", "backward"]
    assert total["dense FFN", "forward"] < 100 and total["dense FFN", "backward"] < 100
    assert total["optimizer", "update"] > 0


@pytest.mark.parametrize("checkpointed", [False, True])
def test_parts_and_kinds_of_a_transformer(checkpointed):
    torch.manual_seed(0)
    model = MoETransformer(TransformerConfig(64, d_model=16, num_layers=2, num_heads=2, d_ff_expert=16, context=16))
    model = checkpoint_experts(model) if checkpointed else model
    ids = torch.randint(64, (2, 17))
    before = len(model.blocks[0].ffn.router._forward_hooks)
    rows = profile_step(lambda: language_model_loss(model, ids).loss.backward(), model, repeats=1)
    seen = {(row.part, row.phase) for row in rows}
    parts = ("attention", "router", "experts", "the rest")
    assert seen == {(part, phase) for part in parts for phase in ("forward", "backward")}
    kinds = {row.kind for row in rows if row.part == "experts" and row.phase == "backward"}
    assert kinds == {"matrix products", "moving tokens", "other"}
    assert len(model.blocks[0].ffn.router._forward_hooks) == before


def test_models_take_turns_and_the_least_time_counts():
    order = []

    def step(name):
        def run():
            order.append(name)
            Slow.apply(torch.ones(1))

        return run

    costs = profile_steps({name: (step(name), nn.Identity()) for name in "ab"}, repeats=2)
    assert order == ["a", "b", "a", "b", "a", "b"]
    for rows in costs.values():
        assert {(row.part, row.phase) for row in rows} == {("the rest", "forward")}
        assert 100 <= sum(row.milliseconds for row in rows) < 200


def test_hooks_are_gone_after_an_error():
    layer = MoELayer(4, 8, 4, 2)
    calls = []

    def step():
        calls.append(1)
        if len(calls) > 1:
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        profile_step(step, layer)
    assert not layer.router._forward_hooks and not layer.router._forward_pre_hooks
