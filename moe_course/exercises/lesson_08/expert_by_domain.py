"""Exercise 08.expert_by_domain: which experts serve which kind of text."""

from collections.abc import Callable

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from ...training.specialisation import expert_by_domain
from ..spec import Case, Exercise, Misconception, Property
from .inputs import Inputs, Make


def _windows(per_domain: tuple[int, ...], length: int, num_experts: int, top_k: int) -> Make:
    """Windows of several domains in mixed order; each domain leans to other experts, and second choices to all."""

    def make(generator: Generator) -> Inputs:
        domains = torch.arange(len(per_domain)).repeat_interleave(torch.tensor(per_domain))
        domains = domains[torch.randperm(len(domains), generator=generator)]
        lean = 2.5 * torch.eye(num_experts)[(2 * domains) % num_experts]  # (N, E)
        scores = torch.randn(len(domains), length, num_experts, generator=generator) + lean[:, None]
        return {
            "expert_ids": scores.topk(top_k, dim=-1).indices,
            "domains": domains,
            "num_experts": num_experts,
            "num_domains": len(per_domain),
        }

    return make


def _small(generator: Generator) -> Inputs:
    return {
        "expert_ids": torch.tensor([[[0, 1], [0, 2]], [[2, 1], [2, 0]], [[0, 1], [1, 0]]]),
        "domains": torch.tensor([0, 1, 0]),
        "num_experts": 4,
        "num_domains": 2,
    }


def _rows_off(inputs: Inputs, output: Tensor) -> str | None:
    there = torch.bincount(inputs["domains"], minlength=inputs["num_domains"]) > 0
    for domain, total in enumerate(output.double().sum(dim=1).tolist()):
        if abs(total - float(there[domain])) > 1e-3:
            return f"the row of domain {domain} sums to {total:.3g}, not {float(there[domain]):g}"
    return None


def _one_hot(expert_ids: Tensor, domains: Tensor, num_experts: int, num_domains: int) -> Tensor:
    loads = F.one_hot(expert_ids, num_experts).sum((1, 2)).float()
    counts = F.one_hot(domains, num_domains).float().T @ loads
    return counts / counts.sum(dim=1, keepdim=True).clamp(min=1)


def _domain_by_domain(expert_ids: Tensor, domains: Tensor, num_experts: int, num_domains: int) -> Tensor:
    rows = []
    for domain in range(num_domains):
        chosen = expert_ids[domains == domain].flatten()
        rows.append(torch.bincount(chosen, minlength=num_experts) / max(chosen.numel(), 1))
    return torch.stack(rows)


def _counts(expert_ids: Tensor, labels: Tensor, num_experts: int, num_domains: int) -> Tensor:
    """Counts by domain and expert, from a label for each choice."""
    cells = labels.flatten() * num_experts + expert_ids.flatten()
    return torch.bincount(cells, minlength=num_domains * num_experts)[: num_domains * num_experts].view(
        num_domains, num_experts
    )


