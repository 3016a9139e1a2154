"""Exercise 09.clip_gradients: one factor for all gradients, so that their joint direction stays."""

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from ..spec import Case, Exercise, Misconception, Property
from .inputs import Inputs, Make, normal

Gradients = dict[str, Tensor]
Clipped = tuple[Gradients, Tensor]


def clip_gradients(gradients: Gradients, max_norm: float) -> Clipped:
    """Gradients by parameter, to the same scaled down to a joint norm of at most `max_norm`, and the norm before."""
    norm = _norm(gradients)
    factor = (max_norm / norm).clamp(max=1) if norm > 0 else 1.0
    return {name: gradient * factor for name, gradient in gradients.items()}, norm


def _norm(gradients: Gradients) -> Tensor:
    return torch.stack([gradient.norm() for gradient in gradients.values()]).norm()


def _model(norm: float, *, experts: int = 4, busy: float = 5.0) -> Make:
    """Gradients of a router and its experts with a joint norm of `norm`; the first expert's are larger."""

    def make(generator: Generator) -> Inputs:
        w_in = normal(generator, experts, 6, 5)
        w_in[0] *= busy
        gradients = {"router": 0.3 * normal(generator, experts, 5), "w_in": w_in, "head": normal(generator, 7, 5)}
        joint = _norm(gradients)
        return {"gradients": {name: g * (norm / joint) for name, g in gradients.items()}, "max_norm": 1.0}

    return make


def _two_numbers(generator: Generator) -> Inputs:
    return {"gradients": {"router": torch.tensor([3.0]), "w_in": torch.tensor([4.0])}, "max_norm": 1.0}


def _zeros(generator: Generator) -> Inputs:
    return {"gradients": {"router": torch.zeros(2, 3), "w_in": torch.zeros(2, 4, 3)}, "max_norm": 1.0}


def _by_flattening(gradients: Gradients, max_norm: float) -> Clipped:
    whole = torch.cat([gradient.flatten() for gradient in gradients.values()])
    norm = torch.linalg.vector_norm(whole)
    return {name: g * torch.clamp(max_norm / norm.clamp(min=1e-12), max=1.0) for name, g in gradients.items()}, norm


def _by_sums(gradients: Gradients, max_norm: float) -> Clipped:
    norm = sum((g.square().sum() for g in gradients.values()), torch.zeros(())).sqrt()
    scale = max_norm / float(norm) if float(norm) > max_norm else 1.0
    return {name: scale * g for name, g in gradients.items()}, norm


def _each(factor: Callable[[Tensor, float], Tensor]) -> Callable[..., Clipped]:
    """Every tensor by a factor of its own; the norm returned is right."""
    return lambda gradients, max_norm: (
        {name: g * factor(g, max_norm) for name, g in gradients.items()},
        _norm(gradients),
    )


def _with_norm(norm_of: Callable[[Gradients], Tensor]) -> Callable[..., Clipped]:
    """One factor for all, from another norm."""

    def wrong(gradients: Gradients, max_norm: float) -> Clipped:
        norm = norm_of(gradients)
        factor = (max_norm / norm.clamp(min=1e-12)).clamp(max=1)
        return {name: g * factor for name, g in gradients.items()}, norm

    return wrong


def _always_to_the_limit(gradients: Gradients, max_norm: float) -> Clipped:
    norm = _norm(gradients)
    return {name: g * (max_norm / norm.clamp(min=1e-12)) for name, g in gradients.items()}, norm


def _nan_for_zeros(gradients: Gradients, max_norm: float) -> Clipped:
    norm = _norm(gradients)
    factor = torch.minimum(norm, torch.tensor(max_norm, dtype=norm.dtype)) / norm
    return {name: g * factor for name, g in gradients.items()}, norm


def _norm_after(gradients: Gradients, max_norm: float) -> Clipped:
    clipped, _ = clip_gradients(gradients, max_norm)
    return clipped, _norm(clipped)


def _too_long(inputs: Inputs, output: Clipped) -> str | None:
    length = _norm({name: g.double() for name, g in output[0].items()}).item()
    return None if length <= inputs["max_norm"] + 1e-4 else f"their joint norm is {length:.3f} after clipping"


CLIP_GRADIENTS = Exercise(
    id="09.clip_gradients",
    entry="clip_gradients",
    title="Clip by the joint norm",
    points=2,
    difficulty=1,
    minutes=8,
    hints=(
        "A step goes in one direction through the space of *all* parameters. What happens to the direction if each "
        "tensor is shortened by itself?",
        "The joint norm is the root of the sum of all squares: the norm of the norms. One factor for all tensors, "
        "`max_norm / norm`, and never more than 1.",
        "`norm = torch.stack([g.norm() for g in gradients.values()]).norm()`; "
        "`factor = (max_norm / norm.clamp(min=1e-12)).clamp(max=1)`; multiply every gradient by it.",
    ),
    reference=clip_gradients,
    returns=("clipped", "norm"),
    cases=(
        Case("3 and 4", _two_numbers),
        Case("too long by far", _model(20.0)),
        Case("a little too long, one busy expert", _model(1.5, experts=8, busy=12.0)),
        Case("short enough", _model(0.4)),
        Case("no gradient anywhere", _zeros),
    ),
    properties=(Property("the joint norm is at most max_norm", _too_long),),
    misconceptions=(
        Misconception(
            "each-by-itself",
            "You clipped every tensor to max_norm by itself. That turns the step: a busy expert is slowed down, the "
            "rest is not, and together they are still too long. Use one factor, from the norm of all.",
            _each(lambda g, max_norm: (max_norm / g.norm().clamp(min=1e-12)).clamp(max=1)),
        ),
        Misconception(
            "values-clamped",
            "You clamped every number to ±max_norm. That is clipping by value: it bends the direction and bounds no "
            "norm.",
            lambda gradients, max_norm: (
                {name: g.clamp(-max_norm, max_norm) for name, g in gradients.items()},
                _norm(gradients),
            ),
        ),
        Misconception(
            "always-to-the-limit",
            "You scaled every step to a norm of max_norm, short ones as well. Near the end of training, when gradients "
            "are small, that blows noise up. The factor is never more than 1.",
            _always_to_the_limit,
        ),
        Misconception(
            "norms-added",
            "You added the norms of the tensors. Norms add up like the sides of a right triangle: take the root of "
            "the sum of squares.",
            _with_norm(lambda gradients: torch.stack([g.norm() for g in gradients.values()]).sum()),
        ),
        Misconception(
            "largest-norm",
            "You took the largest tensor's norm for the norm of all.",
            _with_norm(lambda gradients: torch.stack([g.norm() for g in gradients.values()]).max()),
        ),
        Misconception(
            "root-missing",
            "You used the sum of squares without its root.",
            _with_norm(lambda gradients: _norm(gradients).square()),
        ),
        Misconception(
            "norm-after-clipping",
            "The norm that you returned is the one after clipping. It is at most max_norm by construction; what is "
            "worth a look in a log is the norm before.",
            _norm_after,
        ),
        Misconception(
            "nan-for-zeros",
            "Without any gradient you compute 0/0, and NaN goes into every weight.",
            _nan_for_zeros,
        ),
    ),
    alternatives=(_by_flattening, _by_sums),
)
