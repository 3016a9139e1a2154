"""Expert capacity: who gets a slot, what dropping does to the output, and how much chance alone drops."""

import math
from inspect import unwrap

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_course.layers import (
    CapacityRouter,
    CappedRouting,
    MoELayer,
    NoisyRouting,
    NoisyTopKRouter,
    cap_routing,
    capped_einsum_dispatch,
    dispatch_and_combine,
    einsum_dispatch,
    expected_drop_rate,
    expert_capacity,
    grouped_dispatch,
    load_loss,
    loop_dispatch,
    position_in_expert,
    slot_usage,
    sorted_dispatch,
    top_k_routing,
)
from moe_course.layers import capacity as capacity_module
from moe_course.training import ExpertMonitor

SIZES = {"usual": (9, 4, 2), "K = 1": (8, 3, 1), "K = E": (5, 3, 3), "E = 1": (4, 1, 1), "no tokens": (0, 4, 2)}
each_size = pytest.mark.parametrize(("tokens", "num_experts", "top_k"), SIZES.values(), ids=SIZES.keys())
each_priority = pytest.mark.parametrize("priority", ["first_come", "score"])

problems = st.tuples(st.integers(0, 24), st.integers(1, 6), st.integers(1, 6), st.integers(0, 2**16)).filter(
    lambda drawn: drawn[2] <= drawn[1]
)


