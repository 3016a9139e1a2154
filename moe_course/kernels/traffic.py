"""How many bytes a kernel moves and how fast it could be at best, from its schedule: no GPU is needed.

`replay` runs the schedule through a model of the L2 cache:

- As many programs run at once as registers and shared memory allow, and go through their sums in step. So what
  several of them read is fetched once.
- What was read before is still in the cache if no more than its size was touched since. It is empty at the start.

The time that follows is a lower bound, not a prediction: it supposes full use of memory or of tensor cores. Index
arrays (4 bytes a row) and the sort are left out.
"""

from dataclasses import dataclass

import numpy as np
import torch

from moe_course.kernels.configs import choose_block_m
from moe_course.kernels.report import CompiledKernel
from moe_course.kernels.schedule import Operand, Programs, Routing, Workload, programs_of


@dataclass(frozen=True)
class Gpu:
    """What a roofline needs to know about a GPU."""

    name: str
    target: str
    num_sms: int
    l2_bytes: float
    shared_bytes: int  # of one SM
    flops: float  # a second, bf16 on tensor cores, without sparsity
    bandwidth: float  # bytes a second
    source: str


GPUS = {
    "sm_80": Gpu("A100 SXM 80 GB", "sm_80", 108, 40e6, 164 * 1024, 312e12, 2.039e12, "NVIDIA A100 datasheet"),
    "sm_90": Gpu("H100 SXM", "sm_90", 132, 50e6, 228 * 1024, 989e12, 3.35e12, "NVIDIA H100 datasheet"),
}


@dataclass(frozen=True)
class Traffic:
    """What one launch moves, and how long that takes at least."""

    workload: str
    kernel: str
    config: str
    gpu: str
    moved_bytes: float  # to and from main memory
    least_bytes: float  # what is needed, once
    loaded_bytes: float  # into the SMs, most of it from the L2 cache
    flops: float
    seconds: float

    @property
    def over_least(self) -> float:
        return self.moved_bytes / self.least_bytes


def traffic(kernel: CompiledKernel, workload: Workload, routing: Routing) -> Traffic:
    """What a compiled GEMM moves at a workload, on the GPU it was compiled for."""
    gpu = GPUS[kernel.target]
    programs = programs_of(kernel.kernel, kernel.blocks, workload, routing)
    moved = replay(programs, gpu.num_sms * programs_per_sm(kernel, gpu), gpu.l2_bytes)
    least, loaded = programs.written.sum(), 0.0
    for operand in programs.operands:
        part_bytes = np.array([operand.piece_bytes[part].sum() for part in operand.parts])
        loaded += part_bytes[operand.part_of].sum()
        least += operand.piece_bytes[_union(operand, operand.part_of)].sum()
    seconds = max(programs.flops / gpu.flops, moved / gpu.bandwidth)
    names = (workload.name, kernel.kernel, kernel.config, gpu.name)
    return Traffic(*names, *map(float, (moved, least, loaded, programs.flops, seconds)))


def runs_at(kernel: CompiledKernel, workload: Workload) -> bool:
    """Whether the layer would choose this configuration at this workload, in bf16."""
    if not kernel.is_gemm or kernel.dtype != "bf16":
        return False
    num_rows = workload.num_tokens * workload.top_k
    block_m = choose_block_m(num_rows, workload.num_experts, torch.bfloat16)
    return kernel.kernel.startswith("dw") or kernel.blocks["BLOCK_M"] == block_m


def programs_per_sm(kernel: CompiledKernel, gpu: Gpu) -> int:
    """How many programs an SM holds at once: limited by 65,536 registers, shared memory, and 2,048 threads."""
    threads = 32 * kernel.num_warps
    registers = -(-kernel.registers // 8) * 8  # given out in eights
    by_memory = gpu.shared_bytes // (kernel.shared_bytes + 1024)  # 1 KB of each program's is the system's
    return int(min(65536 // (registers * threads), by_memory, 2048 // threads))


def replay(programs: Programs, at_once: int, l2_bytes: float) -> float:
    """Bytes to and from main memory, if `at_once` programs run in step and the cache keeps what was touched last."""
    touched = moved = 0.0
    last = [np.full(len(operand.piece_bytes), -np.inf) for operand in programs.operands]
    for first in range(0, len(programs.written), at_once):
        wave = slice(first, first + at_once)
        now = touched
        touched += programs.written[wave].sum() if programs.cached else 0
        moved += programs.written[wave].sum()
        read = []
        for operand, seen in zip(programs.operands, last, strict=True):
            pieces = _union(operand, operand.part_of[wave])
            moved += operand.piece_bytes[pieces][now - seen[pieces] > l2_bytes].sum()
            touched += operand.piece_bytes[pieces].sum()
            read.append(pieces)
        for seen, pieces in zip(last, read, strict=True):
            seen[pieces] = touched
    return moved


def _union(operand: Operand, parts: np.ndarray) -> np.ndarray:
    """The pieces in any of the parts."""
    found = np.zeros(len(operand.piece_bytes), dtype=bool)
    for part in np.unique(parts):
        found[operand.parts[part]] = True
    return np.flatnonzero(found)
