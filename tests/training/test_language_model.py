"""The loss is the text's cross-entropy plus the routers' losses, each with its weight."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from moe_course.layers import MoETransformer, TransformerConfig, load_balancing_loss, router_z_loss
from moe_course.training import language_model_loss

CONFIG = TransformerConfig(
    vocab_size=13, d_model=16, num_layers=4, num_heads=2, moe_every=2, num_experts=5, d_ff=8, d_ff_expert=8, context=8
)


def make(**settings):
    torch.manual_seed(0)
    return MoETransformer(replace(CONFIG, **settings), dtype=torch.float64)


IDS = torch.randint(13, (3, 9), generator=torch.Generator().manual_seed(1))


def test_parts_and_their_sum():
    model = make()
    loss = language_model_loss(model, IDS, balance_weight=0.3, z_weight=0.07)
    output = model(IDS[:, :-1])
    log_probs = output.logits.log_softmax(-1)
    nats = [-log_probs[b, s, IDS[b, s + 1]] for b in range(3) for s in range(8)]
    torch.testing.assert_close(loss.cross_entropy, torch.stack(nats).mean())
    first, second = output.routings.values()
    balance = [load_balancing_loss(r.probs, r.expert_ids) for r in (first, second)]
    z = [router_z_loss(r.logits) for r in (first, second)]
    torch.testing.assert_close(loss.balance, sum(balance) / 2)
    torch.testing.assert_close(loss.z, sum(z) / 2)
    torch.testing.assert_close(loss.loss, loss.cross_entropy + 0.3 * loss.balance + 0.07 * loss.z)
    assert (balance[0] - balance[1]).abs() > 1e-3 and loss.z > 0.1


def test_weights_say_what_reaches_the_router():
    def gradient(**weights):
        model = make()
        language_model_loss(model, IDS, **weights).loss.backward()
        return model.blocks[1].ffn.router.weight.grad

    text = gradient(balance_weight=0.0)
    assert not torch.allclose(text, gradient(balance_weight=1.0), atol=1e-4)
    assert not torch.allclose(text, gradient(balance_weight=0.0, z_weight=1.0), atol=1e-4)
    assert not torch.allclose(text, gradient(), atol=1e-6), "the balance loss counts unless you say otherwise"
    torch.testing.assert_close(gradient(balance_weight=0.01), gradient())


def test_a_dense_model_has_the_text_alone():
    loss = language_model_loss(make(moe_every=0), IDS, balance_weight=5.0, z_weight=5.0)
    assert loss.balance == loss.z == 0 and loss.loss == loss.cross_entropy
    assert loss.loss.requires_grad


def test_sigmoid_scores_are_made_probabilities():
    model = make(score="sigmoid", moe_every=4)
    loss = language_model_loss(model, IDS)
    (routing,) = model(IDS[:, :-1]).routings.values()
    probs = F.normalize(routing.probs, p=1, dim=-1)
    torch.testing.assert_close(loss.balance, load_balancing_loss(probs, routing.expert_ids))
    assert 0.9 < loss.balance < 2 < load_balancing_loss(routing.probs, routing.expert_ids)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_cross_entropy_is_taken_in_float32(dtype):
    loss = language_model_loss(make().to(dtype), IDS)
    assert loss.cross_entropy.dtype == loss.balance.dtype == torch.float32
    loss.loss.backward()


def test_a_model_learns_a_rule():
    torch.manual_seed(0)
    model = MoETransformer(replace(CONFIG, num_layers=2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-2)
    generator = torch.Generator().manual_seed(0)
    first = torch.randint(13, (60, 16, 1), generator=generator)
    batches = (first + 3 * torch.arange(9)) % 13  # every token is the one before plus 3
    for batch in batches:
        optimizer.zero_grad()
        loss = language_model_loss(model, batch)
        loss.loss.backward()
        optimizer.step()
    assert loss.cross_entropy < 0.1