def _wrong(divide: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    """Right counts (M, E), then `divide(counts, expert_ids)`."""

    def wrong(expert_ids: Tensor, domains: Tensor, num_experts: int, num_domains: int) -> Tensor:
        labels = domains[:, None, None].expand_as(expert_ids)
        return divide(_counts(expert_ids, labels, num_experts, num_domains).float(), expert_ids)

    return wrong


def _first_choices(expert_ids: Tensor, domains: Tensor, num_experts: int, num_domains: int) -> Tensor:
    return expert_by_domain(expert_ids[..., :1], domains, num_experts, num_domains)


def _labels_repeated(expert_ids: Tensor, domains: Tensor, num_experts: int, num_domains: int) -> Tensor:
    labels = domains.repeat(expert_ids[0].numel() if len(expert_ids) else 0)
    counts = _counts(expert_ids, labels, num_experts, num_domains).float()
    return counts / counts.sum(dim=1, keepdim=True).clamp(min=1)


def _up_to_the_last_chosen(expert_ids: Tensor, domains: Tensor, num_experts: int, num_domains: int) -> Tensor:
    return expert_by_domain(expert_ids, domains, num_experts, num_domains)[:, : int(expert_ids.max()) + 1]


def _table_read_transposed(expert_ids: Tensor, domains: Tensor, num_experts: int, num_domains: int) -> Tensor:
    return expert_by_domain(expert_ids, domains, num_experts, num_domains).T


EXPERT_BY_DOMAIN = Exercise(
    id="08.expert_by_domain",
    entry="expert_by_domain",
    title="Experts by domain",
    points=3,
    difficulty=2,
    minutes=12,
    hints=(
        "A table of counts first, (M, E): every choice of every token in a window counts for that window's domain. "
        "Then divide each row by its sum.",
        "Loop over the domains: `expert_ids[domains == domain].flatten()` holds its choices, and "
        "`torch.bincount(..., minlength=num_experts)` counts them.",
        "`counts / max(chosen.numel(), 1)` is a row: it sums to 1, and a domain without windows gives zeros instead of "
        "0/0. `torch.stack` the rows.",
    ),
    reference=expert_by_domain,
    cases=(
        Case("three windows of two tokens", _small),
        Case("two domains of different sizes", _windows((9, 3), 6, 4, 2)),
        Case("four domains, top-2 of eight", _windows((5, 8, 3, 6), 10, 8, 2)),
        Case("top-1", _windows((4, 6, 5), 8, 4, 1)),
        Case("a domain without windows", _windows((4, 0, 6), 5, 8, 2)),
        Case("experts that nobody chose", _windows((3, 4), 2, 16, 1)),
    ),
    properties=(Property("each domain's row sums to 1", _rows_off),),
    misconceptions=(
        Misconception(
            "columns-normalised",
            "You divided by column: what share of an *expert's* work came from a domain. That depends on how much text "
            "of each domain you happened to look at. Divide each domain's row by its own sum.",
            _wrong(lambda counts, ids: counts / counts.sum(dim=0, keepdim=True).clamp(min=1)),
        ),
        Misconception(
            "whole-table-normalised",
            "You divided by the sum of the whole table. A domain with more windows then looks more specialised; each "
            "row should sum to 1.",
            _wrong(lambda counts, ids: counts / counts.sum().clamp(min=1)),
        ),
        Misconception(
            "divided-by-tokens",
            "Your rows sum to K: you divided by the number of tokens, and a token makes K choices.",
            _wrong(lambda counts, ids: counts / counts.sum(dim=1, keepdim=True).clamp(min=1) * ids.shape[-1]),
        ),
        Misconception(
            "first-choice-only",
            "You counted first choices alone. All K experts work for a token.",
            _first_choices,
        ),
        Misconception(
            "labels-repeated",
            "Your labels went to the wrong tokens: `repeat` runs through all windows again and again, while the "
            "flattened choices have a window's S·K entries in a row. `repeat_interleave` does that.",
            _labels_repeated,
        ),
        Misconception(
            "transposed",
            "Your table is transposed: rows are domains and columns experts.",
            _table_read_transposed,
        ),
        Misconception(
            "counts-not-shares",
            "You returned counts. Domains of different sizes cannot be compared so; divide each row by its sum.",
            _wrong(lambda counts, ids: counts),
        ),
        Misconception(
            "last-experts-forgotten",
            "Your table ends at the largest id that occurs, so experts that nobody chose are not in it. Use "
            "`minlength=num_experts`.",
            _up_to_the_last_chosen,
        ),
        Misconception(
            "nan-for-an-empty-domain",
            "A domain without windows gives 0/0, NaN. Divide by at least 1.",
            _wrong(lambda counts, ids: counts / counts.sum(dim=1, keepdim=True)),
        ),
    ),
    alternatives=(_one_hot, _domain_by_domain),
)
