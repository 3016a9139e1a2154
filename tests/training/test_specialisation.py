"""Experts by domain: shares, information, the permutation test, and loads that tokens alone explain."""

import math

import torch

from moe_course.training.specialisation import (
    expected_from_tokens,
    expert_by_domain,
    loads_of_domains,
    mutual_information,
    permutation_p_value,
    window_loads,
)


def test_information_is_zero_for_equal_rows_and_largest_for_separate_experts():
    assert abs(mutual_information(torch.tensor([[3, 6, 1], [6, 12, 2]]))) < 1e-12
    assert math.isclose(mutual_information(torch.tensor([[5, 0, 0], [0, 5, 0]])), math.log(2))
    assert mutual_information(torch.zeros(2, 3, dtype=torch.int64)) == 0


def test_loads_of_windows_and_domains_count_every_choice():
    expert_ids = torch.tensor([[[0, 1], [1, 2]], [[2, 0], [2, 1]], [[0, 1], [0, 1]]])
    loads = window_loads(expert_ids, 4)
    assert loads.tolist() == [[1, 2, 1, 0], [1, 1, 2, 0], [2, 2, 0, 0]]
    domains = torch.tensor([1, 0, 1])
    assert loads_of_domains(loads, domains, 3).tolist() == [[1, 1, 2, 0], [3, 4, 1, 0], [0, 0, 0, 0]]
    shares = expert_by_domain(expert_ids, domains, 4, 3)
    assert shares[1].tolist() == [3 / 8, 4 / 8, 1 / 8, 0] and not shares[2].any()


def test_p_is_small_for_domains_that_differ_and_even_for_those_that_do_not():
    generator = torch.Generator().manual_seed(0)
    domains = torch.arange(2).repeat_interleave(12)
    orders = torch.stack([torch.randperm(24, generator=generator) for _ in range(99)])
    different = torch.tensor([[9, 1], [1, 9]])[domains]
    assert float(permutation_p_value(different, domains, orders)) == torch.tensor(0.01)
    noise = [torch.randint(1, 9, (24, 2), generator=generator) for _ in range(40)]
    values = torch.stack([permutation_p_value(loads, domains, orders) for loads in noise])
    assert 0.3 < values.mean() < 0.7 and 0 < (values < 0.25).float().mean() < 0.5


def test_loads_expected_from_tokens_are_exact_for_a_router_that_sees_the_token_alone():
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, (6, 20), generator=generator)
    favourites = torch.tensor([[0, 1], [1, 2], [2, 3], [3, 0], [0, 2]])
    by_token = favourites[ids]
    assert torch.allclose(expected_from_tokens(by_token, ids, 4, 5), window_loads(by_token, 4).double())
    random = torch.rand(6, 20, 4, generator=generator).topk(2).indices
    expected = expected_from_tokens(random, ids, 4, 5)
    assert torch.allclose(expected.sum(0), window_loads(random, 4).sum(0).double())
    assert not torch.allclose(expected, window_loads(random, 4).double())
