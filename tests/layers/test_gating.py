"""Noisy top-k gating: its load estimator against sampling, evaluation without noise, and the edges of K, E and T."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.checkpoint import checkpoint

from moe_course.layers import (
    JitteredRouter,
    MoELayer,
    NoisyRouting,
    NoisyTopKRouter,
    Router,
    cv_squared,
    importance,
    importance_loss,
    jittered,
    kth_excluding,
    load_loss,
    noisy_top_k_routing,
    router_saturation,
    selection_probability,
    smooth_load,
    top_k_routing,
)

SIZES = {"usual": (7, 5, 2), "K = 1": (6, 4, 1), "K = E - 1": (5, 4, 3), "K = E": (5, 3, 3), "E = 1": (4, 1, 1)}
each_size = pytest.mark.parametrize(("tokens", "num_experts", "top_k"), SIZES.values(), ids=SIZES.keys())


def drawn(tokens, num_experts, seed=0, dtype=torch.float64):
    """Clean logits, noise scales and noise."""
    generator = torch.Generator().manual_seed(seed)
    clean, raw, noise = (torch.randn(tokens, num_experts, generator=generator, dtype=torch.float64) for _ in range(3))
    return clean.to(dtype), torch.nn.functional.softplus(raw).to(dtype), noise.to(dtype)


def awake_router(d_model=6, num_experts=4, top_k=2, dtype=torch.float32):
    """A router whose matrices have left zero."""
    torch.manual_seed(0)
    router = NoisyTopKRouter(d_model, num_experts, top_k, dtype=dtype)
    with torch.no_grad():
        for weight in router.parameters():
            weight.normal_()
    return router


@each_size
def test_kth_excluding_is_its_definition(tokens, num_experts, top_k):
    values = drawn(tokens, num_experts)[0]
    values[0] = 1.0  # all tied
    got = kth_excluding(values, top_k)
    for t, row in enumerate(values.tolist()):
        for i in range(num_experts):
            others = sorted(row[:i] + row[i + 1 :], reverse=True)
            assert got[t, i] == (others[top_k - 1] if top_k <= len(others) else -math.inf)


@each_size
def test_an_expert_is_chosen_when_it_beats_kth_excluding(tokens, num_experts, top_k):
    clean, scale, noise = drawn(tokens, num_experts)
    routing = noisy_top_k_routing(clean, scale, top_k, noise)
    chosen = torch.zeros_like(clean, dtype=torch.bool).scatter(1, routing.expert_ids, True)
    assert torch.equal(chosen, routing.logits > kth_excluding(routing.logits, top_k))


@each_size
def test_selection_probability_is_the_frequency_over_new_noise_on_one_expert(tokens, num_experts, top_k):
    clean, scale, noise = drawn(tokens, num_experts)
    probability = selection_probability(noisy_top_k_routing(clean, scale, top_k, noise))
    draws, generator = 20_000, torch.Generator().manual_seed(1)
    for i in range(num_experts):
        anew = noise.repeat(draws, 1, 1)
        anew[..., i] = torch.randn(draws, tokens, generator=generator, dtype=torch.float64)
        logits = clean + anew * scale
        chosen = (logits.topk(top_k, dim=-1).indices == i).any(-1)
        error = (chosen.double().mean(0) - probability[:, i]).abs().max()
        assert error < 5 * 0.5 / draws**0.5  # five standard errors of the worst case


@each_size
def test_smooth_load_is_the_load_on_average_over_the_noise(tokens, num_experts, top_k):
    clean, scale, _ = drawn(tokens, num_experts)
    draws, generator = 20_000, torch.Generator().manual_seed(1)
    noise = torch.randn(draws, tokens, num_experts, generator=generator, dtype=torch.float64)
    many = noisy_top_k_routing(
        clean.repeat(draws, 1), scale.repeat(draws, 1), top_k, noise.view(draws * tokens, num_experts)
    )
    smooth, counted = smooth_load(many) / draws, many.tokens_per_expert / draws
    assert (smooth - counted).abs().max() < 5 * 0.5 * (tokens / draws) ** 0.5
    assert smooth.sum().item() == pytest.approx(tokens * top_k, rel=0.02)


@each_size
def test_gradcheck(tokens, num_experts, top_k):
    inputs = [tensor.requires_grad_() for tensor in drawn(tokens, num_experts)[:2]]
    noise = drawn(tokens, num_experts)[2]

    def losses(clean, scale):
        routing = noisy_top_k_routing(clean, scale, top_k, noise)
        return selection_probability(routing), load_loss(routing), importance_loss(routing), routing.weights

    assert torch.autograd.gradcheck(losses, inputs)


def test_load_loss_pushes_a_crowded_expert_down_although_its_count_has_no_gradient():
    clean = torch.zeros(64, 4, dtype=torch.float64)
    clean[:, 0] = 1.0
    clean.requires_grad_()
    noise = drawn(64, 4)[2]
    routing = noisy_top_k_routing(clean, torch.full_like(clean, 0.7), 2, noise)
    assert routing.tokens_per_expert.argmax() == 0
    gradient = torch.autograd.grad(load_loss(routing), clean)[0].sum(0)
    assert gradient[0] > 0 and (gradient[1:] < 0).all()


def test_evaluation_is_plain_top_k_routing():
    router = awake_router().eval()
    x = torch.randn(9, 6)
    routing, plain = router(x), top_k_routing(x @ router.weight.T, 2)
    assert torch.equal(routing.expert_ids, plain.expert_ids)
    torch.testing.assert_close(routing.weights, plain.weights)
    torch.testing.assert_close(routing.logits, plain.logits)
    assert torch.equal(router(x).logits, routing.logits)
    assert selection_probability(routing).isfinite().all()


def test_training_adds_the_noise_that_the_scale_says():
    router = awake_router()
    x = torch.randn(1, 6).expand(20_000, 6)
    routing = router(x)
    added = routing.logits - routing.clean_logits
    expected = torch.nn.functional.softplus(x[0] @ router.noise_weight.T)
    torch.testing.assert_close(added.std(0), expected, rtol=0.03, atol=0)
    assert (added.mean(0).abs() < 5 * expected / 20_000**0.5).all()
    torch.testing.assert_close(routing.clean_logits[0], x[0] @ router.weight.T)


def test_weights_are_a_softmax_over_the_chosen_noisy_logits():
    clean, scale, noise = drawn(7, 5)
    routing = noisy_top_k_routing(clean, scale, 2, noise)
    best = (clean + noise * scale).topk(2)
    assert torch.equal(routing.expert_ids, best.indices)
    torch.testing.assert_close(routing.weights, best.values.softmax(-1))


def test_starts_even_without_signal():
    router = NoisyTopKRouter(6, 8, 2)
    torch.manual_seed(0)
    routing = router(torch.randn(20_000, 6) + 3)
    assert torch.equal(routing.clean_logits, torch.zeros_like(routing.clean_logits))
    torch.testing.assert_close(routing.noise_scale, torch.full_like(routing.noise_scale, math.log(2)))
    assert (routing.tokens_per_expert - 5000).abs().max() < 5 * 5000**0.5
    router.weight.data.normal_()
    router.reset_parameters()
    assert not any(weight.any() for weight in router.parameters())


def test_seed_repeats_the_noise_also_when_a_checkpoint_recomputes():
    router, x = awake_router(), torch.randn(9, 6, requires_grad=True)
    runs = []
    for recompute in (False, False, True):
        torch.manual_seed(3)
        weights = checkpoint(lambda y: router(y).weights, x, use_reentrant=False) if recompute else router(x).weights
        runs.append([weights.detach(), *torch.autograd.grad(weights.square().sum(), [x, *router.parameters()])])
    for run in runs[1:]:
        for got, expected in zip(run, runs[0], strict=True):
            assert torch.equal(got, expected)
    assert not torch.equal(router(x).weights, runs[0][0])


@pytest.mark.parametrize("dispatch", ["loop", "einsum", "grouped", "sorted"])
def test_takes_the_place_of_a_layers_router(dispatch):
    torch.manual_seed(0)
    layer = MoELayer(6, 8, num_experts=4, top_k=2, dispatch=dispatch)
    layer.router = awake_router()
    x = torch.randn(2, 9, 6)
    out, routing = layer(x)
    assert out.shape == x.shape and isinstance(routing, NoisyRouting)
    (out.square().mean() + 0.1 * load_loss(routing) + 0.1 * importance_loss(routing)).backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad.abs().max() > 0, name

    layer.eval()
    plain = MoELayer(6, 8, num_experts=4, top_k=2, dispatch=dispatch)
    plain.load_state_dict({k: v for k, v in layer.state_dict().items() if k != "router.noise_weight"})
    torch.testing.assert_close(layer(x)[0], plain(x)[0])
    assert layer(x[:0])[0].shape == (0, 9, 6)


@each_size
def test_every_loss_is_finite_with_finite_gradients(tokens, num_experts, top_k):
    for count in (tokens, 0):
        router = awake_router(6, num_experts, top_k)
        routing = router(torch.randn(count, 6))
        loss = load_loss(routing) + importance_loss(routing)
        loss.backward()
        assert loss.isfinite()
        assert all(weight.grad.isfinite().all() for weight in router.parameters())
        if num_experts == 1 or count == 0:
            assert loss == 0


def test_vanishing_noise_gives_certainty_and_no_nan():
    clean = torch.tensor([[2.0, 1.0, 0.0]], requires_grad=True)
    raw = torch.full((1, 3), -200.0, requires_grad=True)
    routing = noisy_top_k_routing(clean, torch.nn.functional.softplus(raw), 1, torch.zeros(1, 3))
    assert selection_probability(routing).tolist() == [[1.0, 0.0, 0.0]]
    load_loss(routing).backward()
    assert clean.grad.isfinite().all() and raw.grad.isfinite().all()


def test_bfloat16_probabilities_and_losses_are_computed_in_float32():
    router = awake_router(dtype=torch.bfloat16)
    routing = router(torch.randn(4096, 6).bfloat16())
    assert routing.weights.dtype == routing.logits.dtype == torch.bfloat16
    assert importance(routing).dtype == smooth_load(routing).dtype == torch.float32
    # bfloat16 sums would stop growing at 256 or 512
    assert importance(routing).sum().item() == pytest.approx(4096, rel=1e-3)
    assert smooth_load(routing).sum().item() == pytest.approx(2 * 4096, rel=0.03)


def test_importance_sums_weights_by_expert():
    clean, scale, noise = drawn(7, 5)
    routing = noisy_top_k_routing(clean, scale, 2, noise)
    gates = torch.zeros(7, 5, dtype=torch.float64).scatter(1, routing.expert_ids, routing.weights)
    torch.testing.assert_close(importance(routing), gates.sum(0))
    assert importance(top_k_routing(clean, 2)).shape == (5,)  # any Routing has importance


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=9), st.floats(0.5, 20))
def test_laws_of_cv_squared(values, factor):
    """Scale does not matter, equal shares give 0, one expert with everything gives E - 1, E·Σs² - 1 in between."""
    x = torch.tensor(values, dtype=torch.float64)
    got, num_experts = cv_squared(x), len(values)
    torch.testing.assert_close(got, num_experts * (x / x.sum()).square().sum() - 1, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(cv_squared(factor * x), got, rtol=1e-4, atol=1e-5)
    assert cv_squared(torch.full_like(x, factor)) < 1e-12
    alone = torch.zeros_like(x)
    alone[0] = factor
    torch.testing.assert_close(cv_squared(alone).item(), num_experts - 1.0, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_jitter_stays_within_its_bounds_and_reaches_them(dtype):
    torch.manual_seed(0)
    x = torch.randn(40_000, dtype=dtype)
    given = x.clone()
    factor = jittered(x, 0.1).double() / x.double()
    rounding = 2**-8 if dtype == torch.bfloat16 else 1e-6
    assert jittered(x, 0.1).dtype == dtype and torch.equal(x, given)
    assert 0.9 * (1 - rounding) <= factor.min() < 0.901 and 1.099 < factor.max() <= 1.1 * (1 + rounding)
    assert abs(factor.mean() - 1) < 0.002
    assert jittered(x[:0], 0.1).shape == (0,)


def test_jitter_disturbs_the_router_alone_and_only_in_training():
    torch.manual_seed(0)
    layer = MoELayer(6, 8, num_experts=1, top_k=1)
    x = torch.randn(9, 6)
    expected, plain = layer(x)[0], Router(6, 4, 2)
    layer.router = JitteredRouter(6, 1, 1, jitter=0.5)
    assert torch.equal(layer(x)[0], expected)  # one expert with weight 1: it saw x as it is
    router = JitteredRouter(6, 4, 2, jitter=0.5)
    router.load_state_dict(plain.state_dict())
    assert not torch.equal(router(x).logits, plain(x).logits)
    assert torch.equal(router.eval()(x).logits, plain(x).logits)


def test_router_saturation_counts_common_choices_in_any_order():
    final = torch.tensor([[0, 1], [2, 3], [4, 5]])
    assert router_saturation(final, final) == 1
    assert router_saturation(final.flip(-1), final) == 1
    assert router_saturation(torch.tensor([[1, 2], [0, 1], [5, 4]]), final) == pytest.approx(3 / 6)
    assert math.isnan(router_saturation(final[:0], final[:0]))
    random = torch.rand(20_000, 8).argsort(-1)[:, :2], torch.rand(20_000, 8).argsort(-1)[:, :2]
    assert router_saturation(*random) == pytest.approx(2 / 8, abs=0.01)


def test_impossible_k_is_refused():
    with pytest.raises(ValueError, match="top_k=4 is larger than num_experts=3; choose top_k ≤ num_experts"):
        kth_excluding(torch.zeros(2, 3), 4)
    with pytest.raises(ValueError, match="choose top_k ≥ 1"):
        kth_excluding(torch.zeros(2, 3), 0)
    with pytest.raises(ValueError, match="choose top_k ≤ num_experts"):
        NoisyTopKRouter(6, 2, 3)
