"""Exercise 06.tiled_experts: the whole layer from the kernels of this lesson."""

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from ..launch import call_on_device
from ..lesson_03.inputs import choices, stacked_weights
from ..spec import Case, Exercise, Misconception
from .inputs import Inputs, Make, order_of


def tiled_experts(x: Tensor, expert_ids: Tensor, expert_weights: Tensor, w_in: Tensor, w_out: Tensor) -> Tensor:
    """The layer in PyTorch: for each token the weighted sum of its experts' outputs, (T, D)."""
    out = torch.zeros_like(x)
    for k in range(expert_ids.shape[1]):
        hidden = F.gelu(torch.einsum("td,tfd->tf", x, w_in[expert_ids[:, k]]))
        out = out + expert_weights[:, k, None] * torch.einsum("tf,tdf->td", hidden, w_out[expert_ids[:, k]])
    return out


def _by_sorting(x: Tensor, expert_ids: Tensor, expert_weights: Tensor, w_in: Tensor, w_out: Tensor) -> Tensor:
    order = order_of(expert_ids.flatten()).long()
    rows = _rows_of(x[order // expert_ids.shape[1]], expert_ids.flatten()[order], w_in, w_out)
    return _combined(rows, order.argsort(), expert_weights)


def _rows_of(rows: Tensor, experts: Tensor, w_in: Tensor, w_out: Tensor, activation=F.gelu) -> Tensor:
    hidden = activation(torch.einsum("nd,nfd->nf", rows, w_in[experts]))
    return torch.einsum("nf,ndf->nd", hidden, w_out[experts])


def _combined(rows: Tensor, positions: Tensor, expert_weights: Tensor) -> Tensor:
    return (rows[positions].view(*expert_weights.shape, rows.shape[1]) * expert_weights[..., None]).sum(1)


def _layer(num_tokens: int, num_experts: int, top_k: int, without: tuple[int, ...] = ()) -> Make:
    def make(generator: Generator) -> Inputs:
        expert_ids, expert_weights = choices(num_tokens, num_experts, top_k, generator, without)
        w_in, w_out = stacked_weights(num_experts, 16, 24, generator)
        x = torch.randn(num_tokens, 16, generator=generator)
        return {"x": x, "expert_ids": expert_ids, "expert_weights": expert_weights, "w_in": w_in, "w_out": w_out}

    return make


def _with_weights_on_input(x, expert_ids, expert_weights, w_in, w_out):
    rows = (x[:, None] * expert_weights[..., None]).flatten(0, 1)
    return _rows_of(rows, expert_ids.flatten(), w_in, w_out).view(*expert_ids.shape, x.shape[1]).sum(1)


def _without_weights(x, expert_ids, expert_weights, w_in, w_out):
    return tiled_experts(x, expert_ids, torch.ones_like(expert_weights), w_in, w_out)


def _without_activation(x, expert_ids, expert_weights, w_in, w_out):
    rows = x.repeat_interleave(expert_ids.shape[1], 0)
    outputs = _rows_of(rows, expert_ids.flatten(), w_in, w_out, activation=lambda hidden: hidden)
    return (outputs.view(*expert_ids.shape, x.shape[1]) * expert_weights[..., None]).sum(1)


def _activation_last(x, expert_ids, expert_weights, w_in, w_out):
    rows = x.repeat_interleave(expert_ids.shape[1], 0)
    outputs = F.gelu(_rows_of(rows, expert_ids.flatten(), w_in, w_out, activation=lambda hidden: hidden))
    return (outputs.view(*expert_ids.shape, x.shape[1]) * expert_weights[..., None]).sum(1)


def _order_for_positions(x, expert_ids, expert_weights, w_in, w_out):
    order = order_of(expert_ids.flatten()).long()
    rows = _rows_of(x[order // expert_ids.shape[1]], expert_ids.flatten()[order], w_in, w_out)
    return _combined(rows, order, expert_weights)


def _not_sorted(x, expert_ids, expert_weights, w_in, w_out):
    rows = x.repeat_interleave(expert_ids.shape[1], 0)
    outputs = _rows_of(rows, expert_ids.flatten().sort().values, w_in, w_out)
    return (outputs.view(*expert_ids.shape, x.shape[1]) * expert_weights[..., None]).sum(1)


TILED_EXPERTS = Exercise(
    id="06.tiled_experts",
    entry="tiled_experts",
    title="The whole road",
    points=2,
    difficulty=2,
    minutes=10,
    hints=(
        "Five steps, each a call: sort the choices, gather, the first grouped product with the GELU after it, the "
        "second grouped product, combine.",
        "`sort_on_device` gives `order` and `offsets`. `grouped` wants sorted rows, a stack of matrices and `offsets`; "
        "`combined` wants rows, `order` and the weights. Nothing else touches the weights.",
        "`rows = gathered(x, order, expert_ids.shape[1])`, `hidden = F.gelu(grouped(rows, w_in, offsets))`, and "
        "`combined(grouped(hidden, w_out, offsets), order, expert_weights)`.",
    ),
    reference=tiled_experts,
    cases=(
        Case("eight tokens, top-2 of four", _layer(8, 4, 2)),
        Case("top-1", _layer(6, 3, 1)),
        Case("an idle expert", _layer(7, 4, 2, without=(1,))),
        Case("every expert, K = E", _layer(5, 3, 3)),
        Case("more rows than a tile", _layer(20, 2, 1)),
        Case("one token", _layer(1, 4, 2)),
        Case("no tokens", _layer(0, 4, 2)),
    ),
    misconceptions=(
        Misconception(
            "weights-on-the-input",
            "The weights are multiplied onto the rows before the experts. An expert is not linear: its output for half "
            "the input is not half its output. Weigh in the combine, or after the GELU.",
            _with_weights_on_input,
        ),
        Misconception(
            "weights-missing",
            "The outputs are added up without the routing weights.",
            _without_weights,
        ),
        Misconception(
            "activation-missing",
            "There is no GELU between the two products.",
            _without_activation,
        ),
        Misconception(
            "activation-last",
            "The GELU comes after the second product. It belongs between the two.",
            _activation_last,
        ),
        Misconception(
            "order-for-positions",
            "The way back uses the order of the way there. `order` says which choice a row holds; back, each choice "
            "asks where its row is, and that is the inverse.",
            _order_for_positions,
        ),
        Misconception(
            "rows-not-sorted",
            "The rows went into the grouped product in the order of the tokens, so experts got rows of others. "
            "`grouped` takes for expert e what stands between offsets[e] and offsets[e + 1]: gather first.",
            _not_sorted,
        ),
    ),
    alternatives=(_by_sorting,),
    drive=call_on_device,
)
