"""What the compiler made of the kernels, for GPUs that need not be there."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from moe_course.kernels.availability import why_unavailable

TARGETS = ("sm_80", "sm_90")  # A100, H100
# Shared memory that one program may have (CUDA C++ programming guide, technical specifications).
SHARED_LIMIT = {"sm_80": 163 * 1024, "sm_90": 227 * 1024}


@dataclass(frozen=True)
class CompiledKernel:
    """One kernel with one configuration, compiled for one target."""

    kernel: str  # such as "up, swiglu"
    dtype: str  # bf16, fp32 or int32
    config: str
    blocks: dict[str, int]
    num_warps: int
    target: str
    registers: int  # a thread; 255 at most
    stack_bytes: int  # a thread; more than 0 means that registers did not suffice
    shared_bytes: int
    ptx_mma: int  # tensor-core instructions in PTX
    ptx_async_copies: int
    ptx_wide_stores: int
    # Counted in the machine code of 16-bit GEMMs; None elsewhere.
    spills: int | None  # stores to the stack and loads from it (STL, LDL)
    mma: int | None  # tensor-core instructions of one warp (HMMA)
    wgmma: int | None  # and of four warps together (HGMMA, from sm_90 on)
    async_copies: int | None  # from global to shared memory, without passing through registers (LDGSTS)
    wide_stores: int | None  # 16 bytes a thread (STG.E.128, STG.E.EF.128)

    @property
    def is_gemm(self) -> bool:
        return "BLOCK_K" in self.blocks


def defects(kernel: CompiledKernel) -> list[str]:
    """What a kernel should have and has not, one phrase each; empty if it is as it should be."""
    found = []
    if kernel.stack_bytes or kernel.spills:
        found.append(f"spills: {kernel.stack_bytes} bytes of stack a thread")
    if kernel.shared_bytes > SHARED_LIMIT[kernel.target]:
        found.append(f"needs {kernel.shared_bytes} bytes of shared memory, {SHARED_LIMIT[kernel.target]} are there")
    if kernel.kernel not in SORTING and not kernel.ptx_wide_stores:
        found.append("stores fewer than 16 bytes at once")
    if kernel.is_gemm and not kernel.ptx_async_copies:
        found.append("copies nothing asynchronously")
    if kernel.is_gemm and kernel.dtype == "bf16":
        hopper = kernel.target == "sm_90" and kernel.blocks["BLOCK_M"] >= 64
        if not kernel.ptx_mma or not (kernel.wgmma if hopper else kernel.mma):
            found.append(f"has no {'HGMMA' if hopper else 'HMMA'}")
        if not kernel.async_copies or not kernel.wide_stores:
            found.append("lost its asynchronous copies or 16-byte stores in machine code")
    return found


SORTING = ("histogram", "positions", "tile_to_expert")  # they store single integers


def compile_report() -> list[CompiledKernel]:
    """Compile every shipped configuration for sm_80 and sm_90. Needs no GPU.

    Takes about a minute; Triton keeps what it compiled in its cache, so the next call takes a few seconds.

    Returns:
        One row a kernel, configuration and target.

    Raises:
        RuntimeError: Triton is not there, or a kernel does not compile.
    """
    if find_spec("triton") is None:
        raise RuntimeError(why_unavailable())
    parts = min(os.cpu_count() or 1, 4)
    # Where the user interprets kernels, they must be compiled elsewhere: Triton decides once per process.
    environment = os.environ | {"TRITON_INTERPRET": "0"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "moe_course.kernels.compiling", str(part), str(parts)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for part in range(parts)
    ]
    answers = [process.communicate() for process in processes]
    rows: list[dict[str, Any]] = []
    for process, (out, err) in zip(processes, answers, strict=True):
        if process.returncode:
            reason = (err.strip().splitlines() or ["no reason given"])[-1]
            if process.returncode < 0:
                reason = f"the compiler was killed (signal {-process.returncode}); is there enough memory?"
            raise RuntimeError(f"a kernel does not compile: {reason}")
        rows += map(json.loads, out.splitlines())
    order = {target: i for i, target in enumerate(TARGETS)}
    return sorted((CompiledKernel(**row) for row in rows), key=lambda k: (k.dtype, k.kernel, k.config, order[k.target]))
