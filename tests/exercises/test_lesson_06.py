"""Triton exercises: a wrong kernel is told and never fatal, however it is wrong, and hurts no later one."""

import linecache

import pytest
import torch

from moe_course.exercises import by_entry, check
from moe_course.exercises.checking import evaluate
from moe_course.exercises.judge import Verdict
from moe_course.exercises.launch import Guarded, KernelOf, unwritten
from moe_course.exercises.lesson_06 import kernels
from moe_course.exercises.show import verdict_text
from moe_course.exercises.watch import DoubleWrite, Race, ReadOutOfBounds, WildAddress, WriteOutOfBounds
from moe_course.exercises.with_triton import UnavailableKernel, tl, triton

HEADS = {
    "gather_rows": """@triton.jit
def gather_rows(
    x_ptr, order_ptr, rows_ptr, num_rows, width, top_k, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr
):
    rows = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    columns = tl.program_id(1) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    order = tl.load(order_ptr + rows, mask=rows < num_rows, other=0)
""",
    "expert_offsets": """@triton.jit
def expert_offsets(totals_ptr, offsets_ptr, num_experts, EXPERTS: tl.constexpr):
    experts = tl.arange(0, EXPERTS)
    totals = tl.load(totals_ptr + experts, mask=experts < num_experts, other=0)
""",
}


def kernel(entry: str, body: str):
    """A kernel as a notebook's cell defines it."""
    source = HEADS[entry] + "".join(f"    {line}\n" for line in body.splitlines())
    file = f"<cell {hash(source)}>"
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    namespace = {"tl": tl, "triton": triton, "torch": torch}
    exec(compile(source, file, "exec"), namespace)
    return namespace[entry]


def verdict(entry: str, body: str) -> Verdict:
    exercise = by_entry(entry)
    assert exercise is not None
    return evaluate(exercise, kernel(entry, body), 0)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("tl.store(rows_ptr + rows + 10**9, 1.0)", "memory that belongs to none of the tensors"),
        ("tl.load(x_ptr + rows - 10**9)", "memory that belongs to none of the tensors"),
        (
            "tl.store(rows_ptr + num_rows * width + rows, 1.0)",
            "WriteOutOfBounds past rows_ptr: program instance (0, 0) writes 16 elements past the end of its 16 × 16",
        ),
        ("tl.load(x_ptr - 3 + rows)", "reads 3 elements before the start of its 8 × 16"),
        ("tl.load(x_ptr + rows, mask=(rows < 2) and (rows < 3))", "want one truth value, not a block of 16"),
        ("tl.store(rows_prt + rows, 0)", "name 'rows_prt' is not defined, at your line 8: tl.store(rows_prt"),
        ("x_ptr[order]", "a pointer is not indexed"),
        ("tl.arange(0, width)", "sizes that are known beforehand"),
        ("tl.arange(0, 3)", "a power of two"),
        ("a = b = rows", "write one assignment a line"),
        ("torch.sum(rows)", "there is no torch"),
        ("pass", "256 of 256 elements were never written, first [0, 0]"),
    ],
)
def test_slip_is_told_in_a_sentence(body, said):
    found = verdict("gather_rows", body)
    assert (found.status, found.misconception) == ("failed", None)
    assert said in verdict_text(found)


@pytest.mark.parametrize(
    ("entry", "body", "misconception"),
    [
        # Written as learners write them, unlike the one-line edits that the misconceptions themselves are.
        (
            "gather_rows",
            """tokens = order // top_k
m = rows[:, None] < num_rows
x = tl.load(x_ptr + tokens[:, None] * width + columns, mask=m)
tl.store(rows_ptr + rows[:, None] * width + columns, x, m)""",
            "column-mask-missing",
        ),
        (
            "gather_rows",
            """m = (rows[:, None] < num_rows) & (columns[None, :] < width)
x = tl.load(x_ptr + (order - order // top_k * top_k)[:, None] * width + columns[None, :], mask=m)
tl.store(rows_ptr + rows[:, None] * width + columns[None, :], x, mask=m)""",
            "remainder-for-token",
        ),
        (
            "expert_offsets",
            """tl.store(offsets_ptr + experts, tl.cumsum(totals, 0), mask=experts < num_experts)
tl.store(offsets_ptr + num_experts, tl.sum(totals, 0))""",
            "inclusive-for-exclusive",
        ),
        (
            "expert_offsets",
            """total = 0
for e in range(num_experts):
    tl.store(offsets_ptr + e, total)
    total += tl.load(totals_ptr + e)""",
            "last-offset-missing",
        ),
    ],
)
def test_learners_own_way_of_getting_it_wrong_is_recognised(entry, body, misconception):
    found = verdict(entry, body).misconception
    assert found is not None and found.id == misconception


@pytest.mark.parametrize("entry", HEADS)
def test_stub_is_not_attempted(entry):
    assert verdict(entry, "raise NotImplementedError").status == "not attempted"


def test_lost_decorator_is_told():
    source = HEADS["expert_offsets"].replace("@triton.jit\n", "")
    namespace = {"tl": tl}
    exec(source, namespace)
    exercise = by_entry("expert_offsets")
    assert "keep the line `@triton.jit`" in verdict_text(evaluate(exercise, namespace["expert_offsets"], 0))


