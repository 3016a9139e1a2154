"""Do experts serve domains of text? Shares, the information that an expert tells about a domain, and a test of chance.

The unit is a window of text, not a token: tokens of one window come from the same file and resemble each other, so a
test that shuffles single tokens finds everything significant.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor


def expert_by_domain(
    expert_ids: Int64[Tensor, "N S K"], domains: Int64[Tensor, " N"], num_experts: int, num_domains: int
) -> Float[Tensor, "M E"]:
    """Which share of each domain's choices fell on each expert.

    Args:
        expert_ids: the K experts of each of S tokens in N windows, (N, S, K).
        domains: the domain of each window, (N,).
        num_experts: number of experts E.
        num_domains: number of domains M.

    Returns:
        (M, E), in float32: each row sums to 1; zeros for a domain without windows.
    """
    counts = loads_of_domains(window_loads(expert_ids, num_experts), domains, num_domains)
    return counts / counts.sum(dim=1, keepdim=True).clamp(min=1)


def permutation_p_value(
    loads: Int64[Tensor, "N E"], domains: Int64[Tensor, " N"], permutations: Int64[Tensor, "R N"]
) -> Float[Tensor, ""]:
    """How often labels in random order tell at least as much about the experts as the true ones do.

    Args:
        loads: choices of each expert in each of N windows, (N, E).
        domains: the domain of each window, (N,).
        permutations: R random orders of the N windows, (R, N).

    Returns:
        p: a scalar in float32, from 1 / (R + 1), where no random order does, to 1.

    Source: Phipson and Smyth, Permutation P-values should never be zero, arXiv 1603.05766.
    """
    num_domains = int(domains.max()) + 1
    observed = mutual_information(loads_of_domains(loads, domains, num_domains))
    shuffled = [mutual_information(loads_of_domains(loads, domains[order], num_domains)) for order in permutations]
    as_large = sum(information >= observed for information in shuffled)
    return torch.as_tensor((1 + as_large) / (1 + len(permutations)), dtype=torch.float32)


def mutual_information(counts: Int64[Tensor, "M E"]) -> Float[Tensor, ""]:
    """What the expert of a choice tells about its domain, in nats: 0 if every domain uses the experts alike.

    Args:
        counts: choices by domain and expert, (M, E).

    Returns:
        A scalar in float64; at most the logarithm of M, or of E.
    """
    joint = counts.double() / counts.sum().clamp(min=1)
    independent = joint.sum(dim=1, keepdim=True) * joint.sum(dim=0, keepdim=True)
    return torch.special.xlogy(joint, torch.where(joint > 0, joint / independent, 1.0)).sum()


def window_loads(expert_ids: Int64[Tensor, "N S K"], num_experts: int) -> Int64[Tensor, "N E"]:
    """Choices of each expert in each window."""
    chosen = expert_ids.flatten(1)
    return chosen.new_zeros(len(chosen), num_experts).scatter_add(1, chosen, torch.ones_like(chosen))


def loads_of_domains(
    loads: Int64[Tensor, "N E"], domains: Int64[Tensor, " N"], num_domains: int
) -> Int64[Tensor, "M E"]:
    """The loads of the windows of each domain, summed."""
    return loads.new_zeros(num_domains, loads.shape[1]).index_add(0, domains, loads)


def expected_from_tokens(
    expert_ids: Int64[Tensor, "N S K"], ids: Int64[Tensor, "N S"], num_experts: int, vocab_size: int
) -> Float[Tensor, "N E"]:
    """The loads of each window if a token's identity alone decided, and its surroundings did not matter.

    Args:
        expert_ids: the K experts of each of S tokens in N windows, (N, S, K).
        ids: the tokens themselves, (N, S).
        num_experts: number of experts E.
        vocab_size: number of different tokens V.

    Returns:
        (N, E): the sum over a window's tokens of the mean loads of that token over all windows.
    """
    num_choices = torch.nn.functional.one_hot(expert_ids, num_experts).sum(dim=2).double()  # (N, S, E)
    by_token = torch.zeros(vocab_size, num_experts, dtype=torch.float64).index_add(
        0, ids.flatten(), num_choices.flatten(0, 1)
    )
    by_token /= torch.bincount(ids.flatten(), minlength=vocab_size).clamp(min=1)[:, None]
    return by_token[ids].sum(dim=1)
