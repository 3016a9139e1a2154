"""`moe-course doctor`: what this machine can do for the course, and what to do about each gap."""

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from moe_course.commands import FAILED


@dataclass(frozen=True)
class Finding:
    """One thing looked at: `ok`, an optional thing `missing`, or a required one `broken`."""

    name: str
    state: Literal["ok", "missing", "broken"]
    found: str
    remedy: str = ""


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Say what is installed, what this machine can do, and what to do about each gap."""
    from rich.console import Console

    with Console(stderr=True).status("Looking at this machine") as status:
        findings = []
        for look in LOOKS:
            status.update(f"Looking at {look.__name__.replace('_', ' ')}")
            findings.append(look())
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        print_findings(findings)
    if any(finding.state == "broken" for finding in findings):
        raise typer.Exit(FAILED)


def print_findings(findings: list[Finding]) -> None:
    """Print the findings as a table, the remedies below it."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    marks = {"ok": "[green]ok[/]", "missing": "[yellow]missing[/]", "broken": "[bold red]broken[/]"}
    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("", "State", "Found"):
        table.add_column(heading, overflow="fold")
    for finding in findings:
        table.add_row(f"[bold]{finding.name}[/]", marks[finding.state], finding.found)
    console.print(table)
    gaps = [finding for finding in findings if finding.remedy]
    if gaps:
        console.print("\n[bold]What to do[/]")
    for gap in gaps:
        console.print(f"  {gap.name}: {gap.remedy}", soft_wrap=True)
    broken = sum(finding.state == "broken" for finding in findings)
    verdict = f"[bold red]{broken} required part(s) broken.[/]" if broken else "[green]Ready for the course.[/]"
    console.print(f"\n{verdict}")


def python() -> Finding:
    """Python itself; one that is too old would not have come this far."""
    return Finding("Python", "ok", f"{platform.python_version()} at {sys.executable}")


def torch() -> Finding:
    """PyTorch: that it imports and computes."""
    try:
        import torch
    except (ImportError, OSError) as error:
        return Finding("PyTorch", "broken", str(error), "run `make setup`")
    return Finding("PyTorch", "ok", torch.__version__)


def processor() -> Finding:
    """Cores, and the threads that PyTorch uses."""
    found = f"{os.cpu_count()} cores, {platform.machine()}"
    try:
        import torch
    except (ImportError, OSError):
        return Finding("CPU", "ok", found)
    return Finding("CPU", "ok", f"{found}; PyTorch uses {torch.get_num_threads()} threads")


def graphics() -> Finding:
    """A GPU that PyTorch can use; the lessons run without one."""
    try:
        import torch
    except (ImportError, OSError) as error:
        return Finding("GPU", "missing", str(error))
    if torch.cuda.is_available():
        memory = torch.cuda.get_device_properties(0).total_memory / 2**30
        return Finding("GPU", "ok", f"{torch.cuda.get_device_name(0)}, {memory:.0f} GiB")
    if shutil.which("nvidia-smi") and not torch.version.cuda:
        remedy = "this PyTorch is built for the CPU alone; install its CUDA build to use the NVIDIA card"
        return Finding("GPU", "missing", "NVIDIA driver found, PyTorch cannot use it", remedy)
    return Finding("GPU", "missing", "none that PyTorch can use; every lesson runs on the CPU")


def triton() -> Finding:
    """Triton: that a kernel gives the right numbers, compiled on a GPU or interpreted without one."""
    from importlib.metadata import version

    if sys.platform != "linux":
        return Finding("Triton", "missing", f"not made for {platform.system()}; the lessons so far need none")
    probe = Path(__file__).with_name("triton_probe.py")
    try:
        done = subprocess.run([sys.executable, str(probe)], capture_output=True, text=True, timeout=120)
    except subprocess.TimeoutExpired:
        return Finding("Triton", "missing", "a one-line kernel took more than two minutes")
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        return Finding("Triton", "missing", reason, "run `make setup`; a compiler (gcc) must be there too")
    return Finding("Triton", "ok", f"{version('triton')}: {done.stdout.strip()}")


def jupyterlab() -> Finding:
    """JupyterLab, and the kernel that its notebooks start."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel

        found = f"{version('jupyterlab')}, ipykernel {version('ipykernel')}"
        kernel = KernelSpecManager().get_kernel_spec("python3").argv[0]
    except (ImportError, PackageNotFoundError, NoSuchKernel) as error:
        return Finding("JupyterLab", "broken", str(error), "run `make setup`")
    if kernel not in ("python", "python3") and Path(kernel).absolute() != Path(sys.executable).absolute():
        remedy = "remove that kernel with `jupyter kernelspec remove python3`, or its notebooks lack the course"
        return Finding("JupyterLab", "broken", f"{found}; the kernel `python3` is {kernel}", remedy)
    return Finding("JupyterLab", "ok", found)


def widgets() -> Finding:
    """The parts of JupyterLab that show sliders and figures."""
    from importlib.metadata import version

    from jupyter_core.paths import jupyter_path

    extensions = {
        "ipywidgets": "@jupyter-widgets/jupyterlab-manager",
        "anywidget": "anywidget",
        "plotly": "jupyterlab-plotly",
    }
    folders = [Path(folder) for folder in jupyter_path("labextensions")]
    lacking = [
        package
        for package, extension in extensions.items()
        if not any((folder / extension / "package.json").is_file() for folder in folders)
    ]
    if lacking:
        found = f"JupyterLab extension not found: {', '.join(lacking)}"
        return Finding(
            "Widgets", "broken", found, f"reinstall with `pip install --force-reinstall {' '.join(lacking)}`"
        )
    return Finding("Widgets", "ok", ", ".join(f"{package} {version(package)}" for package in extensions))


def transformers() -> Finding:
    """Hugging Face transformers, for the comparisons with published MoE blocks."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return Finding("transformers", "ok", version("transformers"))
    except PackageNotFoundError:
        remedy = "for comparisons with its MoE blocks: `make setup-dev`, or `pip install 'moe-course[hf]'`"
        return Finding("transformers", "missing", "not installed; the lessons do not need it", remedy)


def bubblewrap() -> Finding:
    """bubblewrap: that it is there and may make a sandbox."""
    program = shutil.which("bwrap")
    if program is None:
        remedy = "for grading, `make setup-grade` or `apt install bubblewrap` (Linux); without it Landlock isolates"
        return Finding("bubblewrap", "missing", "not installed; the lessons do not need it", remedy)
    trial = [program, "--ro-bind", "/", "/", "--unshare-all", "true"]
    done = subprocess.run(trial, capture_output=True, text=True, timeout=30)
    if done.returncode:
        return Finding("bubblewrap", "missing", f"installed, but may not make a sandbox: {done.stderr.strip()}")
    return Finding("bubblewrap", "ok", program)


def chromium() -> Finding:
    """A browser for the tests and for pictures of figures."""
    from moe_course.notebooks.chromium import find_chromium

    program = find_chromium()
    if program is None:
        remedy = "to build and test the course: `apt install chromium` or `playwright install chromium`"
        return Finding("Chromium", "missing", "not found; the lessons do not need it", remedy)
    return Finding("Chromium", "ok", program)


LOOKS: list[Callable[[], Finding]] = [
    python,
    torch,
    processor,
    graphics,
    triton,
    jupyterlab,
    widgets,
    transformers,
    bubblewrap,
    chromium,
]
