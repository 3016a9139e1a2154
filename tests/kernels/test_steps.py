"""The steps of the kernels, one by one: the sort, the tile map, the order of tiles, the combine."""

import pytest
import torch
import triton
import triton.language as tl
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_course.kernels import combine, down_project, permute, tile_map, up_project
from moe_course.kernels.configs import choose_block_m
from moe_course.kernels.permutation import Permutation
from moe_course.kernels.schedule import grouped_order
from moe_course.kernels.tiles import locate_tile
from moe_course.layers import loop_dispatch
from tests.kernels.problems import DEVICE, problem


@pytest.mark.parametrize(
    ("tokens", "num_experts", "top_k"),
    [(0, 4, 2), (1, 1, 1), (13, 5, 3), (400, 20, 4), (700, 3, 1)],  # the last two: several blocks, chunks of experts
)
def test_permute_is_a_stable_sort(tokens, num_experts, top_k):
    ids = torch.randint(num_experts, (tokens, top_k), generator=torch.Generator().manual_seed(0)).to(DEVICE)
    row_of_choice, choice_of_row, starts = permute(ids, num_experts)
    expected = ids.flatten().sort(stable=True).indices
    assert torch.equal(choice_of_row.long(), expected)
    assert torch.equal(row_of_choice.flatten()[expected].long(), torch.arange(tokens * top_k, device=DEVICE))
    loads = torch.bincount(ids.flatten(), minlength=num_experts)
    assert torch.equal(starts.diff().long(), loads) and starts[0] == 0


def test_a_choice_of_no_expert_gets_no_row_and_adds_nothing():
    ids = torch.tensor([[0, 2], [-1, 1], [3, 0]], device=DEVICE)
    permutation = permute(ids, 3)
    assert permutation.row_of_choice.tolist() == [[0, 3], [-1, 2], [-1, 1]]
    assert permutation.expert_starts.tolist() == [0, 2, 3, 4]
    rows = torch.arange(6.0, device=DEVICE)[:, None] + 1
    assert combine(rows, permutation).flatten().tolist() == [1 + 4, 3, 2]


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=20), st.sampled_from([16, 64]))
def test_tile_map_covers_every_row_once(loads, block_m):
    starts = torch.tensor([0, *loads]).cumsum(0, dtype=torch.int32).to(DEVICE)
    tiles = tile_map(starts, sum(loads), block_m)
    needed = [expert for expert, load in enumerate(loads) for _ in range(triton.cdiv(load, block_m))]
    unused = len(tiles.tile_to_expert) - len(needed)
    assert tiles.tile_to_expert.tolist() == needed + [-1] * unused
    assert tiles.first_tile.diff().tolist() == [triton.cdiv(load, block_m) for load in loads]


@triton.jit
def _locate(map_ptr, first_ptr, starts_ptr, out_ptr, columns, M: tl.constexpr, N: tl.constexpr, G: tl.constexpr):
    expert, first_row, num_rows, column_block = locate_tile(map_ptr, first_ptr, starts_ptr, columns, M, N, G)
    out = out_ptr + tl.program_id(0) * 4
    tl.store(out, expert)
    tl.store(out + 1, first_row)
    tl.store(out + 2, num_rows)
    tl.store(out + 3, column_block)


def test_programs_work_where_the_model_of_traffic_says():
    loads, block_m, block_n, columns, group_m = [35, 0, 3, 80], 16, 32, 70, 2
    starts = torch.tensor([0, *loads]).cumsum(0, dtype=torch.int32).to(DEVICE)
    tiles = tile_map(starts, sum(loads), block_m)
    num_programs = len(tiles.tile_to_expert) * triton.cdiv(columns, block_n)
    out = torch.zeros(num_programs, 4, dtype=torch.int32, device=DEVICE)
    _locate[(num_programs,)](tiles.tile_to_expert, tiles.first_tile, starts, out, columns, block_m, block_n, group_m)
    busy = out[out[:, 0] >= 0]
    assert torch.equal(out[: len(busy)], busy)  # those with nothing to do are at the end
    expected = grouped_order(starts.cpu().numpy(), block_m, columns, block_n, group_m)
    assert busy.T.tolist() == [numbers.tolist() for numbers in expected]
    cells = {(row, column) for _, first, rows, column in busy.tolist() for row in range(first, first + rows)}
    assert len(cells) == sum(loads) * triton.cdiv(columns, block_n) == (busy[:, 2]).sum()


def test_steps_make_the_layer():
    x, ids, weights, w_in, w_out, activation = problem(9, 4, 2, "swiglu")
    permutation = permute(ids, 4)
    h = up_project(x, w_in, permutation, activation)
    out = combine(down_project(h, w_out, permutation, weights), permutation)
    torch.testing.assert_close(out, loop_dispatch(x, ids, weights, w_in, w_out, activation), rtol=1e-4, atol=1e-5)


def test_combine_sums_in_float32():
    """In float16, 2048 + 1 stays 2048: three rows of it would lose two ones."""
    rows = torch.tensor([[2048.0], [1.0], [1.0]], dtype=torch.float16, device=DEVICE)
    order = torch.arange(3, dtype=torch.int32, device=DEVICE)
    starts = torch.tensor([0, 3], dtype=torch.int32, device=DEVICE)
    assert combine(rows, Permutation(order[None], order, starts)).item() == 2050


@pytest.mark.parametrize(
    ("num_rows", "num_experts", "block_m"),
    [(512, 64, 16), (32768, 64, 64), (8192, 8, 128), (65536, 64, 128)],  # OLMoE at 64, 4096, 8192 tokens; Mixtral
)
def test_tiles_are_as_tall_as_loads_allow(num_rows, num_experts, block_m):
    assert choose_block_m(num_rows, num_experts, torch.bfloat16) == block_m
