"""Exercise 04.router_z_loss: the mean square of the log of the softmax's denominator."""

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from ...layers import router_z_loss as layers_router_z_loss
from ..spec import Case, Exercise, Misconception
from .inputs import Inputs, Make, keep_of, mean_of, routed


def router_z_loss(logits: Tensor, token_mask: Tensor | None = None) -> Tensor:
    """The mean over tokens of logsumexp²: logits (T, E) and a mask (T,) to a scalar, in float32 at least."""
    return layers_router_z_loss(logits, token_mask=token_mask)


def _logits(num_tokens: int, num_experts: int, padded: int | None = None) -> Make:
    def make(generator: Generator) -> Inputs:
        logits, _, _, token_mask = routed(num_tokens, num_experts, 1, padded)(generator)
        return {"logits": 2 * logits - 2, "token_mask": token_mask}

    return make


def _logs_of_powers(generator: Generator) -> Inputs:
    logits = torch.tensor([[1.0, 3.0], [0.5, 0.25], [1.0, 999.0]]).log()
    return {"logits": logits, "token_mask": torch.tensor([True, True, False])}


def _large(generator: Generator) -> Inputs:
    logits = 200 + torch.rand(4, 3, generator=generator)
    logits[1] -= 500
    return {"logits": logits, "token_mask": None}


def _in_bfloat16(generator: Generator) -> Inputs:
    logits = torch.full((1, 11), 128.0)
    logits[0, 10] = 128.5
    return {"logits": torch.cat([logits, torch.randn(40, 11, generator=generator)]).bfloat16(), "token_mask": None}


def _by_hand(logits: Tensor, token_mask: Tensor | None = None) -> Tensor:
    if token_mask is not None:
        logits = logits[token_mask]
    logits = logits.float()
    if not len(logits):
        return logits.sum()
    most = logits.max(dim=-1, keepdim=True).values
    z = most[:, 0] + (logits - most).exp().sum(-1).log()
    return (z * z).mean()


def _from_log_softmax(logits: Tensor, token_mask: Tensor | None = None) -> Tensor:
    logits = logits.float()
    z = (logits - logits.log_softmax(-1)).mean(-1)
    keep = keep_of(token_mask, logits)
    return (z.square() * keep).sum() / keep.sum().clamp(min=1)


