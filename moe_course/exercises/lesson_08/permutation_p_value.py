"""Exercise 08.permutation_p_value: could chance have done this?"""

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from ...training.specialisation import loads_of_domains, mutual_information, permutation_p_value
from ..spec import Case, Exercise, Misconception, Property
from .inputs import Inputs, Make


def _test(per_domain: tuple[int, ...], lean: float, rounds: int = 20, num_experts: int = 4) -> Make:
    """Windows whose loads lean to an expert of their domain by `lean`, and random orders.

    The orders come in pairs that undo each other: it then makes no difference whether loads or labels are shuffled.
    Domains have different sizes: no order merely swaps two domains, which would be a tie up to rounding.
    """

    def make(generator: Generator) -> Inputs:
        domains = torch.arange(len(per_domain)).repeat_interleave(torch.tensor(per_domain))
        domains = domains[torch.randperm(len(domains), generator=generator)]
        rates = 6 + 10 * lean * torch.eye(num_experts)[domains % num_experts]
        loads = torch.poisson(rates, generator=generator).long()
        orders = [torch.randperm(len(domains), generator=generator) for _ in range(rounds)]
        return {
            "loads": loads,
            "domains": domains,
            "permutations": torch.stack([order for each in orders for order in (each, each.argsort())]),
        }

    return make


def _ties(generator: Generator) -> Inputs:
    """Few windows: some orders bring the true labels back, and all windows of a kind have the same loads."""
    inputs = _test((2, 3), 1.0, rounds=30)(generator)
    inputs["loads"] = torch.tensor([[6, 1, 1, 0], [1, 5, 2, 0]])[inputs["domains"]]
    return inputs


def _impossible(inputs: Inputs, output: Tensor) -> str | None:
    least = 1 / (len(inputs["permutations"]) + 1)
    p = float(output)
    if least - 1e-6 <= p <= 1 + 1e-6:
        return None
    return f"p is {p:.3g}; with {len(inputs['permutations'])} orders it lies between {least:.3g} and 1"


def _informations(loads: Tensor, domains: Tensor, permutations: Tensor) -> tuple[Tensor, Tensor]:
    """The observed mutual information, and that of each order, (R,)."""
    num_domains = int(domains.max()) + 1
    shuffled = [mutual_information(loads_of_domains(loads, domains[order], num_domains)) for order in permutations]
    return mutual_information(loads_of_domains(loads, domains, num_domains)), torch.stack(shuffled)


def _from_tensors(loads: Tensor, domains: Tensor, permutations: Tensor) -> float:
    observed, shuffled = _informations(loads, domains, permutations)
    return ((shuffled >= observed).sum().item() + 1) / (len(shuffled) + 1)


def _shuffling_loads(loads: Tensor, domains: Tensor, permutations: Tensor) -> Tensor:
    num_domains = int(domains.max()) + 1
    observed = mutual_information(loads_of_domains(loads, domains, num_domains))
    count = 1
    for order in permutations:
        count += int(mutual_information(loads_of_domains(loads[order], domains, num_domains)) >= observed)
    return torch.tensor(count / (1 + len(permutations)))


def _as_number(p: Tensor | float) -> Tensor:
    """p may be a number or a scalar tensor, of any precision."""
    return torch.as_tensor(p, dtype=torch.float32)


