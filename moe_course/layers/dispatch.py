"""Three ways to send tokens to experts and combine the results: a loop, one-hot einsums, a grouped GEMM.

All take (x, expert_ids, expert_weights, w_in, w_out, activation) and compute, for every token t,

    out[t] = Σ_k expert_weights[t, k] · ffn(x[t], w_in[expert_ids[t, k]], w_out[expert_ids[t, k]])

They differ in cost, not in result. The fast one, on the same idea as the third, is in `sorted.py`.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from moe_course.layers.ffn import Activation, activate, check_activation, ffn, in_rows


def loop_dispatch(
    x: Float[Tensor, "T D"],
    expert_ids: Int64[Tensor, "T K"],
    expert_weights: Float[Tensor, "T K"],
    w_in: Float[Tensor, "E F_in D"],
    w_out: Float[Tensor, "E D F"],
    activation: Activation = "gelu",
) -> Float[Tensor, "T D"]:
    """Visit the experts one after another; each takes its tokens and adds its weighted output.

    The easiest to read, and to trust. Each expert searches all T·K choices for its own, so it costs E·T·K
    comparisons.

    Args:
        x: tokens, (T, D).
        expert_ids: the K experts of each token, (T, K).
        expert_weights: their weights, (T, K).
        w_in: first weights of all experts, (E, F, D); (E, 2F, D) for swiglu.
        w_out: second weights of all experts, (E, D, F).
        activation: "gelu" or "swiglu".

    Returns:
        (T, D), in x's dtype.

    Raises:
        ValueError: the shapes do not fit together, or the activation is unknown.
    """
    check_dispatch(x, expert_ids, expert_weights, w_in, w_out, activation)
    out = torch.zeros_like(x)
    # unbind once: indexing w_in[e] in the loop would cost a full (E, F, D) gradient for every expert.
    for expert, (w_in_e, w_out_e) in enumerate(zip(w_in.unbind(0), w_out.unbind(0), strict=True)):
        tokens, choice = torch.where(expert_ids == expert)
        y = ffn(x[tokens], w_in_e, w_out_e, activation) * expert_weights[tokens, choice, None]
        out = out.index_add(0, tokens, y.to(out.dtype))
    return out


def einsum_dispatch(
    x: Float[Tensor, "T D"],
    expert_ids: Int64[Tensor, "T K"],
    expert_weights: Float[Tensor, "T K"],
    w_in: Float[Tensor, "E F_in D"],
    w_out: Float[Tensor, "E D F"],
    activation: Activation = "gelu",
) -> Float[Tensor, "T D"]:
    """Dispatch and combine by multiplying with one-hot tensors, as GShard does, with room for every token.

    Each expert owns C slots, C being the load of the busiest expert, so nothing is dropped. The one-hot
    tensors hold T·E·C numbers, nearly all zero: experts are reached without indexing, which suits a TPU, and
    most of the work is wasted.

    Args, Returns, Raises: as `loop_dispatch`.

    Source: Lepikhin et al., arXiv 2006.16668, algorithm 1 and section 3.2.
    """
    check_dispatch(x, expert_ids, expert_weights, w_in, w_out, activation)
    (num_tokens, _), num_experts = expert_ids.shape, w_in.shape[0]
    # Position of each choice in its expert's queue: how many earlier choices went to the same expert.
    chosen = F.one_hot(expert_ids.flatten(), num_experts)
    position = (chosen.cumsum(0) - 1).gather(1, expert_ids.reshape(-1, 1)).view_as(expert_ids)
    capacity = int(position.max()) + 1 if position.numel() else 0

    slots = x.new_zeros(num_tokens, num_experts * capacity)
    slot_ids = expert_ids * capacity + position
    dispatch = slots.scatter(1, slot_ids, 1.0).view(num_tokens, num_experts, capacity)
    combine = slots.scatter(1, slot_ids, expert_weights.to(x.dtype)).view_as(dispatch)

    tokens = torch.einsum("tec,td->ecd", dispatch, x)
    h = activate(torch.einsum("ecd,efd->ecf", tokens, w_in), activation)
    y = torch.einsum("ecf,edf->ecd", h, w_out)
    return torch.einsum("tec,ecd->td", combine, y)


def grouped_dispatch(
    x: Float[Tensor, "T D"],
    expert_ids: Int64[Tensor, "T K"],
    expert_weights: Float[Tensor, "T K"],
    w_in: Float[Tensor, "E F_in D"],
    w_out: Float[Tensor, "E D F"],
    activation: Activation = "gelu",
) -> Float[Tensor, "T D"]:
    """Sort the choices by expert, so that an expert's tokens are neighbours, and run one grouped GEMM.

    Nothing is padded or dropped, and a GPU need not tell the CPU the loads: this is what runs there.

    Args, Returns, Raises: as `loop_dispatch`.

    Source: Gale et al. (MegaBlocks), arXiv 2211.15841, section 4.
    """
    check_dispatch(x, expert_ids, expert_weights, w_in, w_out, activation)
    ids, order = expert_ids.flatten().sort(stable=True)
    tokens = order // expert_ids.shape[1]
    experts = torch.arange(w_in.shape[0], device=x.device)
    # Expert e owns the rows from ends[e-1] to ends[e].
    ends = torch.searchsorted(ids, experts, right=True, out_int32=True)
    h = activate(grouped_mm(x.index_select(0, tokens), w_in.mT, ends), activation)
    y = grouped_mm(h, w_out.mT, ends) * expert_weights.reshape(-1, 1).index_select(0, order)
    return torch.zeros_like(x).index_add_(0, tokens, y.to(x.dtype))


def grouped_mm(rows: Tensor, weights: Tensor, ends: Tensor) -> Tensor:
    """Multiply each expert's rows (N, D) with its own matrix of `weights` (E, D, F) into (N, F).

    By `F.grouped_mm` where that can do it: it knows no float64 and wants rows, matrices and the start of each a
    multiple of 16 bytes apart. Else by one mm for each expert.
    """
    lengths = (*weights.shape[1:], weights.storage_offset())
    aligned = all(length * weights.element_size() % 16 == 0 for length in lengths)
    if aligned and rows.dtype != torch.float64 and (weights.is_contiguous() or weights.mT.is_contiguous()):
        return F.grouped_mm(rows, weights, offs=ends)
    sizes = ends.diff(prepend=ends.new_zeros(1)).tolist()
    return torch.cat([r @ w for r, w in zip(rows.split(sizes), weights.unbind(0), strict=True)])


def check_dispatch(
    x: Tensor, expert_ids: Tensor, expert_weights: Tensor, w_in: Tensor, w_out: Tensor, activation: Activation
) -> None:
    """Raise a ValueError that names the remedy when the arguments of a dispatch do not fit together."""
    check_activation(activation)
    if expert_ids.shape != expert_weights.shape:
        raise ValueError(
            f"expert_ids has shape {tuple(expert_ids.shape)}, expert_weights {tuple(expert_weights.shape)}; "
            "pass one weight for each id, both (T, K)"
        )
    if x.ndim != 2 or expert_ids.ndim != 2 or len(x) != len(expert_ids):
        raise ValueError(
            f"x has shape {tuple(x.shape)} and expert_ids {tuple(expert_ids.shape)}; "
            "flatten x to (T, D) and pass expert_ids of shape (T, K) for the same T tokens"
        )
    num_experts, d_model, d_ff = w_out.shape
    if w_in.shape != (num_experts, in_rows(d_ff, activation), d_model) or x.shape[1] != d_model:
        rows = "2F" if activation == "swiglu" else "F"
        raise ValueError(
            f"x {tuple(x.shape)}, w_in {tuple(w_in.shape)}, w_out {tuple(w_out.shape)} do not fit together; "
            f"for {activation} pass x (T, D), w_in (E, {rows}, D) and w_out (E, D, F)"
        )
    # On a GPU, looking at the ids would make the CPU wait for it.
    if expert_ids.device.type == "cpu" and expert_ids.numel():
        lowest, highest = (int(end) for end in expert_ids.aminmax())
        if lowest < 0 or highest >= num_experts:
            raise ValueError(
                f"expert_ids run from {lowest} to {highest}, but w_in and w_out hold {num_experts} experts; "
                f"pass ids from 0 to {num_experts - 1}"
            )