def _of(z: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    """The right mean of `z(logits)`, one number a token."""

    def wrong(logits: Tensor, token_mask: Tensor | None = None) -> Tensor:
        values = z(logits.float())
        return mean_of(values[:, None], keep_of(token_mask, values))[0]

    return wrong


def _averaging(average: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    """The right logsumexp of each token, then `average(z, keep)`."""

    def wrong(logits: Tensor, token_mask: Tensor | None = None) -> Tensor:
        z = logits.float().logsumexp(-1)
        return average(z, keep_of(token_mask, z))

    return wrong


def _over_tokens(logits: Tensor, token_mask: Tensor | None = None) -> Tensor:
    kept = logits.float() if token_mask is None else logits.float()[token_mask]
    return kept.logsumexp(0).square().mean() if len(kept) else kept.sum()


def _in_the_logits_dtype(logits: Tensor, token_mask: Tensor | None = None) -> Tensor:
    z = logits.logsumexp(-1).square()
    keep = keep_of(token_mask, z)
    return (z * keep).sum() / keep.sum().clamp(min=1)


ROUTER_Z_LOSS = Exercise(
    id="04.router_z_loss",
    entry="router_z_loss",
    title="The router z-loss",
    points=2,
    difficulty=2,
    minutes=8,
    hints=(
        "z is one number for each token: the logarithm of the sum over its experts of exp(logit). What is done to z "
        "before the mean, and over which tokens is the mean?",
        "`torch.logsumexp(dim=-1)` does not overflow, while `exp` of 200 does. Go to float32 first. Square each z, "
        "then average over the tokens that count, dividing by at least 1.",
        "`z = logits.float().logsumexp(dim=-1)`; if there is a mask, `z = z[token_mask]`; return "
        "`z.square().sum() / max(len(z), 1)`.",
    ),
    reference=router_z_loss,
    cases=(
        Case("two tokens and one of padding", _logs_of_powers, grad=("logits",)),
        Case("no mask", _logits(16, 5), grad=("logits",)),
        Case("with padding", _logits(20, 6, 8), grad=("logits",)),
        Case("logits of 200 and of −300", _large, grad=("logits",)),
        Case("bfloat16 logits, a float32 loss", _in_bfloat16),
        Case("nothing but padding", _logits(5, 4, 5)),
        Case("no tokens", _logits(0, 4)),
    ),
    misconceptions=(
        Misconception(
            "square-missing",
            "The square is missing, as in many retellings. Without it, the loss is smallest for logits that go to "
            "minus infinity. The square pulls z towards 0 from both sides.",
            _of(lambda logits: logits.logsumexp(-1)),
        ),
        Misconception(
            "square-missing-and-padding-counted",
            "Two things: the square is missing, without which the loss is smallest for logits at minus infinity; and "
            "your mean includes padding.",
            lambda logits, token_mask=None: logits.float().logsumexp(-1).sum() / max(len(logits), 1),
        ),
        Misconception(
            "square-of-the-mean",
            "You squared the mean. Tokens with large positive and large negative z then cancel; square each token's z "
            "first.",
            _averaging(lambda z, keep: mean_of(z[:, None], keep)[0].square()),
        ),
        Misconception(
            "sum-over-tokens",
            "You added the tokens up. A batch twice as large would weigh twice as much against the task's loss: take "
            "the mean.",
            _averaging(lambda z, keep: (z.square() * keep).sum()),
        ),
        Misconception(
            "logits-squared",
            "You squared the logits themselves. The z-loss acts on the log of the softmax's denominator, one number "
            "for each token.",
            _of(lambda logits: logits.square().mean(-1)),
        ),
        Misconception(
            "largest-logit-only",
            "You used the largest logit in the place of logsumexp. It is close for one clear winner, and its "
            "gradient misses all other experts.",
            _of(lambda logits: logits.amax(-1).square()),
        ),
        Misconception(
            "exp-overflows",
            "exp(200) is infinite in float32, and exp(−300) is 0, whose logarithm is minus infinity. "
            "`torch.logsumexp` subtracts the largest logit first.",
            _of(lambda logits: logits.exp().sum(-1).log().square()),
        ),
        Misconception(
            "softmax-first",
            "You took a softmax first. Its rows sum to 1, so the size of the logits, which this loss is about, is "
            "gone.",
            _of(lambda logits: logits.softmax(-1).logsumexp(-1).square()),
        ),
        Misconception(
            "over-tokens",
            "Your logsumexp runs over the tokens. z belongs to a token: `dim=-1`.",
            _over_tokens,
        ),
        Misconception(
            "padding-counted",
            "Your mean includes padding.",
            _averaging(lambda z, keep: z.square().sum() / max(len(z), 1)),
        ),
        Misconception(
            "divided-by-all-tokens",
            "You left padding out of the sum but divided by all T tokens.",
            _averaging(lambda z, keep: (z.square() * keep).sum() / max(len(z), 1)),
        ),
        Misconception(
            "nan-without-tokens",
            "Where no token counts you compute 0/0, NaN. Divide by at least 1.",
            _averaging(lambda z, keep: (z.square() * keep).sum() / keep.sum()),
        ),
        Misconception(
            "low-precision",
            "You stayed in bfloat16, the very thing this loss protects from: at 128 its steps are 1 wide. Convert to "
            "float32 first.",
            _in_the_logits_dtype,
        ),
    ),
    alternatives=(_by_hand, _from_log_softmax),
)
