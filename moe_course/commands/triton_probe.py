"""Whether Triton works here: doubles four numbers with a kernel, compiled or interpreted, and says which.

`moe-course doctor` runs this file in a process of its own, because Triton decides at import whether it interprets.
"""

import os

import torch

ON_GPU = torch.cuda.is_available()
if not ON_GPU:
    os.environ["TRITON_INTERPRET"] = "1"

import triton  # noqa: E402
import triton.language as tl  # noqa: E402


@triton.jit
def double(x_ptr, y_ptr, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(y_ptr + at, 2 * tl.load(x_ptr + at))


x = torch.arange(4.0, device="cuda" if ON_GPU else "cpu")
y = torch.empty_like(x)
double[(1,)](x, y, BLOCK=4)
if not torch.equal(y, 2 * x):
    raise SystemExit(f"a kernel that doubles {x.tolist()} gave {y.tolist()}")
print(f"compiles for {torch.cuda.get_device_name(0)}" if ON_GPU else "interprets kernels on the CPU (no GPU)")
