"""Verdicts, and what the command prints, writes and returns."""

import json
import sys
from types import SimpleNamespace

import plotly.graph_objects as go
import pytest
import typer
from typer.testing import CliRunner

from moe_course.bench import BENCHMARKS
from moe_course.bench.report import Bar, Report, Table, Verdict
from moe_course.commands import CommandError
from moe_course.commands.bench import bench

SPEED, MEMORY = Bar("speed", 2.0), Bar("memory", 2.0, noise=0)


@pytest.mark.parametrize(
    ("bar", "measured", "state", "words"),
    [
        (SPEED, 1.0, "holds", "speed: 1.00 against 2.00, 50.0 % below: holds"),
        (SPEED, 2.0, "holds", "0.0 % below: holds"),
        (SPEED, 2.19, "tie", "9.5 % over: a tie, within noise"),
        (SPEED, 2.21, "fails", "10.5 % over: fails"),
        (MEMORY, 2.01, "fails", "0.5 % over: fails"),
    ],
)
def test_verdict(bar, measured, state, words):
    verdict = Verdict(bar, measured)
    assert verdict.state == state
    assert words in str(verdict)


@pytest.fixture
def run_bench(monkeypatch):
    """Run `bench` with a benchmark that takes no time and measures what the test wants."""
    asked = SimpleNamespace()

    def invoke(*arguments, measured=1.0):
        def run(sizes, repeats, progress):
            asked.sizes, asked.repeats = sizes, repeats
            progress("working")
            return Report(
                what="toy",
                tables=[Table("Ratios", ["", "S"], [["ours", f"{measured:.2f}"]])],
                notes=["A remark."],
                measurements=[{"size": "S", "ratio": measured}],
                verdicts=[Verdict(SPEED, measured), Verdict(MEMORY, 1.0)],
                figure=lambda: go.Figure(go.Bar(x=["S"], y=[measured]), layout={"title": {"text": "Ratios"}}),
            )

        monkeypatch.setitem(sys.modules, "toy_benchmark", SimpleNamespace(run=run, SIZE_NAMES=("S", "M")))
        monkeypatch.setitem(BENCHMARKS, "toy", "toy_benchmark:run")
        app = typer.Typer()
        app.command()(bench)
        return CliRunner().invoke(app, ["toy", *map(str, arguments)])

    invoke.asked = asked
    return invoke


def test_check_fails_and_says_by_how_much(run_bench):
    result = run_bench("--check", measured=3.0)
    assert result.exit_code == 1
    assert "speed: 3.00 against 2.00, 50.0 % over: fails" in result.stderr
    assert "memory" not in result.stderr
    assert "1 of 2 bars hold" in result.stdout


@pytest.mark.parametrize("measured", [1.0, 2.1])
def test_check_passes_when_bars_hold_or_tie(run_bench, measured):
    result = run_bench("--check", measured=measured)
    assert result.exit_code == 0
    assert ("a tie, within noise" in result.stdout) == (measured == 2.1)


def test_without_check_a_missed_bar_is_shown_only(run_bench):
    result = run_bench(measured=3.0)
    assert result.exit_code == 0
    assert "50.0 % over: fails" in result.stdout
    assert "A remark." in result.stdout


def test_json_on_standard_output_is_nothing_but_json(run_bench):
    result = run_bench("--json", "-", measured=2.1)
    content = json.loads(result.stdout)
    assert content["benchmark"] == "toy"
    assert content["measurements"] == [{"size": "S", "ratio": 2.1}]
    assert content["failed"] is False
    speed, memory = content["bars"]
    assert speed["name"] == "speed" and speed["state"] == "tie"
    assert speed["over"] == pytest.approx(0.05)
    assert memory["state"] == "holds" and memory["noise"] == 0
    assert {"torch", "python", "transformers", "capability"} <= content["machine"].keys()
    assert "Ratios" in result.stderr


def test_json_and_plot_files(run_bench, tmp_path):
    result = run_bench("--json", tmp_path / "out.json", "--plot", tmp_path / "out.html", measured=3.0)
    assert json.loads((tmp_path / "out.json").read_text())["failed"] is True
    page = (tmp_path / "out.html").read_text()
    assert "Ratios" in page
    assert 'src="http' not in page  # needs no network
    assert "Ratios" in result.stdout


def test_sizes_and_repeats_are_passed_on(run_bench):
    run_bench("--size", "S", "--size", "M", "--repeats", 3)
    assert run_bench.asked.sizes == ["S", "M"]
    assert run_bench.asked.repeats == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size", "Q"], "no size is called 'Q'; choose one of S, M"),
        (["--plot", "nowhere/at/all.html"], "its folder does not exist"),
    ],
)
def test_mistakes_are_told_before_anything_is_measured(run_bench, arguments, message):
    result = run_bench(*arguments)
    assert isinstance(result.exception, CommandError)
    assert message in str(result.exception)
    assert not hasattr(run_bench.asked, "sizes")


def test_unknown_benchmark():
    app = typer.Typer()
    app.command()(bench)
    result = CliRunner().invoke(app, ["laier"])
    assert "did you mean 'layer'?" in str(result.exception)


def test_help_explains_noise():
    app = typer.Typer()
    app.command()(bench)
    text = " ".join(CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200"}).stdout.replace("│", " ").split())
    assert "a time fails only when its median ratio is more than 10 % above the bar" in text
