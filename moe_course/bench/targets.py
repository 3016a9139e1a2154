"""The sizes at which `moe-course bench layer` measures, and the bars to clear there, as data."""

from dataclasses import dataclass

from moe_course.bench.report import Bar


@dataclass(frozen=True)
class Size:
    """One setting of the benchmark."""

    tokens: int
    d_model: int
    d_ff: int
    num_experts: int
    top_k: int


SIZES = {
    "S": Size(512, 128, 256, 8, 2),
    "M": Size(4096, 256, 512, 8, 2),
    "L": Size(8192, 512, 1024, 16, 2),
    "F": Size(4096, 256, 128, 64, 8),  # fine-grained experts
    "P": Size(16, 256, 512, 8, 2),  # a step of decoding
}
# More and more experts at constant active compute.
SCALING = {f"E{num_experts}": Size(2048, 256, 512, num_experts, 2) for num_experts in (4, 16, 64, 256)}
MEMORY_SIZES = ("M", "L", "F")

FORWARD, TRAIN = "forward", "forward + backward"

# CPU time of forward + backward over that of the dense FFN of equal active FLOPs.
TIME_BARS = {
    "S": Bar("S, forward + backward", 1.45, stretch=1.30),
    "M": Bar("M, forward + backward", 1.15, stretch=1.08),
    "L": Bar("L, forward + backward", 1.10, stretch=1.00),
    "F": Bar("F, forward + backward", 1.40, stretch=1.25),
    "P": Bar("P, forward + backward", 3.30, stretch=2.50),
    # What a prototype reached: cost must follow active compute.
    "E4": Bar("E = 4, forward + backward", 1.1),
    "E16": Bar("E = 16, forward + backward", 1.2),
    "E64": Bar("E = 64, forward + backward", 1.7),
    "E256": Bar("E = 256, forward + backward", 4.3),
}

# CPU time over transformers' faster implementation with the same activation in the same rounds: never behind.
PEER_BARS = {
    (size, mode, activation): Bar(f"{size}, {mode}, {activation}, over transformers' best", 1.0)
    for size in SIZES
    for mode in (TRAIN, FORWARD)
    for activation in ("gelu", "swiglu")
} | {("F", TRAIN, "gelu"): Bar(f"F, {TRAIN}, gelu, over transformers' best", 0.65)}

# Bytes saved for backward over the K·T·F numbers that must be kept unless a GEMM is computed again.
MEMORY_BARS = {size: Bar(f"{size}, memory saved for backward", 1.15, noise=0) for size in MEMORY_SIZES}