def _wrong(p: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    """`p(observed, shuffled)` of the right informations."""

    def wrong(loads: Tensor, domains: Tensor, permutations: Tensor) -> Tensor:
        observed, shuffled = _informations(loads, domains, permutations)
        return torch.as_tensor(p(observed, shuffled), dtype=torch.float32)

    return wrong


def _both_shuffled(loads: Tensor, domains: Tensor, permutations: Tensor) -> Tensor:
    num_domains = int(domains.max()) + 1
    observed = mutual_information(loads_of_domains(loads, domains, num_domains))
    count = sum(
        mutual_information(loads_of_domains(loads[order], domains[order], num_domains)) >= observed
        for order in permutations
    )
    return torch.as_tensor((1 + count) / (1 + len(permutations)), dtype=torch.float32)


def _busiest_only(loads: Tensor, domains: Tensor, permutations: Tensor) -> Tensor:
    votes = torch.nn.functional.one_hot(loads.argmax(dim=1), loads.shape[1])
    return permutation_p_value(votes, domains, permutations)


def _as_large(observed: Tensor, shuffled: Tensor) -> Tensor:
    return (shuffled >= observed).sum()


PERMUTATION_P_VALUE = Exercise(
    id="08.permutation_p_value",
    entry="permutation_p_value",
    title="Beyond chance?",
    points=3,
    difficulty=2,
    minutes=12,
    hints=(
        "If the domain had nothing to do with the experts, the labels could stand in any order. So compute the same "
        "number for the true labels and for each random order, and see how often chance does as well.",
        "`mutual_information(loads_of_domains(loads, labels, num_domains))`, for `domains` and for `domains[order]` "
        "with each row `order` of `permutations`. Count the orders with at least as much.",
        "p = (1 + count) / (1 + R). The true order is one of those that could have come up, so it counts in both: p is "
        "never 0. Ties count: `>=`.",
    ),
    reference=permutation_p_value,
    cases=(
        Case("domains that differ", _test((5, 8), 1.0)),
        Case("domains that differ a little", _test((6, 9, 4), 0.12)),
        Case("domains that do not differ", _test((5, 9), 0.0)),
        Case("four domains, nothing but noise", _test((3, 4, 6, 7), 0.0, rounds=30)),
        Case("few windows, many ties", _ties),
        Case("a weak lean, many orders", _test((9, 7), 0.08, rounds=60)),
    ),
    properties=(Property("p is possible", _impossible),),
    normalise=_as_number,
    misconceptions=(
        Misconception(
            "plus-one-missing",
            "Your p is count / R, and can be 0. No finite test proves that. The true order is one of those that chance "
            "could have brought up: add 1 above and below.",
            _wrong(lambda observed, shuffled: _as_large(observed, shuffled) / len(shuffled)),
        ),
        Misconception(
            "plus-one-above-only",
            "You added the true order to the count but not to the number of orders. p could be larger than 1.",
            _wrong(lambda observed, shuffled: (1 + _as_large(observed, shuffled)) / len(shuffled)),
        ),
        Misconception(
            "plus-one-below-only",
            "You divided by R + 1 but did not count the true order itself, which ties with the observed value. p "
            "can be 0.",
            _wrong(lambda observed, shuffled: _as_large(observed, shuffled) / (1 + len(shuffled))),
        ),
        Misconception(
            "ties-left-out",
            "You counted only orders that do *better* than the true one. Ties count as well: chance did as much.",
            _wrong(lambda observed, shuffled: (1 + (shuffled > observed).sum()) / (1 + len(shuffled))),
        ),
        Misconception(
            "wrong-tail",
            "You counted the orders that tell *less* than the true one, so strong specialisation gets a p near 1.",
            _wrong(lambda observed, shuffled: (1 + (shuffled <= observed).sum()) / (1 + len(shuffled))),
        ),
        Misconception(
            "one-minus-p",
            "You returned 1 − p: how often chance does *not* do as well.",
            _wrong(lambda observed, shuffled: 1 - (1 + _as_large(observed, shuffled)) / (1 + len(shuffled))),
        ),
        Misconception(
            "two-sided",
            "You doubled p, as for a quantity that may be too large or too small. Information is only ever too large.",
            _wrong(
                lambda observed, shuffled: ((1 + _as_large(observed, shuffled)) / (1 + len(shuffled)) * 2).clamp(max=1)
            ),
        ),
        Misconception(
            "both-shuffled",
            "You shuffled loads and labels by the same order, so every window kept its label and nothing changed. "
            "Shuffle one of them.",
            _both_shuffled,
        ),
        Misconception(
            "busiest-expert-only",
            "You kept only each window's busiest expert. Most of what the loads tell is lost that way; sum all loads.",
            _busiest_only,
        ),
    ),
    alternatives=(_from_tensors, _shuffling_loads),
)
