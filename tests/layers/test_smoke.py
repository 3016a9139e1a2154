import torch

from moe_course.layers import MoELayer


def test_layer_runs() -> None:
    layer = MoELayer(8, 12, 5, 2)
    out, routing = layer(torch.randn(2, 7, 8))
    out.sum().backward()
    assert out.shape == (2, 7, 8)
    assert routing.tokens_per_expert.sum() == 28
