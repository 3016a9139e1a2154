"""Compile every shipped configuration for GPUs that need not be there, and look at the machine code.

    python -m moe_course.kernels.compiling PART OF     prints one JSON line for each kernel of its part

`report.compile_report` runs this in processes of its own, because Triton cannot compile in one that interprets.
What is compiled is what the layer launches: its functions run on tensors without data (device "meta"), and
`launch.recording` writes the launches down.
"""

import itertools
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from moe_course.kernels import ops
from moe_course.kernels.configs import GEMM_16_BIT, GEMM_32_BIT
from moe_course.kernels.launch import Config, Launch, recording
from moe_course.kernels.permutation import permute
from moe_course.kernels.report import TARGETS, CompiledKernel

POINTERS = {torch.bfloat16: "*bf16", torch.float32: "*fp32", torch.int32: "*i32", torch.int64: "*i64"}


def main() -> None:
    part, parts = map(int, sys.argv[1:])
    for launch, config, target in itertools.islice(jobs(), part, None, parts):
        print(json.dumps(asdict(compile_launch(launch, config, target))), flush=True)


def jobs() -> Iterator[tuple[Launch, Config, str]]:
    """Every kernel with each of its configurations, for each target, once."""
    seen = set()
    heights = [(torch.bfloat16, block_m) for block_m in GEMM_16_BIT["up"]]
    heights += [(torch.float32, block_m) for block_m in GEMM_32_BIT["up"]]
    for dtype, block_m in heights:
        for activation in ("gelu", "swiglu"):
            for launch in record_layer(activation, dtype, block_m):
                for config, target in itertools.product(launch.configs, TARGETS):
                    job = (kernel_name(launch), data_type(launch), config, target)
                    if job not in seen:
                        seen.add(job)
                        yield launch, config, target


def record_layer(activation: str, dtype: torch.dtype, block_m: int | None = None) -> list[Launch]:
    """The launches of one training step of a layer, on tensors without data, with widths as published models have."""
    num_tokens, d_model, d_ff, num_experts, top_k = 4096, 2048, 1024, 64, 8
    f_in = 2 * d_ff if activation == "swiglu" else d_ff

    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    with recording() as launches:
        order = permute(torch.empty(num_tokens, top_k, dtype=torch.int64, device="meta"), num_experts)
        x, weights = empty(num_tokens, d_model), empty(num_tokens, top_k)
        w_in, w_out = empty(num_experts, f_in, d_model), empty(num_experts, d_model, d_ff)
        _, pre = ops.run_forward(x, weights, w_in, w_out, order, activation, True, block_m)
        ops.run_backward(x, x, weights, w_in, w_out, pre, order, activation, block_m)
    return launches


def kernel_name(launch: Launch) -> str:
    """What the kernel does in this launch: one kernel with other flags is another program."""
    name = launch.kernel.__name__.strip("_").removesuffix("_kernel")
    arguments = launch.arguments
    name = "dpre" if name == "activation_gradient" else name
    if name == "grouped_gemm":
        return "down" if arguments["WEIGHTED"] else "dh" if arguments["GATHER"] else "dx"
    if name == "outer":
        return "dw_out" if arguments["GATHER_A"] else "dw_in"
    if "GATED" in arguments:
        return f"{name}, {'swiglu' if arguments['GATED'] else 'gelu'}"
    return name


def data_type(launch: Launch) -> str:
    """The numbers that the kernel works on: bf16, fp32, or int32 where it only sorts."""
    found = {value.dtype for value in launch.arguments.values() if isinstance(value, Tensor)}
    return "bf16" if torch.bfloat16 in found else "fp32" if torch.float32 in found else "int32"


def compile_launch(launch: Launch, config: Config, target: str) -> CompiledKernel:
    """Compile one kernel as the launch would, and count what matters in its PTX and its machine code."""
    kernel, arguments = launch.kernel, launch.arguments | dict(config.blocks)
    types, constants, attributes = {}, {}, {}
    for i, parameter in enumerate(kernel.params):
        value = arguments[parameter.name]
        if parameter.is_constexpr:
            types[parameter.name] = "constexpr"
            constants[parameter.name] = value
        else:
            types[parameter.name] = POINTERS[value.dtype] if isinstance(value, Tensor) else "i32"
            # Triton does the same at a launch: tensors start, and published widths end, on a multiple of 16.
            if isinstance(value, Tensor) or value % 16 == 0:
                attributes[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, types, constexprs=constants, attrs=attributes)
    gpu = GPUTarget("cuda", int(target.removeprefix("sm_")), 32)
    options = {"num_warps": config.num_warps, "num_stages": config.num_stages}
    compiled = triton.compile(source, target=gpu, options=options)
    # Reading machine code takes as long as compiling it; only tensor cores and their feeding need that.
    read = "BLOCK_K" in arguments and data_type(launch) == "bf16"
    sass = disassemble(compiled.asm["cubin"], read)
    ptx = compiled.asm["ptx"]
    usage = re.search(r"REG:(\d+) STACK:(\d+)", sass)
    assert usage, "cuobjdump says nothing about registers"
    return CompiledKernel(
        kernel=kernel_name(launch),
        dtype=data_type(launch),
        config=str(config),
        blocks=dict(config.blocks),
        num_warps=config.num_warps,
        target=target,
        registers=int(usage[1]),
        stack_bytes=int(usage[2]),
        spills=count(r"\b(STL|LDL)\b", sass) if read else None,
        shared_bytes=compiled.metadata.shared,
        mma=count(r"\bHMMA\b", sass) if read else None,
        wgmma=count(r"\bHGMMA\b", sass) if read else None,
        ptx_mma=count(r"\b(mma|wgmma\.mma_async)\.sync", ptx),
        async_copies=count(r"\bLDGSTS\b", sass) if read else None,
        wide_stores=count(r"\bSTG\.E(\.EF)?\.128\b", sass) if read else None,
        ptx_async_copies=count(r"\bcp\.async\.c[ag]\.shared", ptx),
        ptx_wide_stores=count(r"\bst\.global(\.cs)?\.v4\.b32\b", ptx),
    )


def disassemble(cubin: bytes, read: bool) -> str:
    """Resource usage, and machine code if it is to be read, from the cuobjdump that comes with Triton."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(tool), "-res-usage", *(["-sass"] if read else []), file.name]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def count(pattern: str, text: str) -> int:
    return len(re.findall(pattern, text))


if __name__ == "__main__":
    main()
