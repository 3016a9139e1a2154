"""Exercise 09.precise_router_logits: logits in float32, whatever the model computes in."""

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from ..spec import Case, Exercise, Misconception
from ..training_drive import call_in_precision
from .inputs import Inputs, Make, in_bfloat16, normal


def precise_router_logits(x: Tensor, weight: Tensor) -> Tensor:
    """Tokens (T, D) and a router's weight (E, D) to logits (T, E), in float32 all the way."""
    with torch.autocast(x.device.type, enabled=False):
        return F.linear(x.float(), weight.float())


def _layer(
    num_tokens: int, num_experts: int, x_dtype: str, weight_dtype: str, autocast: bool, level: float = 6.0
) -> Make:
    """All tokens and all arrows share a direction, so that the logits have a level that bfloat16 has to round at."""

    def make(generator: Generator) -> Inputs:
        common = 0.5 * torch.ones(8)
        x = in_bfloat16(normal(generator, num_tokens, 8) + level * common)
        weight = normal(generator, num_experts, 8) + level * common
        return {
            "x": x,
            "weight": in_bfloat16(weight) if weight_dtype == "bfloat16" else weight,
            "x_dtype": x_dtype,
            "weight_dtype": weight_dtype,
            "autocast": autocast,
        }

    return make


def _example(generator: Generator) -> Inputs:
    weight = torch.tensor([[1.0, 0.0]] * 10 + [[1.0, 1.0]])
    x = torch.tensor([[128.0, 0.5], [64.0, 0.25]])
    return {"x": x, "weight": weight, "x_dtype": "bfloat16", "weight_dtype": "bfloat16", "autocast": False}


def _by_matmul(x: Tensor, weight: Tensor) -> Tensor:
    with torch.autocast(device_type="cpu", enabled=False):
        return x.to(torch.float32) @ weight.to(torch.float32).T


def _by_sums(x: Tensor, weight: Tensor) -> Tensor:
    return (x.float()[:, None, :] * weight.float()).sum(-1)  # autocast leaves products and sums alone


def _cast_after(x: Tensor, weight: Tensor) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        return F.linear(x, weight.to(x.dtype)).float()


def _under_autocast(x: Tensor, weight: Tensor) -> Tensor:
    return F.linear(x.float(), weight.float()).float()


def _plain(x: Tensor, weight: Tensor) -> Tensor:
    return F.linear(x, weight.to(x.dtype)).float()


def _back_again(x: Tensor, weight: Tensor) -> Tensor:
    return precise_router_logits(x, weight).to(x.dtype).float()


def _rounded_result(x: Tensor, weight: Tensor) -> Tensor:
    return precise_router_logits(x, weight).bfloat16().float()


def _weight_as_x(x: Tensor, weight: Tensor) -> Tensor:
    return precise_router_logits(x, weight.to(x.dtype))


PRECISE_ROUTER_LOGITS = Exercise(
    id="09.precise_router_logits",
    entry="precise_router_logits",
    title="Logits in float32",
    points=3,
    difficulty=2,
    minutes=10,
    hints=(
        "What is rounded once cannot be restored. Which of `x`, `weight` and their product may be in bfloat16 on the "
        "way, if the logits are to be exact?",
        "Convert both operands before the product. Then look at the case under autocast: it rounds the operands of a "
        "matrix product whatever their dtype, unless it is switched off around it.",
        "`with torch.autocast(x.device.type, enabled=False):` and inside it "
        "`return F.linear(x.float(), weight.float())`.",
    ),
    reference=precise_router_logits,
    cases=(
        Case("ten logits of 128 and one of 128.5", _example),
        Case("a float32 model", _layer(6, 4, "float32", "float32", False), grad=("x", "weight")),
        Case("a bfloat16 model", _layer(12, 8, "bfloat16", "bfloat16", False)),
        Case("bfloat16 tokens, a float32 weight", _layer(12, 8, "bfloat16", "float32", False)),
        Case("a float32 model under autocast", _layer(12, 8, "float32", "float32", True), grad=("x", "weight")),
        Case("a bfloat16 model under autocast", _layer(12, 8, "bfloat16", "bfloat16", True)),
        Case("no tokens", _layer(0, 8, "bfloat16", "bfloat16", True)),
    ),
    misconceptions=(
        Misconception(
            "cast-after-the-product",
            "You converted the logits after the matrix product. By then they are rounded to bfloat16's 8 bits, and "
            "float32 only keeps the rounded numbers. Convert x and weight before.",
            _cast_after,
        ),
        Misconception(
            "autocast-still-on",
            "You converted both operands, and autocast converted them back: it looks at the operation, and a matrix "
            "product is on its list. Switch it off with `torch.autocast(..., enabled=False)`.",
            _under_autocast,
        ),
        Misconception(
            "cast-after-and-autocast-on",
            "You converted the logits after the matrix product, when they were rounded already; and autocast is still "
            "on. Convert x and weight before the product, and switch autocast off around it.",
            _plain,
        ),
        Misconception(
            "back-to-the-tokens-dtype",
            "You computed in float32 and then converted the logits back to the dtype of x. That rounds them after "
            "all: the softmax has to see them in float32.",
            _back_again,
        ),
        Misconception(
            "rounded-in-the-end",
            "Your logits went through bfloat16 at the end. Leave them in float32: the softmax comes next.",
            _rounded_result,
        ),
        Misconception(
            "weight-rounded-to-x",
            "You converted the router's weight to the dtype of x first. A float32 weight loses 16 of its bits that "
            "way, and small updates with them. Convert x to float32, not weight to bfloat16.",
            _weight_as_x,
        ),
    ),
    alternatives=(_by_matmul, _by_sums),
    drive=call_in_precision,
)
