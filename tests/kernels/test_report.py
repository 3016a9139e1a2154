"""Compiled for GPUs that are not here, every shipped configuration is as it should be."""

import dataclasses
import itertools

import pytest
import torch
from triton.runtime import interpreter

from moe_course.kernels import compile_report, configs, defects, down_project, is_interpreting, permute
from moe_course.kernels.gradient import weight_gradient
from moe_course.kernels.grouped_gemm import grouped_gemm
from moe_course.kernels.launch import recording
from moe_course.kernels.projection import up_project_and_save
from moe_course.kernels.report import TARGETS
from moe_course.kernels.schedule import (
    WORKLOADS,
    Routing,
    Workload,
    padding_efficiency,
    programs_of,
    random_routing,
)
from moe_course.kernels.tiles import tile_map
from moe_course.kernels.traffic import runs_at, traffic
from tests.kernels.problems import problem

# Compiling everything takes 1.5 minutes of CPU time; on a busy machine that may take longer than a test usually may.
pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def kernels():
    return compile_report()


def test_every_shipped_configuration_is_compiled_for_both_targets(kernels):
    compiled = {(k.kernel, k.dtype, k.config, k.target) for k in kernels}
    assert len(compiled) == len(kernels)
    sizes = {(k.dtype, tuple(k.blocks.items()), k.num_warps) for k in kernels}
    tables = [("bf16", configs.GEMM_16_BIT), ("fp32", configs.GEMM_32_BIT)]
    for dtype, table in tables:
        for by_block_m in table.values():
            for config in itertools.chain(*by_block_m.values()):
                assert (dtype, config.blocks, config.num_warps) in sizes
    gemms = {"up, gelu", "up, swiglu", "down", "dh", "dx", "dw_in", "dw_out"}
    others = {"dpre, gelu", "dpre, swiglu", "combine"}
    for dtype, target in itertools.product(("bf16", "fp32"), TARGETS):
        assert {k.kernel for k in kernels if (k.dtype, k.target) == (dtype, target)} == gemms | others
    assert {k.kernel for k in kernels if k.dtype == "int32"} == {"histogram", "positions", "tile_to_expert"}


def test_no_defects(kernels):
    """No spills, tensor cores and asynchronous copies in every GEMM, 16-byte stores, shared memory that is there."""
    assert {(k.kernel, k.dtype, k.config, k.target): defects(k) for k in kernels if defects(k)} == {}


def test_every_defect_is_noticed(kernels):
    good = next(k for k in kernels if (k.kernel, k.target) == ("down", "sm_90") and k.blocks["BLOCK_M"] == 64)
    for change in (
        {"stack_bytes": 8},
        {"spills": 1},
        {"shared_bytes": 228 * 1024},
        {"wgmma": 0},
        {"wgmma": 0, "mma": 16},
        {"ptx_mma": 0},
        {"async_copies": 0},
        {"ptx_async_copies": 0},
        {"wide_stores": 0},
        {"ptx_wide_stores": 0},
    ):
        assert defects(dataclasses.replace(good, **change)), change


@pytest.mark.parametrize("name", WORKLOADS)
def test_bytes_moved(kernels, name):
    """At most 1.15 times the least, at every workload, for every configuration that the layer would choose there."""
    workload, routing = WORKLOADS[name], random_routing(WORKLOADS[name])
    here = [kernel for kernel in kernels if runs_at(kernel, workload)]
    assert len({kernel.kernel for kernel in here}) == 7
    for kernel in here:
        estimate = traffic(kernel, workload, routing)
        assert 1 <= estimate.over_least <= 1.15, estimate


@pytest.mark.parametrize("name", ["olmoe", "mixtral"])
def test_padding(name):
    workload = WORKLOADS[name]
    block_m = configs.choose_block_m(workload.num_tokens * workload.top_k, workload.num_experts, torch.bfloat16)
    assert padding_efficiency(random_routing(workload), block_m) >= 0.9


