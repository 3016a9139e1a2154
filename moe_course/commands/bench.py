"""`moe-course bench WHAT`: measure, show, and say which bar does not hold."""

import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from moe_course.bench import BENCHMARKS
from moe_course.commands import FAILED, CommandError, unknown_name


def bench(
    what: Annotated[str, typer.Argument(metavar="WHAT", help=f"What to measure: {', '.join(BENCHMARKS)}.")],
    size: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SIZE",
            help="Measure only at this size (layer: S, M, L, F, P or E; kernel: olmoe, mixtral or decode; grade: 20 "
            "or 100; batch: 8 or 32); may be repeated.",
        ),
    ] = None,
    repeats: Annotated[
        int, typer.Option(min=1, help="Rounds, each with one sample of everything; the median counts.")
    ] = 7,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a plot as one HTML file.")] = None,
    json: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write the measurements as JSON; '-' for the terminal.")
    ] = None,
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            help="Exit with 1 if a bar does not hold, and say by how much. Timings within 10 % of each other are a "
            "tie, so a time fails only when its median ratio is more than 10 % above the bar; memory is counted, "
            "not timed, and fails as soon as it is above.",
        ),
    ] = False,
) -> None:
    """Measure how fast the course's code is, next to the best that others have.

    [bold]moe-course bench layer[/bold]: the MoE layer against the dense FFN of equal
    active FLOPs (= 1), the layers of transformers and the loops of tutorials.
    One thread, float32, interleaved rounds, the median of their ratios. It takes
    several minutes; with [bold]--size S --size P[/bold] one.

    [bold]moe-course bench kernel[/bold]: the Triton kernels, compiled for A100 and H100
    on any Linux machine: registers, spills, instructions, and how fast memory and
    tensor cores would let them be. With a GPU, timed on it as well.

    [bold]moe-course bench grade[/bold]: submissions a minute and core, against nbgrader on
    the same notebooks.

    [bold]moe-course bench batch[/bold]: notebooks run by moe-course batch, by a shell loop of
    the papermill command and by papermill in a pool of processes. A round takes about
    six minutes; with [bold]--size 8[/bold], two.
    """
    if what not in BENCHMARKS:
        raise unknown_name("benchmark", what, BENCHMARKS)
    module_name, function = BENCHMARKS[what].split(":")
    module = import_module(module_name)
    for name in size or []:
        if name not in module.SIZE_NAMES:
            raise unknown_name("size", name, module.SIZE_NAMES)

    for file in (plot, json):
        if file and file != "-" and not Path(file).absolute().parent.is_dir():
            raise CommandError(f"{file} cannot be written: its folder does not exist; create it first")

    if what == "kernel" and find_spec("triton") is None:
        from moe_course.kernels import why_unavailable

        raise CommandError(f"there is nothing to compile with: {why_unavailable()}")

    from rich.console import Console

    from moe_course.bench.report import as_json, print_report, write_plot

    with Console(stderr=True).status(f"Measuring {what}") as status:
        report = getattr(module, function)(size or [], repeats, status.update)
    if json and json != "-":
        Path(json).write_text(as_json(report) + "\n", encoding="utf-8")
    if plot:
        write_plot(report, plot)
    if json == "-":
        print(as_json(report))
    print_report(report, Console(stderr=json == "-", highlight=False))
    if check and report.failures:
        for verdict in report.failures:
            print(verdict, file=sys.stderr)
        raise typer.Exit(FAILED)
