"""Who decides whether kernels are compiled or interpreted, and what is said where neither works."""

import os
import subprocess
import sys

import pytest
import torch

from moe_course.kernels import availability


def run(code, **environment):
    """What a new Python prints, without the TRITON_INTERPRET of this one."""
    inherited = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", code], env=inherited | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


KERNEL = """
import torch
from moe_course.kernels import permute
device = "cuda" if torch.cuda.is_available() else "cpu"
print(permute(torch.tensor([[1], [0], [1]], device=device), 2).choice_of_row.tolist())
"""


def test_kernels_run_without_being_asked_to_be_interpreted():
    """And Triton is imported for kernels alone."""
    imports = "import sys, moe_course.layers, moe_course.kernels\nassert 'triton' not in sys.modules"
    assert run(imports + KERNEL) == "[1, 0, 2]"


def test_they_run_after_torch_has_imported_triton():
    """`torch.optim` does, in nearly every notebook, before anybody knows that kernels are to be interpreted."""
    imports = """
import sys, torch
torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))])
assert "triton" in sys.modules
"""
    assert run(imports + KERNEL) == "[1, 0, 2]"


def test_what_the_user_sets_is_kept():
    code = """
import os
from moe_course import kernels
print(os.environ["TRITON_INTERPRET"], kernels.is_interpreting(), kernels.why_unavailable())
"""
    assert run(code, TRITON_INTERPRET="1") == "1 True None"
    said = run(code, TRITON_INTERPRET="0")
    if torch.cuda.is_available():
        assert said == "0 False None"
    else:
        assert said.startswith("0 False There is no GPU") and "unset it" in said


@pytest.mark.parametrize(
    ("platform", "says"), [("darwin", "Triton is not made for"), ("win32", "Linux"), ("linux", "pip install triton")]
)
def test_without_triton_one_sentence_says_what_to_do(monkeypatch, platform, says):
    monkeypatch.setattr(availability, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "platform", platform)
    assert not availability.is_available()
    assert says in availability.why_unavailable()
    with pytest.raises(RuntimeError, match=says):
        availability.require_triton()


def test_without_triton_the_package_opens_and_says_so():
    code = """
import importlib.util, sys
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "triton" else find(name, *rest)
sys.modules["triton"] = None
from moe_course import kernels
from moe_course.layers import MoELayer
print(kernels.is_available())
try:
    MoELayer(8, 8, 2, 1, dispatch="triton")
except RuntimeError as error:
    print(error)
"""
    assert run(code).splitlines() == ["False", "Triton is not installed: run `pip install triton`"]
