"""The loss of a language model with MoE layers: what the text asks for, and what keeps the routers in order."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from moe_course.layers import Routing, model_balance_loss, router_z_loss


@dataclass(frozen=True)
class LanguageModelLoss:
    """The loss of one batch, and its parts before they are weighted.

    Attributes:
        loss: cross_entropy + balance_weight · balance + z_weight · z: call `backward` on this one.
        cross_entropy: mean over the predicted tokens, in nats.
        balance: mean over the MoE layers of the load-balancing loss, 1 when even; 0 for a dense model.
        z: mean over the MoE layers of the router z-loss; 0 for a dense model.
    """

    loss: Float[Tensor, ""]
    cross_entropy: Float[Tensor, ""]
    balance: Float[Tensor, ""]
    z: Float[Tensor, ""]


def language_model_loss(
    model: nn.Module,
    ids: Int64[Tensor, "B S_and_next"],
    *,
    balance_weight: float = 0.01,
    z_weight: float = 0.0,
) -> LanguageModelLoss:
    """Predict every token of `ids` but the first from those before it.

    Args:
        model: a `MoETransformer`, or any module that returns `.logits` and `.routings` as it does.
        ids: sequences of context + 1 tokens, (B, S + 1).
        balance_weight: α of the balance loss. Fedus et al. (Switch), arXiv 2101.03961: 0.01.
        z_weight: of the router z-loss. Zoph et al. (ST-MoE), arXiv 2202.08906: 0.001.
    """
    output = model(ids[:, :-1])
    # In float32 at least: the softmax over a vocabulary is where bfloat16 hurts most.
    logits = output.logits.to(torch.promote_types(output.logits.dtype, torch.float32))
    cross_entropy = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
    routings = list(output.routings.values())
    balance = z = cross_entropy.new_zeros(())
    if routings:
        balance = model_balance_loss([_with_probabilities(routing) for routing in routings])
        z = torch.stack([router_z_loss(routing.logits) for routing in routings]).mean()
    return LanguageModelLoss(cross_entropy + balance_weight * balance + z_weight * z, cross_entropy, balance, z)


def _with_probabilities(routing: Routing) -> Routing:
    """The routing with rows that sum to 1: the sigmoid's do not, and the balance loss is made for rows that do."""
    return replace(routing, probs=routing.probs / routing.probs.sum(dim=-1, keepdim=True))
