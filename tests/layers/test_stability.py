"""A router in float32 under any dtype and under autocast, and weights with the variance asked for."""

import pytest
import torch
from torch.nn import functional as F

from moe_course.layers import Float32Router, MoELayer, Router, precise_logits, variance_scaling_


def _normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _example(dtype=torch.bfloat16):
    """ST-MoE's: ten logits of 128 and one of 128.5, from operands that bfloat16 has."""
    return torch.tensor([[128.0, 0.5]], dtype=dtype), torch.tensor([[1.0, 0.0]] * 10 + [[1.0, 1.0]], dtype=dtype)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_example_keeps_its_lead(autocast, dtype):
    x, weight = _example(dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        logits = precise_logits(x, weight)
    assert logits.dtype == torch.float32
    assert logits[0, -1].item() == 128.5
    assert logits.softmax(-1)[0, -1].item() == pytest.approx(0.142, abs=5e-4)


def test_a_plain_router_loses_it():
    x, weight = _example()
    assert F.linear(x, weight).float().softmax(-1)[0, -1].item() == pytest.approx(0.091, abs=5e-4)


def test_float64_stays():
    x, weight = _normal(3, 4).double(), _normal(2, 4).double()
    assert torch.equal(precise_logits(x, weight), x @ weight.T)
    assert torch.autograd.gradcheck(precise_logits, (x.requires_grad_(), weight.requires_grad_()))


@pytest.mark.parametrize("autocast", [False, True])
def test_the_router_routes_as_in_float32(autocast):
    router = Float32Router(8, 6, 2, dtype=torch.bfloat16)
    x = (_normal(40, 8) + 20).bfloat16()
    with torch.no_grad():
        router.weight += 4
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        routing = router(x)
    exact = (x.double() @ router.weight.double().T).topk(2, dim=-1).indices
    assert routing.logits.dtype == routing.weights.dtype == torch.float32
    assert torch.equal(routing.expert_ids, exact)
    plain = Router(8, 6, 2, dtype=torch.bfloat16)
    plain.load_state_dict(router.state_dict())
    assert not torch.equal(plain(x).expert_ids, exact)


@pytest.mark.parametrize("dispatch", ["sorted", "grouped", "einsum", "loop"])
def test_a_bfloat16_layer_takes_it(dispatch):
    layer = MoELayer(8, 16, 4, 2, dispatch=dispatch, dtype=torch.bfloat16)
    layer.router = Float32Router(8, 4, 2, dtype=torch.bfloat16)
    x = _normal(2, 5, 8).bfloat16().requires_grad_()
    out, _ = layer(x)
    out.float().square().sum().backward()
    assert out.dtype == torch.bfloat16 and out.shape == x.shape
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())


@pytest.mark.parametrize("shape", [(64, 256), (4, 32, 128)])
@pytest.mark.parametrize("scale", [0.1, 1.0])
def test_variance_is_scale_over_fan_in(shape, scale):
    torch.manual_seed(0)
    weight = torch.empty(shape)
    variance_scaling_(weight, scale)
    assert weight.var().item() * shape[-1] == pytest.approx(scale, rel=0.03)
    assert weight.abs().max().item() <= 2 / 0.8796 * (scale / shape[-1]) ** 0.5 * 1.001


def test_a_float32_router_starts_small():
    torch.manual_seed(0)
    assert Float32Router(256, 64, 2).weight.var().item() * 256 == pytest.approx(0.1, rel=0.05)
    assert Float32Router(256, 64, 2, init_scale=1.0).weight.var().item() * 256 == pytest.approx(1.0, rel=0.05)


def test_errors_say_what_to_do():
    with pytest.raises(ValueError, match="is negative; choose scale ≥ 0"):
        variance_scaling_(torch.empty(2, 2), -1.0)
    with pytest.raises(ValueError, match="d_model=8"):
        Float32Router(8, 4, 2)(torch.zeros(3, 7))
