"""Micro-batches add up to the gradient of the whole step, balance loss included, to float64's precision."""

import pytest
import torch
from torch import nn

from moe_course.layers import MoELayer, model_balance_loss
from moe_course.training import accumulate


class TwoLayers(nn.Module):
    def __init__(self, top_k):
        super().__init__()
        self.layers = nn.ModuleList(MoELayer(6, 8, experts, top_k) for experts in (4, 7))

    def forward(self, x):
        """The mean loss of the tokens, and the routings."""
        routings = []
        for layer in self.layers:
            out, routing = layer(x)
            x = x + out
            routings.append(routing)
        return x.square().sum(-1).mean(), routings


def _model(top_k=2):
    torch.manual_seed(0)
    return TwoLayers(top_k).double()


def _tokens(*sizes):
    """Micro-batches of these sizes, each around a place of its own, so that each has its favourite experts."""
    generator = torch.Generator().manual_seed(1)
    places = [3 * torch.randn(6, generator=generator, dtype=torch.float64) for _ in sizes]
    draws = [torch.randn(n, 6, generator=generator, dtype=torch.float64) for n in sizes]
    return [place + draw for place, draw in zip(places, draws, strict=True)]


def _gradient(model):
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def _whole(model, micro_batches, alpha):
    loss, routings = model(torch.cat(micro_batches))
    balance = torch.stack([model_balance_loss([routing]) for routing in routings]).mean()
    (loss + alpha * balance).backward()
    return loss.item(), balance.item()


@pytest.mark.parametrize("top_k", [1, 2])
@pytest.mark.parametrize("sizes", [(8, 8, 8), (1, 12, 5), (24,)])
def test_the_gradient_is_that_of_one_large_batch(sizes, top_k):
    micro_batches = _tokens(*sizes)
    large, small = _model(top_k), _model(top_k)
    task, balance = _whole(large, micro_batches, alpha=0.7)
    losses = accumulate(small, micro_batches, balance_weight=0.7)
    torch.testing.assert_close(_gradient(small), _gradient(large), rtol=1e-12, atol=1e-13)
    assert (losses.task, losses.balance) == pytest.approx((task, balance), rel=1e-12)


def test_the_usual_way_has_another_gradient_and_a_larger_loss():
    micro_batches = _tokens(8, 8, 8)
    large, usual = _model(), _model()
    _, balance = _whole(large, micro_batches, alpha=1.0)
    values = []
    for micro_batch in micro_batches:
        loss, routings = usual(micro_batch)
        values.append(torch.stack([model_balance_loss([routing]) for routing in routings]).mean())
        ((loss + values[-1]) / 3).backward()
    assert (_gradient(usual) - _gradient(large)).norm() > 0.01 * _gradient(large).norm()
    assert torch.stack(values).mean() > balance + 0.01


def test_gradients_are_added():
    micro_batches, model = _tokens(4, 6), _model()
    accumulate(model, micro_batches, balance_weight=0.1)
    once = _gradient(model)
    accumulate(model, micro_batches, balance_weight=0.1)
    torch.testing.assert_close(_gradient(model), 2 * once)


def test_errors_say_what_to_do():
    with pytest.raises(ValueError, match="micro_batches is empty; pass at least one"):
        accumulate(_model(), [], balance_weight=0.1)
    with pytest.raises(ValueError, match="no routing"):
        accumulate(lambda x: (x.sum(), []), _tokens(3), balance_weight=0.1)
