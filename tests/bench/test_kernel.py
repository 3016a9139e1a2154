"""`bench kernel` on a few made-up rows: which bars apply, what fails, and that the report can be shown."""

import dataclasses
import json

import pytest
from rich.console import Console

from moe_course.bench import kernel as bench_kernel
from moe_course.bench.report import as_json, print_report
from moe_course.kernels.report import CompiledKernel

GEMM = CompiledKernel(
    kernel="down",
    dtype="bf16",
    config="128×128×64, 8 warps, 3 stages",
    blocks={"BLOCK_M": 128, "BLOCK_N": 128, "BLOCK_K": 64, "GROUP_M": 16},
    num_warps=8,
    target="sm_90",
    registers=128,
    stack_bytes=0,
    shared_bytes=96 * 1024,
    ptx_mma=4,
    ptx_async_copies=24,
    ptx_wide_stores=8,
    spills=0,
    mma=0,
    wgmma=4,
    async_copies=24,
    wide_stores=8,
)
COMBINE = dataclasses.replace(
    GEMM, kernel="combine", config="8×256, 4 warps, 1 stages", blocks={"BLOCK_T": 8}, spills=None, mma=None, wgmma=None
)


@pytest.fixture
def run(monkeypatch):
    def run(*kernels, sizes=("mixtral",)):
        monkeypatch.setattr(bench_kernel, "compile_report", lambda: list(kernels))
        monkeypatch.setattr(bench_kernel.torch.cuda, "is_available", lambda: False)
        return bench_kernel.run(list(sizes), 7, lambda text: None)

    return run


def test_bars_and_tables(run):
    report = run(GEMM, COMBINE)
    assert [verdict.state for verdict in report.verdicts] == ["holds"] * 3
    names = " ".join(verdict.bar.name for verdict in report.verdicts)
    assert "configurations with a defect" in names and "H100 SXM, down: bytes" in names and "rows of tiles" in names
    content = json.loads(as_json(report))
    assert {row["kind"] for row in content["measurements"]} == {"compiled", "estimate"}
    console = Console(record=True, width=200)
    print_report(report, console)
    text = console.export_text()
    assert "128×128×64 8w3s" in text and "Mixtral, 4096 tokens" in text and "There is no GPU here" in text


def test_a_kernel_that_spills_fails_and_is_named(run):
    report = run(dataclasses.replace(GEMM, stack_bytes=16), COMBINE)
    assert [verdict.bar.name for verdict in report.failures] == ["configurations with a defect"]
    assert any("down" in note and "spills" in note for note in report.notes)
    assert "fails" in str(report.failures[0])


def test_a_kernel_that_moves_too_much_fails(run, monkeypatch):
    monkeypatch.setattr(bench_kernel, "BYTES", 0.9)
    (failure,) = run(GEMM, COMBINE).failures
    assert "bytes over the least" in failure.bar.name


def test_empty_tiles_fail_except_where_weights_are_the_limit(run, monkeypatch):
    monkeypatch.setattr(bench_kernel, "TILE_ROWS", 1.0)
    (failure,) = run(GEMM, COMBINE).failures
    assert "rows of tiles" in failure.bar.name
    decode = dataclasses.replace(GEMM, blocks=GEMM.blocks | {"BLOCK_M": 16}, wgmma=0, mma=16)
    assert run(decode, COMBINE, sizes=["decode"]).failures == []


def test_figure(run):
    figure = run(GEMM, COMBINE).figure()
    assert figure.layout.xaxis.title.text == "FLOP per byte moved"
    assert any(trace.name == "Mixtral, 4096 tokens" and len(trace.x) for trace in figure.data)
