"""The balance losses: known values, parity with transformers, padding, gradients and inputs that like to break code."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from moe_course.layers import (
    compute_aux_loss,
    gshard_balance_loss,
    kl_balance_loss,
    load_balancing_loss,
    load_fraction,
    max_violation,
    mean_probability,
    model_balance_loss,
    router_z_loss,
    top_k_routing,
)


def _logits(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def _routing(num_tokens, num_experts, top_k, seed=0, dtype=torch.float32):
    # Skewed, so that no two experts are alike.
    logits = _logits(num_tokens, num_experts, seed=seed, dtype=dtype) + torch.linspace(1, -1, num_experts).to(dtype)
    return top_k_routing(logits, top_k)


def _evenly(num_experts, top_k):
    """Probabilities and choices of a batch in which every expert is alike."""
    logits = 3 * torch.stack([torch.eye(num_experts).roll(shift, 1) for shift in range(top_k)]).sum(0)
    routing = top_k_routing(logits, top_k)
    return routing.probs, routing.expert_ids


@pytest.mark.parametrize(("num_experts", "top_k"), [(4, 1), (8, 2), (16, 4), (3, 3), (1, 1)])
def test_an_even_load_costs_one_or_k(num_experts, top_k):
    probs, expert_ids = _evenly(num_experts, top_k)
    assert load_balancing_loss(probs, expert_ids).item() == pytest.approx(1)
    assert load_balancing_loss(probs, expert_ids, divide_by_top_k=False).item() == pytest.approx(top_k)
    assert compute_aux_loss(probs, top_k).item() == pytest.approx(1)
    assert kl_balance_loss(probs).item() == pytest.approx(0, abs=1e-6)
    assert gshard_balance_loss(probs, expert_ids).item() == pytest.approx(1 / num_experts**2)


def test_collapse_costs_e():
    probs = F.one_hot(torch.zeros(10, dtype=torch.int64), 4).float()
    assert compute_aux_loss(probs).item() == pytest.approx(4)
    assert kl_balance_loss(probs).item() == pytest.approx(math.log(4))


def test_from_probabilities_alone_the_k_best_are_the_choices():
    routing = _routing(30, 6, 3)
    for top_k in (1, 3):
        expected = load_balancing_loss(routing.probs, routing.expert_ids[:, :top_k])
        assert compute_aux_loss(routing.probs, top_k).item() == pytest.approx(expected.item())


def test_below_one_where_the_busy_expert_wins_narrowly():
    probs = torch.tensor([[0.51, 0.49]] * 6 + [[0.0, 1.0]] * 4)
    assert load_fraction(probs.argmax(-1, keepdim=True), 2).tolist() == pytest.approx([0.6, 0.4])
    assert mean_probability(probs).tolist() == pytest.approx([0.306, 0.694])
    assert compute_aux_loss(probs).item() == pytest.approx(2 * (0.6 * 0.306 + 0.4 * 0.694))  # 0.9224


@pytest.mark.parametrize(("num_experts", "top_k"), [(8, 2), (64, 8), (4, 1)])
@pytest.mark.parametrize("masked", [False, True])
def test_equals_transformers(num_experts, top_k, masked):
    routings = [_routing(30, num_experts, top_k, seed=seed) for seed in range(3)]
    mask = (torch.arange(30) % 10 < 7).long().view(3, 10) if masked else None
    for layers in (routings[:1], routings):
        expected = load_balancing_loss_func(tuple(r.logits for r in layers), num_experts, top_k, mask)
        got = model_balance_loss(layers, token_mask=mask, divide_by_top_k=False, pool_layers=True)
        torch.testing.assert_close(got, expected)
        halved = model_balance_loss(layers, token_mask=mask, pool_layers=True)
        torch.testing.assert_close(halved * top_k, expected)
    alone = load_balancing_loss(
        routings[0].probs,
        routings[0].expert_ids,
        token_mask=None if mask is None else mask.flatten(),
        divide_by_top_k=False,
    )
    torch.testing.assert_close(alone, load_balancing_loss_func((routings[0].logits,), num_experts, top_k, mask))


def test_layers_averaged_last_are_not_excused_by_each_other():
    first, second = (top_k_routing(9 * torch.eye(2)[[expert] * 10], 1) for expert in (0, 1))
    apart = model_balance_loss([first, second])
    assert apart.item() == pytest.approx(2, abs=1e-3)
    expected = torch.stack([load_balancing_loss(r.probs, r.expert_ids) for r in (first, second)]).mean()
    torch.testing.assert_close(apart, expected)
    assert model_balance_loss([first, second], pool_layers=True).item() == pytest.approx(1, abs=1e-3)
    with pytest.raises(ValueError, match="at least one MoE layer"):
        model_balance_loss([])


@settings(max_examples=30, deadline=None)
@given(num_tokens=st.integers(1, 12), num_experts=st.integers(1, 6), data=st.data())
def test_masked_tokens_might_as_well_not_exist(num_tokens, num_experts, data):
    top_k = data.draw(st.integers(1, num_experts))
    keep = torch.tensor(data.draw(st.lists(st.booleans(), min_size=num_tokens, max_size=num_tokens)))
    routing = _routing(num_tokens, num_experts, top_k)
    probs, ids, logits = routing.probs, routing.expert_ids, routing.logits
    for mask in (keep, keep.long()):
        pairs = [
            (load_fraction(ids, num_experts, token_mask=mask), load_fraction(ids[keep], num_experts)),
            (mean_probability(probs, token_mask=mask), mean_probability(probs[keep])),
            (load_balancing_loss(probs, ids, token_mask=mask), load_balancing_loss(probs[keep], ids[keep])),
            (kl_balance_loss(probs, token_mask=mask), kl_balance_loss(probs[keep])),
            (gshard_balance_loss(probs, ids, token_mask=mask), gshard_balance_loss(probs[keep], ids[keep])),
            (router_z_loss(logits, token_mask=mask), router_z_loss(logits[keep])),
        ]
        for masked, without in pairs:
            torch.testing.assert_close(masked, without)


def test_what_stands_in_padding_does_not_matter():
    routing, mask = _routing(6, 4, 2), torch.tensor([1, 1, 0, 1, 0, 1])
    logits = routing.logits.clone()
    logits[mask == 0] = torch.tensor([math.nan, math.inf, -math.inf, 0.0])
    logits.requires_grad_()
    spoilt = logits.softmax(-1)
    total = load_balancing_loss(spoilt, routing.expert_ids, token_mask=mask) + router_z_loss(logits, token_mask=mask)
    expected = load_balancing_loss(routing.probs, routing.expert_ids, token_mask=mask)
    torch.testing.assert_close(total, expected + router_z_loss(routing.logits, token_mask=mask))


@pytest.mark.parametrize("masked", [False, True])
def test_no_tokens_cost_nothing_and_have_no_gradient(masked):
    num_tokens = 5 if masked else 0
    mask = torch.zeros(5, dtype=torch.bool) if masked else None
    logits = _logits(num_tokens, 4).requires_grad_()
    routing = top_k_routing(logits, 2)
    assert load_fraction(routing.expert_ids, 4, token_mask=mask).tolist() == [0] * 4
    losses = [
        load_balancing_loss(routing.probs, routing.expert_ids, token_mask=mask),
        gshard_balance_loss(routing.probs, routing.expert_ids, token_mask=mask),
        kl_balance_loss(routing.probs, token_mask=mask),
        router_z_loss(logits, token_mask=mask),
        model_balance_loss([routing, routing], token_mask=mask),
    ]
    assert [loss.item() for loss in losses] == [0] * 5
    sum(losses).backward()
    assert logits.grad.isfinite().all() and not logits.grad.any()


def test_experts_without_tokens_count_as_zero():
    expert_ids = torch.tensor([[1, 2], [2, 1], [1, 3]])
    assert load_fraction(expert_ids, 6).tolist() == pytest.approx([0, 3 / 6, 2 / 6, 1 / 6, 0, 0])
    assert load_fraction(expert_ids, 6, divide_by_top_k=False).sum().item() == pytest.approx(2)


def test_leading_dimensions_do_not_matter():
    routing = _routing(12, 4, 2)
    shaped = routing.probs.view(3, 4, 4), routing.expert_ids.view(3, 4, 2)
    mask = torch.arange(12) % 3 > 0
    torch.testing.assert_close(
        load_balancing_loss(*shaped, token_mask=mask.view(3, 4)),
        load_balancing_loss(routing.probs, routing.expert_ids, token_mask=mask),
    )
    torch.testing.assert_close(
        router_z_loss(routing.logits.view(3, 4, 4), token_mask=mask.view(3, 4)),
        router_z_loss(routing.logits, token_mask=mask),
    )


def test_gradients_are_those_of_finite_differences():
    logits = _logits(7, 5, dtype=torch.float64).requires_grad_()
    expert_ids = top_k_routing(logits, 2).expert_ids
    mask = torch.tensor([1, 1, 0, 1, 1, 0, 1])
    for loss in (
        lambda z: load_balancing_loss(z.softmax(-1), expert_ids, token_mask=mask),
        lambda z: gshard_balance_loss(z.softmax(-1), expert_ids),
        lambda z: kl_balance_loss(z.softmax(-1), token_mask=mask),
        lambda z: router_z_loss(z, token_mask=mask),
    ):
        assert torch.autograd.gradcheck(loss, logits)


def test_probability_carries_the_gradient_and_the_load_steers_it():
    logits = _logits(40, 4, dtype=torch.float64).requires_grad_()
    routing = top_k_routing(logits, 1)
    (gradient,) = torch.autograd.grad(load_balancing_loss(routing.probs, routing.expert_ids), logits)
    fraction, probs = load_fraction(routing.expert_ids, 4).double(), routing.probs.detach()
    excess = fraction - (probs * fraction).sum(-1, keepdim=True)
    torch.testing.assert_close(gradient, 4 / 40 * probs * excess)


def test_kl_looks_at_probabilities_only():
    probs = torch.tensor([[0.26, 0.25, 0.25, 0.24]] * 10)  # every token goes to expert 0, narrowly
    assert load_fraction(probs.argmax(-1, keepdim=True), 4).tolist() == [1, 0, 0, 0]
    assert kl_balance_loss(probs).item() < 1e-3
    collapsed = torch.tensor([[1.0, 0.0, 0.0]], requires_grad=True)
    kl_balance_loss(collapsed).backward()
    assert collapsed.grad.isfinite().all()


def test_gshard_counts_first_choices():
    routing = _routing(20, 4, 2)
    first = routing.logits.argmax(-1)
    by_hand = (torch.bincount(first, minlength=4) / 20 * routing.probs.mean(0)).mean()
    torch.testing.assert_close(gshard_balance_loss(routing.probs, routing.expert_ids), by_hand)


def test_z_loss_is_the_mean_of_squares():
    logits = torch.tensor([[0.0, 0.0], [math.log(3), math.log(5)]])
    expected = (math.log(2) ** 2 + math.log(8) ** 2) / 2
    assert router_z_loss(logits).item() == pytest.approx(expected)
    assert router_z_loss(torch.full((2, 3), 1000.0)).item() == pytest.approx((1000 + math.log(3)) ** 2)


def test_low_precision_is_computed_in_float32():
    logits = _logits(2000, 8, dtype=torch.bfloat16)
    routing = top_k_routing(logits, 2)
    exact = top_k_routing(logits.double(), 2)
    for got, want in (
        (router_z_loss(logits), router_z_loss(logits.double())),
        (mean_probability(routing.probs), mean_probability(exact.probs)),
        (
            load_balancing_loss(routing.probs, routing.expert_ids),
            load_balancing_loss(exact.probs, routing.expert_ids),
        ),
    ):
        assert got.dtype == torch.float32 and want.dtype == torch.float64
        torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-6)
    # A mean over many bfloat16 rows must not be summed in bfloat16.
    coarse = torch.full((4000, 2), 0.5, dtype=torch.bfloat16)
    assert mean_probability(coarse).tolist() == [0.5, 0.5]
    assert load_fraction(torch.zeros(20_000, 1, dtype=torch.int64), 2).tolist() == [1, 0]


def test_max_violation():
    loads = torch.tensor([[5, 5, 5, 5], [20, 0, 0, 0], [8, 4, 4, 4], [0, 0, 0, 0]])
    assert max_violation(loads).tolist() == pytest.approx([0, 3, 0.6, 0])
    assert max_violation(loads[2]).item() == pytest.approx(0.6)