def test_the_cache_model_notices_a_bad_order(kernels):
    """Tiles too flat for Mixtral's loads read the weights several times."""
    workload = WORKLOADS["mixtral"]
    flat = next(k for k in kernels if k.kernel == "dh" and k.target == "sm_80" and k.blocks["BLOCK_M"] == 16)
    assert traffic(flat, workload, random_routing(workload)).over_least > 2


class Watch:
    """Which numbers of a tensor each program loads and stores, seen in Triton's interpreter."""

    def __init__(self, monkeypatch):
        self.seen = []
        builder = type(interpreter.interpreter_builder)
        load, store = builder.create_masked_load, builder.create_masked_store

        def watched_load(builder, pointers, mask, *rest):
            self.seen.append((builder.grid_idx, pointers.data[mask.data]))
            return load(builder, pointers, mask, *rest)

        def watched_store(builder, pointers, value, mask, *rest):
            self.seen.append((builder.grid_idx, pointers.data[mask.data]))
            return store(builder, pointers, value, mask, *rest)

        monkeypatch.setattr(builder, "create_masked_load", watched_load)
        monkeypatch.setattr(builder, "create_masked_store", watched_store)

    def bytes_of(self, tensor):
        """How many bytes of the tensor each program touches, none of them counted twice; in order of programs."""
        start, end = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
        found = {}
        for program, addresses in self.seen:
            inside = addresses[(addresses >= start) & (addresses < end)].tolist()
            found.setdefault(program, set()).update(inside)
        return [len(addresses) * tensor.itemsize for _, addresses in sorted(found.items()) if addresses]


@pytest.mark.parametrize("name", ["up, swiglu", "down", "dh", "dx", "dw_in", "dw_out"])
def test_the_schedule_is_what_the_kernel_loads_and_stores(name, monkeypatch):
    """Program by program and byte by byte, at widths that are not multiples of a block, with an empty expert."""
    if not is_interpreting():
        return  # a compiled kernel cannot be watched
    workload = Workload("small", num_tokens=45, d_model=136, d_ff=72, num_experts=4, top_k=2)
    x, ids, weights, w_in, w_out, _ = problem(45, 4, 2, "swiglu", torch.float16, d_model=136, d_ff=72)
    order = permute(ids, 4)
    tiles = tile_map(order.expert_starts, ids.numel(), 16)
    h, pre = x.new_zeros(ids.numel(), 72), x.new_zeros(ids.numel(), 144)
    with recording() as launches:
        {
            "up, swiglu": lambda: up_project_and_save(x, w_in, order, "swiglu", tiles, True),
            "down": lambda: down_project(h, w_out, order, weights, tiles=tiles),
            "dh": lambda: grouped_gemm(x, w_out, order, tiles, gather=True),
            "dx": lambda: grouped_gemm(pre, w_in, order, tiles),
            "dw_in": lambda: weight_gradient(pre, x, order, gather_a=False),
            "dw_out": lambda: weight_gradient(x, h, order, gather_a=True),
        }[name]()
    (launch,) = launches
    blocks = dict(launch.configs[0].blocks)
    arguments = launch.arguments | blocks
    watch = Watch(monkeypatch)
    launch.kernel[launch.grid(arguments)](**arguments)

    tokens = (order.choice_of_row // 2).numpy()
    programs = programs_of(name, blocks, workload, Routing(tokens, order.expert_starts.numpy()))
    operands = [key for key in ("x_ptr", "rows_ptr", "a_ptr", "w_in_ptr", "weights_ptr", "b_ptr") if key in arguments]
    for operand, key in zip(programs.operands, operands, strict=True):
        expected = [int(operand.piece_bytes[operand.parts[part]].sum()) for part in operand.part_of]
        assert watch.bytes_of(arguments[key]) == [number for number in expected if number], key
    outputs = [watch.bytes_of(arguments[key]) for key in ("h_ptr", "pre_ptr", "out_ptr") if key in arguments]
    assert [sum(numbers) for numbers in zip(*outputs, strict=True)] == programs.written.tolist()