def routed(tokens, num_experts, top_k, seed=0, dtype=torch.float64, skew=1.0):
    """A routing that favours the first experts; its weights do not sum to 1."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(tokens, num_experts, generator=generator, dtype=torch.float64)
    logits = logits + skew * torch.linspace(1, -1, num_experts, dtype=torch.float64)
    return top_k_routing(logits.to(dtype), top_k, renormalize=False)


def weights_of(num_experts, d_model=4, d_ff=6, rows=1, dtype=torch.float64):
    generator = torch.Generator().manual_seed(3)
    shapes = (num_experts, rows * d_ff, d_model), (num_experts, d_model, d_ff)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


def by_hand(expert_ids, num_experts, scores=None):
    """Positions by walking along the queue."""
    num_tokens, top_k = expert_ids.shape
    queue = [(t, k) for k in range(top_k) for t in range(num_tokens)]
    if scores is not None:
        queue.sort(key=lambda choice: -scores[choice].item())  # Python's sort is stable, reversed or not
    position, taken = torch.zeros_like(expert_ids), [0] * num_experts
    for t, k in queue:
        expert = int(expert_ids[t, k])
        position[t, k] = taken[expert]
        taken[expert] += 1
    return position


@pytest.mark.parametrize(
    ("arguments", "capacity"),
    [
        ((64, 8, 1, 1.0), 8),
        ((64, 8, 1, 1.25), 10),
        ((64, 8, 2, 1.25), 20),
        ((60, 8, 1, 1.0), 8),  # 7.5, rounded up
        ((9, 4, 1, 1.25), 3),  # 2.8; a factor rounded before the product would give 2
        ((3, 8, 1, 1.0), 1),  # fewer tokens than experts
        ((16, 4, 2, 8.0), 16),  # never more slots than tokens
        ((16, 4, 2, math.inf), 16),
        ((100, 10, 1, 1.1), 11),  # 100 · 1.1 / 10 is a little more in floating point
        ((5, 5, 5, 1.0), 5),
        ((0, 4, 2, 1.25), 0),
        ((0, 4, 2, math.inf), 0),
    ],
)
def test_capacity_by_hand(arguments, capacity):
    assert expert_capacity(*arguments) == capacity


@settings(max_examples=60, deadline=None)
@given(problems, st.booleans())
def test_position_is_the_place_in_the_queue(drawn, by_score):
    routing = routed(*drawn)
    scores = routing.weights if by_score else None
    position = position_in_expert(routing.expert_ids, drawn[1], scores)
    assert torch.equal(position, by_hand(routing.expert_ids, drawn[1], scores))


def test_a_token_loses_its_second_choice_before_another_loses_its_first():
    expert_ids = torch.tensor([[0, 1], [1, 0], [1, 2]])
    position = position_in_expert(expert_ids, 3)
    assert position.tolist() == [[0, 2], [0, 1], [1, 0]]
    routing = cap_routing(top_k_routing(torch.tensor([[2.0, 1, 0], [1, 2, 0], [0, 2, 1]]), 2), 2)
    assert routing.dropped.tolist() == [[False, True], [False, False], [False, False]]


def test_equal_scores_are_served_in_the_order_of_the_tokens():
    expert_ids = torch.tensor([[0, 1], [1, 0], [0, 1], [1, 0]])
    assert torch.equal(position_in_expert(expert_ids, 2, torch.ones(4, 2)), position_in_expert(expert_ids, 2))


@settings(max_examples=60, deadline=None)
@given(problems, st.integers(0, 12), st.sampled_from(["first_come", "score"]))
def test_laws_of_capping(drawn, capacity, priority):
    """Never more than C an expert; a slot stays empty only where nobody wanted it; totals agree."""
    tokens, num_experts, top_k, _ = drawn
    routing = routed(*drawn)
    capped = cap_routing(routing, capacity, priority)
    kept = torch.bincount(routing.expert_ids[~capped.dropped], minlength=num_experts)
    used, padded, dropped = slot_usage(routing.tokens_per_expert, capacity)
    assert torch.equal(kept, used) and int(used.max()) <= capacity
    assert torch.equal(used + dropped, routing.tokens_per_expert) and (used + padded == capacity).all()
    assert int(dropped.sum()) == int(capped.dropped.sum()) == tokens * top_k - int(used.sum())
    assert not ((padded > 0) & (dropped > 0)).any()
    assert torch.equal(capped.weights, torch.where(capped.dropped, 0.0, routing.weights))


@settings(max_examples=60, deadline=None)
@given(problems, st.integers(1, 12))
def test_score_priority_drops_the_least_weights(drawn, capacity):
    routing = routed(*drawn)
    capped = cap_routing(routing, capacity, "score")
    for expert in range(drawn[1]):
        mine = routing.expert_ids == expert
        lost, kept = routing.weights[mine & capped.dropped], routing.weights[mine & ~capped.dropped]
        assert lost.numel() == 0 or lost.max() <= kept.min()
    first_come = cap_routing(routing, capacity)
    assert capped.dropped.sum() == first_come.dropped.sum()
    assert capped.weights.sum() >= first_come.weights.sum() - 1e-12


@each_size
@each_priority
@pytest.mark.parametrize("activation", ["gelu", "swiglu"])
def test_every_dispatch_is_the_einsum_over_slots(tokens, num_experts, top_k, priority, activation):
    x = torch.randn(tokens, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    w_in, w_out = weights_of(num_experts, rows=2 if activation == "swiglu" else 1)
    for capacity in (0, 1, 2, tokens, tokens + 3):
        routing = cap_routing(routed(tokens, num_experts, top_k), capacity, priority)
        slots = capped_einsum_dispatch(x, routing, w_in, w_out, activation)
        for dispatch in (loop_dispatch, einsum_dispatch, grouped_dispatch, sorted_dispatch):
            out = dispatch(x, routing.expert_ids, routing.weights, w_in, w_out, activation)
            torch.testing.assert_close(out, slots, rtol=1e-12, atol=1e-12)


def test_dispatch_and_combine_hold_each_kept_choice_in_its_slot():
    capped = cap_routing(routed(9, 4, 2), 3)
    dispatch, combine = dispatch_and_combine(capped)
    assert dispatch.shape == combine.shape == (9, 4, 3)
    assert (dispatch.sum(0) <= 1).all()
    assert dispatch.sum() == (~capped.dropped).sum()
    for t, k in (~capped.dropped).nonzero().tolist():
        place = t, capped.expert_ids[t, k], capped.position[t, k]
        assert dispatch[place] == 1 and combine[place] == capped.weights[t, k]


def test_room_for_all_is_the_layer_without_capacity():
    torch.manual_seed(0)
    layer = MoELayer(4, 6, num_experts=4, top_k=2, dtype=torch.float64)
    x = torch.randn(3, 7, 4, dtype=torch.float64)
    expected, _ = layer(x)
    layer.router = CapacityRouter(layer.router, capacity_factor=math.inf)
    out, routing = layer(x)
    torch.testing.assert_close(out, expected, rtol=0, atol=0)
    assert routing.capacity == 21 and not routing.dropped.any()


def test_a_token_without_a_slot_comes_out_as_zero_and_gets_no_gradient_from_the_layer():
    torch.manual_seed(0)
    layer = MoELayer(4, 6, num_experts=2, top_k=1, renormalize=False)
    layer.router = CapacityRouter(layer.router, capacity_factor=0.5)
    x = torch.randn(16, 4, requires_grad=True)
    out, routing = layer(x)
    lost = routing.dropped.all(-1)
    assert 0 < lost.sum() < 16
    assert not out[lost].any() and out[~lost].any(-1).all()
    out.sum().backward()
    assert not x.grad[lost].any() and x.grad[~lost].any(-1).all()


def test_weights_of_other_choices_are_left_as_they_are():
    routing = top_k_routing(torch.tensor([[1.0, 0.0], [1.0, 0.5]], dtype=torch.float64), 2)
    capped = cap_routing(routing, 1)
    assert capped.dropped.tolist() == [[False, False], [True, True]]
    assert torch.equal(capped.weights[0], routing.weights[0]) and not capped.weights[1].any()
    assert capped.uncapped is routing


@each_size
@each_priority
def test_gradcheck(tokens, num_experts, top_k, priority):
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(tokens, num_experts, dtype=torch.float64, generator=generator).requires_grad_()
    x = torch.randn(tokens, 4, dtype=torch.float64, generator=generator).requires_grad_()
    weights = [weight.requires_grad_() for weight in weights_of(num_experts)]

    def layer(logits, x, w_in, w_out):
        routing = cap_routing(top_k_routing(logits, top_k, renormalize=False), 2, priority)
        return capped_einsum_dispatch(x, routing, w_in, w_out)

    assert torch.autograd.gradcheck(layer, (logits, x, *weights), fast_mode=True)


@each_priority
def test_bfloat16_and_more_dimensions(priority):
    torch.manual_seed(0)
    layer = MoELayer(4, 6, num_experts=4, top_k=2, dtype=torch.bfloat16)
    layer.router = CapacityRouter(layer.router, capacity_factor=1.0, priority=priority)
    x = torch.randn(2, 9, 4).bfloat16()
    out, routing = layer(x)
    slots = capped_einsum_dispatch(x.flatten(0, 1), routing, layer.experts.w_in, layer.experts.w_out)
    assert out.shape == x.shape and out.dtype == slots.dtype == routing.weights.dtype == torch.bfloat16
    torch.testing.assert_close(out.flatten(0, 1), slots, rtol=0.05, atol=0.02)
    assert layer(x[:0])[0].shape == (0, 9, 4)


def test_evaluation_has_a_capacity_of_its_own():
    torch.manual_seed(0)
    layer = MoELayer(4, 6, num_experts=4, top_k=1)
    layer.router = CapacityRouter(layer.router, capacity_factor=1.25, eval_capacity_factor=2.0)
    x = torch.randn(64, 4)
    assert layer(x)[1].capacity == 20 and layer.eval()(x)[1].capacity == 32
    layer.router = CapacityRouter(layer.router.router, capacity_factor=1.25)
    assert layer.eval()(x)[1].capacity == 20


def test_a_noisy_routing_is_kept_for_its_losses():
    torch.manual_seed(0)
    router = CapacityRouter(NoisyTopKRouter(4, 4, 2), capacity_factor=0.5)
    routing = router(torch.randn(16, 4))
    assert isinstance(routing, CappedRouting) and isinstance(routing.uncapped, NoisyRouting)
    assert load_loss(routing.uncapped).requires_grad


def test_the_monitor_counts_what_was_wanted_and_what_was_dropped():
    torch.manual_seed(0)
    layer = MoELayer(4, 6, num_experts=4, top_k=2)
    layer.router = CapacityRouter(layer.router, capacity_factor=1.0, eval_capacity_factor=math.inf)
    dropped = 0
    with ExpertMonitor(layer) as monitor, ExpertMonitor(layer, training=False) as evaluation:
        for x in torch.randn(3, 32, 4).unbind(0):
            out, routing = layer(x)
            out.sum().backward()
            dropped += int(routing.dropped.sum())
        layer.eval()(torch.randn(8, 4))
    (load,), (evaluated,) = monitor.layers(), evaluation.layers()
    assert load.dropped == dropped > 0 and evaluated.dropped == 0
    assert (load.tokens, sum(load.tokens_per_expert)) == (96, 192)
    assert f"{dropped / 192:.1%}" in repr(monitor)


@pytest.mark.parametrize(
    ("tokens", "num_experts", "top_k", "factor"), [(64, 8, 1, 1.0), (64, 8, 1, 1.25), (48, 6, 2, 1.0), (20, 5, 4, 1.1)]
)
def test_expected_drop_rate_is_what_random_routers_drop(tokens, num_experts, top_k, factor):
    capacity, draws = expert_capacity(tokens, num_experts, top_k, factor), 4000
    scores = torch.rand(draws, tokens, num_experts, generator=torch.Generator().manual_seed(0))
    chosen = torch.zeros_like(scores).scatter(-1, scores.topk(top_k).indices, 1)
    drops = (chosen.sum(1) - capacity).clamp(min=0).sum(-1) / (tokens * top_k)  # (draws,)
    expected = expected_drop_rate(tokens, num_experts, top_k, capacity)
    assert abs(drops.mean().item() - expected) < 5 * drops.std().item() / draws**0.5


@pytest.mark.parametrize(
    ("tokens", "factor", "percent"),
    [(64, 1.0, 12.96), (256, 1.0, 6.53), (1024, 1.0, 3.31), (64, 1.25, 4.68), (256, 1.25, 0.55), (1024, 1.25, 0.0)],
)
def test_expected_drop_rate_agrees_with_measured_ones(tokens, factor, percent):
    """The percentages were measured by simulation, once."""
    rate = expected_drop_rate(tokens, 8, 1, expert_capacity(tokens, 8, 1, factor))
    assert 100 * rate == pytest.approx(percent, abs=0.16)


def test_expected_drop_rate_by_hand():
    assert expected_drop_rate(2, 2, 1, 1) == pytest.approx(1 / 4)  # both to one expert in half of all cases
    assert expected_drop_rate(5, 3, 3, 4) == pytest.approx(1 / 5)  # K = E: nothing is left to chance
    assert expected_drop_rate(5, 1, 1, 2) == pytest.approx(3 / 5)
    assert expected_drop_rate(7, 4, 2, 7) == 0 and expected_drop_rate(0, 4, 2, 0) == 0
    assert expected_drop_rate(7, 4, 2, 0) == pytest.approx(1)
    assert 0 < expected_drop_rate(100_000, 64, 8, 12_500) < 0.01


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="capacity_factor=0 leaves no slot; choose capacity_factor > 0"):
        expert_capacity(8, 4, 1, 0)
    with pytest.raises(ValueError, match="choose top_k ≤ num_experts"):
        expert_capacity(8, 4, 5, 1.0)
    with pytest.raises(ValueError, match="capacity_factor=-1 leaves no slot"):
        CapacityRouter(MoELayer(4, 6, 4, 2).router, capacity_factor=1.0, eval_capacity_factor=-1)
    with pytest.raises(ValueError, match="priority='random' is unknown; choose 'first_come' or 'score'"):
        unwrap(capacity_module._check_priority)("random")  # the shape checks would refuse it first, in their own words
