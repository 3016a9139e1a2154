"""The command line: help, versions, errors without tracebacks, `doctor` and what `lab` hands to JupyterLab."""

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

import moe_course
from moe_course.cli import app
from moe_course.commands import doctor, lab, unknown_name

COMMANDS = ["lab", "check", "doctor", "grade", "gradescope", "batch", "build", "bench"]


@dataclass(frozen=True)
class Done:
    """What a finished command left, without colours: some CI services force them."""

    returncode: int
    stdout: str
    stderr: str


def run(*arguments: str, **environment: str) -> Done:
    """`moe-course` as a person runs it, in a process of its own."""
    command = [sys.executable, "-m", "moe_course", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, timeout=120)
    return Done(done.returncode, plain(done.stdout), plain(done.stderr))


def invoke(*arguments: str) -> Done:
    """The same in this process."""
    result = CliRunner().invoke(app, arguments)
    return Done(result.exit_code, plain(result.stdout), plain(result.stderr))


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[\d;]*m", "", text)


def test_help_names_every_command_and_the_exit_codes():
    shown = invoke("--help")
    assert shown.returncode == 0
    assert all(f"│ {name} " in shown.stdout for name in COMMANDS)
    assert "Exit codes: 0 all is well" in shown.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_help(name):
    shown = invoke(name, "--help")
    assert shown.returncode == 0
    assert f"moe-course {name}" in shown.stdout


def test_help_imports_nothing_heavy():
    code = (
        "import atexit, sys; sys.argv = ['moe-course', '--help']\n"
        "atexit.register(lambda: print(*sys.modules, file=sys.stderr))\n"
        "from moe_course.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    loaded = set(done.stderr.split())
    assert "moe_course.commands.bench" in loaded
    heavy = {"torch", "numpy", "plotly", "ipywidgets", "IPython", "nbformat", "jupyter_server", "transformers"}
    assert loaded & heavy == set()


def test_version():
    assert invoke("--version").stdout == f"moe-course {moe_course.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["lba"], "Did you mean 'lab'?"),
        (["lab", "nowhere"], "there is no folder nowhere"),
        (["check", "nowhere.ipynb"], "there is no notebook nowhere.ipynb"),
        (["bench", "leyer"], "did you mean 'layer'?"),
        (["build", "--root", "nowhere"], "there is no folder nowhere"),
    ],
)
def test_what_the_user_got_wrong_is_told_in_one_sentence_with_exit_code_2(arguments, says):
    done = run(*arguments)
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_a_file_that_cannot_be_written_is_told_without_a_traceback(tmp_path):
    (tmp_path / "start.ipynb").mkdir()
    done = run("lab", str(tmp_path))
    assert done.returncode == 2
    assert done.stderr.strip() == f"Error: {tmp_path / 'start.ipynb'}: Is a directory"


def test_lab_without_jupyterlab_says_what_to_do(tmp_path):
    (tmp_path / "jupyterlab").mkdir()
    (tmp_path / "jupyterlab" / "__init__.py").write_text("raise ImportError('no JupyterLab')")
    done = run("lab", str(tmp_path), PYTHONPATH=str(tmp_path))
    assert done.returncode == 2
    assert done.stderr == "Error: JupyterLab is not installed here (no JupyterLab); run `make setup`\n"


def test_the_nearest_name_is_offered_and_all_names_where_none_is_near():
    assert str(unknown_name("lesson", "ruoter", ["dense", "router"])).endswith("did you mean 'router'?")
    assert str(unknown_name("size", "s", ["S", "M"])).endswith("did you mean 'S'?")
    assert str(unknown_name("size", "huge", ["S", "M"])) == "no size is called 'huge'; choose one of S, M"


def test_labs_settings_are_ones_that_jupyterlab_knows():
    schemas = Path(sys.prefix) / "share/jupyter/lab/schemas"
    overrides = json.loads((lab.SETTINGS / "labconfig/default_setting_overrides.json").read_text())
    for plugin, settings in overrides.items():
        package, name = plugin.split(":")
        assert settings.keys() <= json.loads((schemas / package / f"{name}.json").read_text())["properties"].keys()


def test_lab_adds_its_settings_to_those_of_the_environment(monkeypatch):
    monkeypatch.setenv("JUPYTER_CONFIG_PATH", "theirs")
    lab.use_settings()
    assert os.environ["JUPYTER_CONFIG_PATH"] == f"{lab.SETTINGS}{os.pathsep}theirs"


def test_doctor_finds_this_machine_in_order():
    done = run("doctor", "--json")
    findings = {finding["name"]: finding for finding in json.loads(done.stdout)}
    assert done.returncode == 0, done.stdout
    assert {name for name, finding in findings.items() if finding["state"] == "broken"} == set()
    assert {"Python", "PyTorch", "GPU", "Triton", "JupyterLab", "Widgets", "bubblewrap", "Chromium"} <= findings.keys()
    assert findings["Chromium"]["state"] == findings["transformers"]["state"] == "ok"
    if sys.platform == "linux":
        assert "interprets" in findings["Triton"]["found"] or "compiles" in findings["Triton"]["found"]


def test_doctor_reports_broken_widgets_and_exits_with_1(monkeypatch):
    monkeypatch.setattr("jupyter_core.paths.jupyter_path", lambda *_: ["nowhere"])
    monkeypatch.setattr(doctor, "LOOKS", [doctor.python, doctor.widgets])
    shown = invoke("doctor")
    assert shown.returncode == 1
    assert "extension not found: ipywidgets, anywidget, plotly" in " ".join(shown.stdout.split())
    assert "pip install --force-reinstall ipywidgets anywidget plotly" in shown.stdout


def test_doctor_says_what_to_do_about_an_optional_gap_and_exits_with_0(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(doctor, "LOOKS", [doctor.bubblewrap])
    shown = invoke("doctor")
    assert shown.returncode == 0
    assert "apt install bubblewrap" in shown.stdout


def test_doctor_recognises_a_kernel_of_another_python(monkeypatch, tmp_path):
    kernel = tmp_path / "kernels" / "python3"
    kernel.mkdir(parents=True)
    spec = {"argv": ["/elsewhere/bin/python", "-m", "ipykernel_launcher"], "display_name": "Python 3"}
    (kernel / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    found = doctor.jupyterlab()
    assert found.state == "broken"
    assert "/elsewhere/bin/python" in found.found
