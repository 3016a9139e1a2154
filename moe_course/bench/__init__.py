"""Benchmarks: `moe-course bench WHAT` runs one and compares it with its bars.

A benchmark is a function (sizes, repeats, progress) → Report, named here as "module:function" and imported only
when asked for, since the command line's help should not wait for torch. Its module has SIZE_NAMES, what --size accepts.
"""

BENCHMARKS: dict[str, str] = {
    "layer": "moe_course.bench.layer:run",
    "grade": "moe_course.bench.grade:run",
    "kernel": "moe_course.bench.kernel:run",
    "batch": "moe_course.bench.batch:run",
}
