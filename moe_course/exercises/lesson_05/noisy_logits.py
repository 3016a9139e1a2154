"""Exercise 05.noisy_logits: a gate whose logits get trained noise."""

from collections.abc import Callable

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from ..spec import Case, Exercise, Misconception, Property
from .inputs import Inputs, Make

Output = tuple[Tensor, Tensor, Tensor]


def noisy_logits(x: Tensor, w_gate: Tensor, w_noise: Tensor, noise: Tensor, training: bool) -> Output:
    """Logits with and without noise, and the noise's scale: x (T, D) to three tensors (T, E)."""
    clean = x @ w_gate.T
    scale = F.softplus(x @ w_noise.T)
    return (clean + noise * scale if training else clean), clean, scale


def _gate(num_tokens: int, d_model: int, num_experts: int, training: bool, dtype: torch.dtype = torch.float32) -> Make:
    def make(generator: Generator) -> Inputs:
        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator).to(dtype)

        return {
            "x": draw(num_tokens, d_model),
            "w_gate": draw(num_experts, d_model),
            "w_noise": draw(num_experts, d_model),
            "noise": draw(num_tokens, num_experts),
            "training": training,
        }

    return make


def _one_token(generator: Generator) -> Inputs:
    return {
        "x": torch.tensor([[1.0, 2.0]]),
        "w_gate": torch.tensor([[1.0, 0.0], [0.0, 1.0]]),
        "w_noise": torch.tensor([[0.0, 0.5], [1.0, -1.0]]),
        "noise": torch.tensor([[1.0, -2.0]]),
        "training": True,
    }


def _zeros(generator: Generator) -> Inputs:
    inputs = _gate(4, 3, 5, True)(generator)
    return inputs | {name: torch.zeros_like(inputs[name]) for name in ("w_gate", "w_noise")}


def _far(generator: Generator) -> Inputs:
    """Scales near 0 and near 200: where log(1 + exp(z)) overflows."""
    inputs = _gate(2, 3, 4, True)(generator)
    return inputs | {
        "x": torch.full((2, 3), 1.0),
        "w_noise": torch.tensor([[-60.0], [-2.0], [2.0], [60.0]]).repeat(1, 3),
    }


def _not_positive(inputs: Inputs, output: Output) -> str | None:
    negative = output[2][output[2] < 0]
    if not len(negative):
        return None
    return f"a noise scale is {negative[0].item():.3g}; a standard deviation cannot be negative"


def _noise_stays(inputs: Inputs, output: Output) -> str | None:
    if inputs["training"] or torch.equal(output[0], output[1]):
        return None
    return "in evaluation the noisy logits differ from the clean ones: the same text would be routed anew at each call"


def _with(combine: Callable[..., Output]) -> Callable[..., Output]:
    """`combine(clean, raw, noise, training)`, from the clean logits and the raw noise logits x·W_noise."""

    def answer(x: Tensor, w_gate: Tensor, w_noise: Tensor, noise: Tensor, training: bool) -> Output:
        return combine(F.linear(x, w_gate), F.linear(x, w_noise), noise, training)

    return answer


def _scaled(scale_of: Callable[[Tensor], Tensor]) -> Callable[..., Output]:
    """Right but for the function that makes a scale of x·W_noise."""
    return _with(lambda clean, raw, noise, training: (clean + noise * scale_of(raw) * training, clean, scale_of(raw)))


