"""The set-up script: which Python it takes, when it has nothing to do, and the one sentence when something fails."""

import ast
import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "tools" / "setup_venv.py"


@pytest.fixture
def script(tmp_path, monkeypatch):
    """The script as a module, on a folder of its own."""
    spec = importlib.util.spec_from_file_location("setup_venv", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in ("pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    python = tmp_path / ".venv" / "python"
    python.parent.mkdir()
    python.touch()
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "STAMP", tmp_path / ".venv" / "stamp.json")
    monkeypatch.setattr(module, "PYTHON", python)
    return module


def test_an_old_python_can_read_the_script():
    ast.parse(SCRIPT.read_text(encoding="utf-8"), feature_version=(3, 6))


def test_an_old_python_is_told_which_newer_one_to_use(script, monkeypatch):
    monkeypatch.setattr(script.sys, "version_info", (3, 9, 1))
    monkeypatch.setattr(script, "runs", lambda name: name == "python3.12")
    with pytest.raises(script.SetupError, match=r"Python 3.9 is too old.*run `make setup PYTHON=python3.12`, which"):
        script.check_python()
    monkeypatch.setattr(script, "runs", lambda name: False)
    with pytest.raises(script.SetupError, match=r"install Python 3"):
        script.check_python()


def test_nothing_is_installed_twice_until_a_file_that_counts_changes(script):
    assert not script.is_up_to_date("learn")
    script.STAMP.write_text(json.dumps({"inputs": script.fingerprint(), "purposes": ["learn"]}))
    assert script.is_up_to_date("learn")
    assert not script.is_up_to_date("dev")
    with (script.ROOT / "constraints.txt").open("a") as pins:
        pins.write("more==1\n")
    assert not script.is_up_to_date("learn")


@pytest.mark.parametrize(
    ("log", "sentence"),
    [
        ("OSError: [Errno 28] No space left on device", "the disk is full"),
        ("WARNING: Retrying: NewConnectionError\nERROR: No matching distribution found for rich", "check the network"),
        (
            "ERROR: Could not find a version that satisfies the requirement rich==9 (from versions: none)",
            "rich==9 could",
        ),
        ("ERROR: No matching distribution found for torch==2.13.0\n", "no release of torch==2.13.0 fits Python 3"),
        ("ERROR: because these package versions have conflicting dependencies.", "contradict each other"),
        ("ERROR: Something new.\n", "Something new (log:"),
        ("", "gave no reason"),
    ],
)
def test_a_failed_installation_is_explained_in_one_sentence(script, log, sentence):
    said = script.explain(log)
    assert sentence in said
    assert said.endswith(".") and "\n" not in said


@pytest.mark.parametrize(
    ("line", "doing"),
    [
        ("Collecting numpy>=2.0 (from moe-course)", "looking at numpy"),
        ("  Downloading torch-2.13.0-cp311-linux.whl (180.1 MB)", "downloading torch (180.1 MB)"),
        ("Installing collected packages: a, b, c", "unpacking 3 packages"),
        ("Downloading jupyterlab (12.0MiB)", "downloading jupyterlab (12.0MiB)"),
    ],
)
def test_progress_says_what_the_installer_is_at(script, line, doing):
    progress = script.Progress()
    progress.see(line)
    assert progress.doing == doing


@pytest.mark.parametrize(
    ("has", "root", "works", "runs", "says"),
    [
        ("bwrap apt-get", True, "", [], ""),
        ("apt-get", True, "install", ["install"], "Installing bubblewrap"),
        ("apt-get", True, "update", ["install", "update", "install"], "Note: that did not work; grading"),
        ("apt-get", False, "", ["true"], "`sudo apt install bubblewrap`"),
        ("apt-get", False, "true install", ["true", "install"], "Installing bubblewrap"),
        ("", True, "", [], "with your system's packages"),
    ],
)
def test_bubblewrap_is_installed_where_that_asks_for_no_password(
    script, monkeypatch, capsys, has, root, works, runs, says
):
    ran = []

    def run(command, **_):
        (what,) = [word for word in command if word in ("install", "update", "true")]
        ran.append(what)
        assert ("sudo" in command) is not root and (root or command[1] == "-n")
        return type("Done", (), {"returncode": 0 if what in works.split() else 1})

    monkeypatch.setattr(script.shutil, "which", lambda name: name if name in has.split() else None)
    monkeypatch.setattr(script.os, "geteuid", lambda: 0 if root else 1000)
    monkeypatch.setattr(script.subprocess, "run", run)
    monkeypatch.setattr(script.sys, "platform", "linux")
    script.install_bubblewrap()
    said = capsys.readouterr().out
    assert ran == runs and says in said and bool(said) is bool(says)


@pytest.mark.parametrize(("options", "installs"), [([], 0), (["--grade"], 1), (["--dev"], 1)])
def test_learners_are_not_bothered_with_what_grading_needs(script, monkeypatch, options, installs):
    called = []
    script.STAMP.write_text(json.dumps({"inputs": script.fingerprint(), "purposes": ["learn", "dev"]}))
    monkeypatch.setattr(script.sys, "argv", ["setup_venv.py", *options])
    monkeypatch.setattr(script, "install_bubblewrap", lambda: called.append(1))
    assert script.main() == 0 and len(called) == installs