def test_changed_arguments_are_told():
    @triton.jit
    def expert_offsets(totals_ptr, num_experts, EXPERTS: tl.constexpr):
        tl.store(totals_ptr, 0)

    found = evaluate(by_entry("expert_offsets"), expert_offsets, 0)
    assert "keep the arguments that the exercise gives" in verdict_text(found)


def test_endless_kernel_is_stopped_and_hurts_no_later_one(monkeypatch):
    monkeypatch.setattr("moe_course.exercises.observe.TIME_LIMIT", 0.3)
    for _ in range(3):  # an alarm may strike anywhere in the interpreter
        found = verdict("expert_offsets", "while num_experts > 0:\n    totals += 1")
        assert "stopped after the time limit" in verdict_text(found)
    monkeypatch.setattr("moe_course.exercises.observe.TIME_LIMIT", 30)
    assert evaluate(by_entry("expert_offsets"), kernels.expert_offsets, 0).passed


def test_reference_launches_like_a_kernel():
    exercise = by_entry("expert_offsets")
    given = check(kernel("expert_offsets", "raise NotImplementedError"))
    assert given is exercise.reference
    offsets = unwritten(4, dtype=torch.int32)
    given[(1,)](torch.tensor([2, 0, 3], dtype=torch.int32), offsets, 3, EXPERTS=4)
    assert offsets.tolist() == [0, 2, 2, 5]


def test_reference_stands_in_where_there_is_no_triton(monkeypatch):
    # The values on which the kernels are launched in the lesson come from the same functions as a check's.
    for exercise in [by_entry(name) for name in ("count_experts", "expert_offsets", "place_choices", "gather_rows")]:
        launched = exercise.alternatives[0].kernel
        monkeypatch.setitem(vars(exercise.reference.lazy_kernel), "kernel", UnavailableKernel(launched.fn))
        launch = exercise.drive.__closure__[0].cell_contents
        for inputs in exercise.inputs(0).values():
            assert torch.equal(launch(exercise.reference, **inputs), exercise.drive(launched, inputs))


@triton.jit
def all_to_one(out_ptr, value):
    tl.store(out_ptr, tl.program_id(0) + value)


@triton.jit
def everybody_reads(out_ptr, value):
    before = tl.load(out_ptr + 1 - tl.program_id(0))
    tl.store(out_ptr + tl.program_id(0), before + value)


@triton.jit
def two_lanes(out_ptr, value):
    tl.store(out_ptr + tl.arange(0, 2) * 0, tl.arange(0, 2) + value)


@triton.jit
def next_free(out_ptr, value):
    row = tl.atomic_add(out_ptr + 2, 1)
    tl.store(out_ptr + row, tl.program_id(0) + value)


@triton.jit
def first_come_first_served(out_ptr, value):
    lanes = tl.arange(0, 2)
    mine = (lanes >= 0) & (tl.program_id(0) == 0)
    row = tl.atomic_add(out_ptr + lanes * 0 + 2, 1, mask=mine)
    tl.store(out_ptr + row, lanes + value, mask=mine)


@triton.jit
def added(out_ptr, value):
    tl.atomic_add(out_ptr, tl.program_id(0) + value)


@pytest.mark.parametrize(
    ("wrong", "error", "said"),
    [
        (all_to_one, Race, "at out_ptr[0]: program instance 0 and program instance 1 write different values here"),
        (everybody_reads, Race, "at out_ptr[0]: program instance 1 reads what another instance writes"),
        (two_lanes, DoubleWrite, "to out_ptr[0]: one `tl.store` writes this element more than once"),
        (next_free, Race, ": out_ptr depends on the order"),
        (first_come_first_served, Race, ": out_ptr depends on the order"),
    ],
)
def test_race_is_told(wrong, error, said):
    with pytest.raises(error) as raised:
        Guarded(wrong)[(2,)](torch.zeros(3, dtype=torch.int32), 5)
    assert said in f"{raised.type.__name__}: {raised.value}"


def test_sums_of_integers_by_atomics_are_right():
    total = torch.zeros(1, dtype=torch.int32)
    Guarded(added)[(4,)](total, 5)
    assert total.tolist() == [26]


@triton.jit
def around(out_ptr, shift, write: tl.constexpr):
    at = tl.program_id(1) * 4 + tl.arange(0, 4) + shift
    if write:
        tl.store(out_ptr + at, at)
    else:
        tl.load(out_ptr + at)


@pytest.mark.parametrize(
    ("shift", "write", "error", "said"),
    [
        (5, True, WriteOutOfBounds, r"\(0, 0\) writes 1 element past the end of its 4 × 2"),
        (-1, True, WriteOutOfBounds, "1 element before the start of its 4 × 2"),
        (6, False, ReadOutOfBounds, r"\(0, 0\) reads 2 elements past the end"),
        (10**6, True, WildAddress, "belongs to none"),
    ],
)
def test_access_outside_is_refused(shift, write, error, said):
    out = torch.zeros(4, 2, dtype=torch.int32)
    with pytest.raises(error, match=said):
        Guarded(around)[(1, 2)](out, shift, write=write)
    assert not out.any()


def test_edit_that_changes_nothing_is_refused():
    with pytest.raises(ValueError, match=r"expert_offsets has no `tl\.roll`"):
        _ = KernelOf(kernels.__name__, "expert_offsets", ("tl.roll", "tl.sum")).kernel
