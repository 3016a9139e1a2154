"""A small exercise of the tests' own, so that the engine is tested apart from the lessons."""

import pytest
import torch

from moe_course.exercises import Case, Exercise, Misconception, Property, registry


def reference(logits, top_k):
    scores = logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(-1)
    weights, expert_ids = scores.topk(top_k, -1)
    return (weights / weights.sum(-1, keepdim=True)).to(logits.dtype), expert_ids


def _not_renormalised(logits, top_k):
    return tuple(logits.softmax(-1).topk(top_k, -1))


def _detached(logits, top_k):
    weights, expert_ids = reference(logits, top_k)
    return weights.detach(), expert_ids


def _rows_sum_to_one(inputs, output):
    total = output[0].float().sum(-1)
    return None if torch.allclose(total, torch.ones_like(total), atol=2e-2) else f"a row sums to {total[0]:.2f}"


def _logits(*shape, dtype=torch.float32):
    return lambda generator: {"logits": torch.randn(*shape, generator=generator).to(dtype), "top_k": 2}


@pytest.fixture
def exercise(monkeypatch):
    found = Exercise(
        id="99.toy_route",
        entry="toy_route",
        title="A toy",
        points=10,
        difficulty=1,
        minutes=5,
        hints=("first `hint` <b>", "second hint", "third hint"),
        reference=reference,
        cases=(
            Case("tiny", _logits(3, 4), grad=("logits",)),
            Case("bf16", _logits(3, 4, dtype=torch.bfloat16)),
            Case("no tokens", _logits(0, 4)),
        ),
        misconceptions=(
            Misconception("not-renormalised", "The `weights` do not sum to 1.", _not_renormalised),
            Misconception("detached", "The router gets no gradient.", _detached),
        ),
        alternatives=(),
        properties=(Property("each row of weights sums to 1", _rows_sum_to_one),),
        returns=("weights", "expert_ids"),
    )
    monkeypatch.setitem(registry._BY_ENTRY, "toy_route", found)
    return found