NOISY_LOGITS = Exercise(
    id="05.noisy_logits",
    entry="noisy_logits",
    title="A gate with trained noise",
    points=3,
    difficulty=1,
    minutes=10,
    hints=(
        "Two linear maps of the same tokens: one gives the clean logits, the other says how loud the noise is.",
        "A standard deviation must be positive, so x·W_noise goes through `F.softplus`. Multiply by the given noise, "
        "entry by entry, and add, if `training`.",
        "`clean = x @ w_gate.T`, `scale = F.softplus(x @ w_noise.T)`, and `clean + noise * scale` in training, `clean` "
        "in evaluation. Return all three; the scale is the same in both modes.",
    ),
    reference=noisy_logits,
    returns=("noisy_logits", "clean_logits", "noise_scale"),
    cases=(
        Case("one token, two experts", _one_token),
        Case("training", _gate(6, 4, 5, training=True), grad=("x", "w_gate", "w_noise")),
        Case("evaluation", _gate(6, 4, 5, training=False), grad=("x", "w_gate", "w_noise")),
        Case("both matrices zero, as at the start", _zeros),
        Case("very quiet and very loud", _far),
        Case("bfloat16", _gate(5, 8, 3, training=True, dtype=torch.bfloat16)),
        Case("no tokens", _gate(0, 4, 3, training=True)),
    ),
    properties=(
        Property("noise scales are not negative", _not_positive),
        Property("no noise in evaluation", _noise_stays),
    ),
    misconceptions=(
        Misconception(
            "noise-in-evaluation",
            "You add noise in evaluation, too. Noise is for exploring while the gate still learns; left on, the same "
            "text takes other experts at each call, and no result can be repeated.",
            _with(lambda clean, raw, noise, training: (clean + noise * F.softplus(raw), clean, F.softplus(raw))),
        ),
        Misconception(
            "w-gate-for-w-noise",
            "The scale of your noise comes from W_gate. Then the gate's favourite is also the loudest, and the router "
            "cannot learn to be sure: use W_noise.",
            lambda x, w_gate, w_noise, noise, training: noisy_logits(x, w_gate, w_gate, noise, training),
        ),
        Misconception(
            "scale-without-softplus",
            "x·W_noise itself is your scale. It can be negative or 0, and at the start it is 0 everywhere, so there is "
            "no noise when it is needed most. Put it through softplus.",
            _scaled(lambda raw: raw),
        ),
        Misconception(
            "relu-for-softplus",
            "You made the scale positive with a ReLU. Where x·W_noise is negative the scale is exactly 0 and has no "
            "gradient: that expert's noise is gone for good. Softplus never reaches 0.",
            _scaled(lambda raw: raw.relu()),
        ),
        Misconception(
            "exp-for-softplus",
            "You made the scale positive with exp. It explodes: where softplus gives 60, exp gives 10²⁶. The paper "
            "takes softplus, log(1 + exp(z)).",
            _scaled(lambda raw: raw.exp()),
        ),
        Misconception(
            "softplus-around-the-noise",
            "You put the product of noise and scale through softplus. Then noise can only raise a logit. Softplus "
            "belongs around x·W_noise alone.",
            _with(
                lambda clean, raw, noise, training: (
                    clean + F.softplus(noise * raw) * training,
                    clean,
                    F.softplus(raw),
                )
            ),
        ),
        Misconception(
            "scale-zeroed-in-evaluation",
            "Your noise scale is 0 in evaluation. The noise must go, but the load estimator will divide by the scale: "
            "return the scale as it is.",
            _with(
                lambda clean, raw, noise, training: (
                    clean + noise * F.softplus(raw) * training,
                    clean,
                    F.softplus(raw) * training,
                )
            ),
        ),
        Misconception(
            "noise-replaces-the-logits",
            "You return the noise without the gate's logits. Noise is added to what the gate says.",
            _with(
                lambda clean, raw, noise, training: (
                    noise * F.softplus(raw) if training else clean,
                    clean,
                    F.softplus(raw),
                )
            ),
        ),
        Misconception(
            "noise-scale-detached",
            "The numbers are right, but no gradient reaches W_noise: its branch was detached. Then the router never "
            "learns how much noise to use.",
            _with(
                lambda clean, raw, noise, training: (
                    clean + noise * F.softplus(raw).detach() * training,
                    clean,
                    F.softplus(raw).detach(),
                )
            ),
        ),
    ),
    alternatives=(
        _with(
            lambda clean, raw, noise, training: (
                torch.addcmul(clean, noise, F.softplus(raw), value=float(training)),
                clean,
                F.softplus(raw),
            )
        ),
        _scaled(lambda raw: torch.logaddexp(raw, torch.zeros_like(raw))),
    ),
)
