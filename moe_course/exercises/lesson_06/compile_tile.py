"""Compiles a learner's `expert_tile`, and the course's own GEMM, for GPUs that need not be there.

    python -m moe_course.exercises.lesson_06.compile_tile KERNEL.py     prints one JSON line for each program

`compile_tile` runs this in a process of its own: Triton cannot compile in one that interprets.
"""

import dataclasses
import inspect
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from moe_course.kernels.availability import why_unavailable

TARGETS = ("sm_80", "sm_90")  # A100, H100
# Rows, columns and depth of a block, and warps: from the one of the exercise to one that is too large.
SIZES = ((16, 16, 16, 4), (64, 64, 32, 4), (128, 256, 64, 8))
WIDTH = 2048  # d_in and d_out, as in a published model

Row = dict[str, Any]


def compile_tile(kernel: Any) -> list[Row]:
    """What the compiler makes of `expert_tile` in bfloat16, at several sizes, and of the course's kernel.

    Args:
        kernel: the learner's kernel, or the reference that `check` gave back.

    Returns:
        A row for each program: kernel, config, target, registers, spills, shared_bytes, mma and wgmma. Empty where
        there is no Triton.

    Raises:
        RuntimeError: the kernel does not compile; with the compiler's last lines.
    """
    if why_unavailable():
        return []
    kernel = getattr(getattr(kernel, "lazy_kernel", None), "kernel", kernel)
    text = "import triton\nimport triton.language as tl\n\n\n" + inspect.getsource(kernel.fn)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.py"
        file.write_text(text, encoding="utf-8")
        done = subprocess.run(
            [sys.executable, "-m", "moe_course.exercises.lesson_06.compile_tile", str(file)],
            env=os.environ | {"TRITON_INTERPRET": "0"},
            capture_output=True,
            text=True,
        )
    if done.returncode:
        raise RuntimeError("the kernel does not compile:\n" + "\n".join(done.stderr.strip().splitlines()[-4:]))
    return [json.loads(line) for line in done.stdout.splitlines()]


def main() -> None:
    from moe_course.kernels.compiling import compile_launch, kernel_name, record_layer
    from moe_course.kernels.launch import Config, Launch

    namespace: dict[str, Any] = {"__name__": "learner"}
    file = sys.argv[1]
    exec(compile(Path(file).read_text(encoding="utf-8"), file, "exec"), namespace)

    def empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    matrices = (empty(4096, WIDTH), empty(8, WIDTH, WIDTH), empty(4096, WIDTH))
    tables = [empty(8, dtype=torch.int64) for _ in range(3)]
    names = namespace["expert_tile"].arg_names
    arguments = dict(zip(names, (*matrices, *tables, WIDTH, WIDTH), strict=False))
    jobs = []
    for *blocks, warps in SIZES:
        config = Config(tuple(zip(("BLOCK_M", "BLOCK_N", "BLOCK_K"), blocks, strict=True)), num_warps=warps)
        jobs.append(("expert_tile", Launch(namespace["expert_tile"], lambda meta: (1,), arguments, (config,)), config))
    ours = [one for one in record_layer("gelu", torch.bfloat16, 128) if kernel_name(one) == "down"]
    jobs.append(("moe_course, down projection", ours[0], ours[0].configs[0]))
    for name, launch, config in jobs:
        for target in TARGETS:
            row = dataclasses.asdict(compile_launch(launch, config, target))
            print(json.dumps(row | {"kernel": name}), flush=True)


if __name__ == "__main__":
    main()
