"""The transformer is causal, has the parameters its config says, and writes the same text with a cache as without."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from moe_course.layers import (
    CausalSelfAttention,
    KVCache,
    MoELayer,
    MoETransformer,
    TransformerConfig,
    active_parameters,
    apply_rotary,
    generate,
    model_config,
    parameter_table,
    total_parameters,
)

SMALL = TransformerConfig(
    vocab_size=29,
    d_model=32,
    num_layers=4,
    num_heads=4,
    num_kv_heads=2,
    d_ff=48,
    moe_every=2,
    num_experts=6,
    top_k=2,
    d_ff_expert=24,
    context=16,
    rope_theta=100.0,
    norm_eps=1e-3,
)


def make(seed: int = 0, **settings: Any) -> MoETransformer:
    """A small model in float64 whose parameters, norms included, are all random and far from zero."""
    torch.manual_seed(seed)
    model = MoETransformer(replace(SMALL, **settings), dtype=torch.float64)
    for parameter in model.parameters():
        nn.init.normal_(parameter, mean=1.0 if parameter.ndim == 1 else 0.0, std=0.3)
    return model


def make_ids(batch: int = 2, length: int = 11, seed: int = 1) -> torch.Tensor:
    return torch.randint(SMALL.vocab_size, (batch, length), generator=torch.Generator().manual_seed(seed))


SHAPES: dict[str, dict[str, Any]] = {
    "every second block": {},
    "every block": {"moe_every": 1},
    "every third of four": {"moe_every": 3},
    "dense": {"moe_every": 0},
    "all heads, gelu, tied": {"num_kv_heads": None, "activation": "gelu", "tie_embeddings": True},
    "one head of keys, sigmoid": {"num_kv_heads": 1, "score": "sigmoid", "moe_every": 1},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_accounting_equals_the_tensors(shape):
    config = replace(SMALL, **SHAPES[shape])
    model = MoETransformer(config)
    count = {name: p.numel() for name, p in model.named_parameters()}
    table = parameter_table(model_config(config))
    assert sum(count.values()) == total_parameters(model_config(config))
    assert table["experts"] == sum(n for name, n in count.items() if ".experts." in name)
    assert table["attention"] == sum(n for name, n in count.items() if ".attention." in name)
    assert table["norms"] == sum(n for name, n in count.items() if "norm" in name)
    resting = table["experts"] * (config.num_experts - config.top_k) // config.num_experts
    assert active_parameters(model_config(config)) == sum(count.values()) - resting


@pytest.mark.parametrize(("moe_every", "blocks"), [(0, []), (1, [0, 1, 2, 3]), (2, [1, 3]), (3, [2]), (4, [3])])
def test_moe_every_says_which_blocks(moe_every, blocks):
    model = make(moe_every=moe_every)
    assert [i for i, block in enumerate(model.blocks) if isinstance(block.ffn, MoELayer)] == blocks
    ids = make_ids(2, 7)
    routings = model(ids).routings
    assert list(routings) == blocks
    assert all(routing.logits.shape == (14, SMALL.num_experts) for routing in routings.values())


def test_equals_the_equations():
    """The same numbers as the model written out with loops: heads, positions, tokens and experts one at a time."""
    model, ids = make(moe_every=2, num_layers=2), make_ids(1, 6)
    c, x = model.config, model.embedding.weight[ids[0]]

    def norm(v, weight):
        return v / (v.square().mean() + c.norm_eps).sqrt() * weight

    def turn(v, position):
        half = len(v) // 2
        pairs = torch.complex(v[:half], v[half:])
        rates = c.rope_theta ** (-torch.arange(half, dtype=torch.float64) / half)
        turned = pairs * torch.polar(torch.ones_like(rates), position * rates)
        return torch.cat([turned.real, turned.imag])

    def swiglu(v, w_in, w_out):
        gate, up = (w_in @ v).chunk(2)
        return w_out @ (F.silu(gate) * up)

    for i, block in enumerate(model.blocks):
        a = block.attention
        width = c.d_model // c.num_heads
        normed = [norm(v, block.attention_norm.weight) for v in x]
        rows = []
        for s in range(len(x)):
            heads = []
            for h in range(c.num_heads):
                g = h // (c.num_heads // c.kv_heads)
                mine, shared = slice(h * width, (h + 1) * width), slice(g * width, (g + 1) * width)
                q = turn(a.query.weight[mine] @ normed[s], s)
                scores = [q @ turn(a.key.weight[shared] @ normed[t], t) / width**0.5 for t in range(s + 1)]
                p = torch.stack(scores).softmax(0)
                heads.append(sum(p[t] * (a.value.weight[shared] @ normed[t]) for t in range(s + 1)))
            rows.append(x[s] + a.out.weight @ torch.cat(heads))
        x = []
        for v in rows:
            u = norm(v, block.ffn_norm.weight)
            if i == 0:
                x.append(v + swiglu(u, block.ffn.w_in, block.ffn.w_out))
                continue
            values, chosen = (block.ffn.router.weight @ u).topk(c.top_k)
            experts = block.ffn.experts
            outputs = [swiglu(u, experts.w_in[e], experts.w_out[e]) for e in chosen]
            x.append(v + sum(w * out for w, out in zip(values.softmax(0), outputs, strict=True)))
        x = torch.stack(x)
    logits = torch.stack([norm(v, model.norm.weight) for v in x]) @ model.head.weight.T
    torch.testing.assert_close(model(ids).logits[0], logits, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_token_sees_only_what_came_before(shape):
    model, ids = make(**SHAPES[shape]), make_ids(1)
    changed = ids.clone()
    changed[0, 6] = (changed[0, 6] + 1) % SMALL.vocab_size
    before, after = model(ids).logits[0], model(changed).logits[0]
    torch.testing.assert_close(before[:6], after[:6], rtol=1e-12, atol=1e-12)
    assert ((before[6:] - after[6:]).abs().amax(-1) > 1e-6).all()


def test_sequences_do_not_see_each_other():
    model, ids = make(), make_ids(3)
    alone = torch.cat([model(row[None]).logits for row in ids])
    torch.testing.assert_close(model(ids).logits, alone, rtol=1e-12, atol=1e-12)


def test_gradients_reach_every_parameter():
    model = make(moe_every=2)
    model(make_ids(8, 16)).logits.square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0] == []


def test_the_config_reaches_the_routers():
    model = make(score="sigmoid", renormalize=False, top_k=3)
    routing = model(make_ids()).routings[1]
    torch.testing.assert_close(routing.probs, routing.logits.sigmoid())
    torch.testing.assert_close(routing.weights, routing.probs.topk(3).values)


def test_any_moe_layer_may_stand_in_a_block():
    class Mine(nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            out, routing = self.layer(x)
            return 2 * out, routing

    model, ids = make(), make_ids()
    before = model(ids).logits
    model.blocks[3].ffn = Mine(model.blocks[3].ffn)
    output = model(ids)
    assert list(output.routings) == [1, 3] and not torch.allclose(output.logits, before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_dtype_of_parameters_is_that_of_logits(dtype):
    model = MoETransformer(SMALL, dtype=dtype)
    assert model(make_ids()).logits.dtype == dtype


def test_a_tied_head_is_the_embedding():
    model = make(tie_embeddings=True)
    assert model.head.weight is model.embedding.weight


@pytest.mark.parametrize("tie_embeddings", [False, True])
def test_a_new_model_is_sure_of_nothing(tie_embeddings):
    torch.manual_seed(0)
    model = MoETransformer(replace(SMALL, vocab_size=500, tie_embeddings=tie_embeddings))
    ids = torch.randint(500, (20, 16))
    loss = F.cross_entropy(model(ids).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).item()
    assert loss == pytest.approx(math.log(500), rel=0.05)


# Attention


def test_scores_depend_on_the_distance_alone():
    q, k = torch.randn(2, 1, 8, dtype=torch.float64)

    def score(i, j):
        return (apply_rotary(q, torch.tensor([i])) * apply_rotary(k, torch.tensor([j]))).sum()

    torch.testing.assert_close(score(5, 2), score(105, 102))
    assert (score(5, 2) - score(5, 3)).abs() > 1e-3
    torch.testing.assert_close(apply_rotary(q, torch.tensor([0])), q)


def test_rotary_angles_stay_exact_in_bfloat16():
    x = torch.randn(300, 16)
    exact = apply_rotary(x.bfloat16().double(), torch.arange(300))
    rounded = apply_rotary(x.bfloat16(), torch.arange(300))
    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded.double(), exact, rtol=2**-8, atol=2**-8)


def test_shared_heads_equal_repeated_ones():
    torch.manual_seed(0)
    grouped = CausalSelfAttention(32, 4, 2, dtype=torch.float64)
    full = CausalSelfAttention(32, 4, dtype=torch.float64)
    state = grouped.state_dict()
    for name in ("key.weight", "value.weight"):
        state[name] = state[name].view(2, 8, 32).repeat_interleave(2, dim=0).reshape(32, 32)
    full.load_state_dict(state)
    x = torch.randn(2, 9, 32, dtype=torch.float64)
    torch.testing.assert_close(grouped(x), full(x), rtol=1e-12, atol=1e-12)


# The cache and generation


@pytest.mark.parametrize("pieces", [[11], [1] * 11, [4, 7], [1, 6, 1, 3]])
def test_a_text_read_in_pieces_gives_the_same_logits(pieces):
    model, ids = make(), make_ids()
    cache = KVCache(SMALL.num_layers, max_tokens=11)
    with torch.no_grad():
        parts = [model(piece, cache) for piece in ids.split(pieces, dim=1)]
    torch.testing.assert_close(torch.cat([part.logits for part in parts], 1), model(ids).logits, rtol=1e-10, atol=1e-10)
    assert cache.length == 11
    assert parts[-1].routings[1].logits.shape[0] == 2 * pieces[-1]


@pytest.mark.parametrize(
    ("shape", "length"),
    [("every second block", 1), ("every block", 5), ("dense", 5), ("all heads, gelu, tied", 1)],
)
def test_the_cache_changes_no_token(shape, length):
    model, ids = make(**SHAPES[shape]), make_ids(2, length)
    new = SMALL.context - length
    for temperature in (0.0, 0.8):
        fast, slow = (
            generate(
                model,
                ids,
                new,
                temperature=temperature,
                generator=torch.Generator().manual_seed(7),
                use_cache=use_cache,
            )
            for use_cache in (True, False)
        )
        assert torch.equal(fast, slow)
        assert torch.equal(fast[:, :length], ids) and fast.shape == (2, SMALL.context)
        assert len(fast[:, length:].unique()) > 2, "a model that repeats one token would prove little"


def test_greedy_takes_the_most_probable_token():
    model, ids = make(), make_ids(2, 5)
    text = generate(model, ids, 6)
    assert torch.equal(model(text).logits[:, 4:-1].argmax(-1), text[:, 5:])


def test_sampling_follows_the_probabilities():
    model = make()
    ids = make_ids(1, 3).expand(4_000, -1)
    probs = (model(ids[:1]).logits[0, -1] / 2.0).softmax(-1)
    drawn = generate(model, ids, 1, temperature=2.0, generator=torch.Generator().manual_seed(0))[:, -1]
    shares = torch.bincount(drawn, minlength=SMALL.vocab_size) / len(drawn)
    assert probs.max() < 0.9
    assert (shares - probs).abs().max() < 0.03


def test_generation_repeats_itself_and_leaves_the_model_as_it_was():
    model, ids = make(), make_ids(2, 4)
    draw = [
        generate(model, ids, 9, temperature=1.0, generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    ]
    assert torch.equal(draw[0], draw[1]) and not torch.equal(draw[0], draw[2])
    assert model.training
    assert not draw[0].requires_grad


def test_generation_runs_in_evaluation_mode():
    model, modes = make(), []
    model.blocks[1].ffn.register_forward_hook(lambda module, *_: modes.append(module.training))
    generate(model, make_ids(1, 2), 2)
    assert modes == [False, False]


def test_no_new_token_is_the_prompt():
    assert torch.equal(generate(make(), make_ids(), 0), make_ids())


# What is refused


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"vocab_size": 0}, "vocab_size=0 is not a size; choose vocab_size ≥ 1"),
        ({"d_model": 36, "num_heads": 4, "num_kv_heads": 4}, "d_model=36 .*multiple of 8"),
        ({"num_kv_heads": 3}, "choose num_kv_heads as a divisor of 4"),
        ({"num_kv_heads": 0}, "num_kv_heads=0 is not a size"),
        ({"moe_every": 5}, "choose 1 to 4, or 0 for a dense model"),
        ({"moe_every": -1}, "choose 1 to 4, or 0 for a dense model"),
        ({"top_k": 7}, "choose top_k ≤ num_experts"),
        ({"rope_theta": 0.0}, "choose rope_theta > 1"),
        ({"norm_eps": 0.0}, "norm_eps > 0"),
    ],
)
def test_a_config_that_cannot_be_says_what_can(settings, message):
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **settings)


def test_a_text_longer_than_the_context():
    model = make()
    with pytest.raises(ValueError, match=r"17 tokens but context=16; shorten it"):
        model(make_ids(1, 17))
    with pytest.raises(ValueError, match=r"ask for at most 6 new tokens, or cut the prompt"):
        generate(model, make_ids(1, 10), 7)
    cache = KVCache(SMALL.num_layers, 40)
    with torch.no_grad():
        model(make_ids(1, 12), cache)
        with pytest.raises(ValueError, match=r"17 tokens but context=16"):
            model(make_ids(1, 5), cache)


def test_what_generation_refuses():
    model = make()
    with pytest.raises(ValueError, match="the prompt is empty; pass at least one token"):
        generate(model, make_ids(1, 0), 3)
    with pytest.raises(ValueError, match=r"temperature=-1\.0 must not be negative"):
        generate(model, make_ids(1, 3), 3, temperature=-1.0)


@pytest.mark.parametrize("bad", [-1, SMALL.vocab_size])
def test_ids_outside_the_vocabulary(bad):
    with pytest.raises(ValueError, match=r"vocab_size=29; pass ids from 0 to 28"):
        make()(torch.tensor([[1, bad]]))


def test_a_cache_of_another_batch_or_without_room():
    model = make()
    cache = KVCache(SMALL.num_layers, max_tokens=6)
    with torch.no_grad():
        model(make_ids(2, 4), cache)
        with pytest.raises(ValueError, match="holds 2 sequences and got tokens of 3; make a new KVCache"):
            model(make_ids(3, 1), cache)
        with pytest.raises(ValueError, match="max_tokens=6 tokens and 7 are needed"):
            model(make_ids(2, 3), cache)
