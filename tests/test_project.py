"""The files that say what to install agree with each other, and the README with the lessons."""

import re
import subprocess
import tomllib
from pathlib import Path

import jupytext
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import moe_course

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CONDA_NAMES = {"torch": "pytorch"}
NOT_FROM_CONDA = {"triton"}  # for Linux alone, which environment.yml cannot say


def requirements(lines: list[str]) -> dict[str, Requirement]:
    return {canonicalize_name(each.name): each for each in map(Requirement, lines)}


def pins() -> dict[str, Requirement]:
    lines = [line.split("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines()]
    return requirements([line for line in lines if line])


def direct() -> dict[str, Requirement]:
    extras = PROJECT["optional-dependencies"]
    return requirements(PROJECT["dependencies"] + [line for lines in extras.values() for line in lines])


def test_environment_yml_names_the_same_packages_with_the_same_ranges():
    listed = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    conda = {name: each.specifier for name, each in requirements([e for e in listed if isinstance(e, str)]).items()}
    needed = {
        CONDA_NAMES.get(name, name): each.specifier
        for name, each in requirements(PROJECT["dependencies"]).items()
        if name not in NOT_FROM_CONDA
    }
    needed |= {"python": SpecifierSet(PROJECT["requires-python"]), "pip": SpecifierSet("")}
    assert conda == needed
    assert listed[-1] == {"pip": ["-e ."]}


@pytest.mark.parametrize("name", sorted(direct()))
def test_every_direct_dependency_is_pinned_inside_its_range(name):
    version = pins()[name].specifier
    assert re.fullmatch(r"==[\w.]+", str(version))
    assert str(version).removeprefix("==") in direct()[name].specifier


def test_the_pins_name_no_build_and_no_place():
    text = (ROOT / "constraints.txt").read_text()
    assert "torch==2.13.0\n" in text
    assert not re.search(r"\+|://|file:|--", text)


def test_the_package_says_the_version_of_pyproject():
    assert moe_course.__version__ == PROJECT["version"]


def test_the_licence_is_apache_2():
    text = (ROOT / "LICENSE").read_text()
    assert "Version 2.0, January 2004" in text and "END OF TERMS AND CONDITIONS" in text
    assert PROJECT["license"] == "Apache-2.0"


def test_the_readme_lists_the_lessons_as_their_sources_describe_them():
    expected = []
    for path in sorted((ROOT / "solutions").glob("[0-9][0-9]_*.py")):
        about = jupytext.read(path).metadata["moe_course"]
        link = f"[{about['title']}](lessons/{path.stem}.ipynb)"
        expected.append(f"| {path.stem[:2]} | {link} | {about['minutes']} | yes | {about['promise']} |")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [line for line in readme.splitlines() if re.match(r"\| \d\d \|", line)] == expected


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_every_file_and_make_target_that_a_page_names_exists(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert (ROOT / link).exists(), link
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"\bmake ([a-z-]+)", text)) <= targets


def test_no_tracked_file_names_a_path_of_somebodys_machine():
    listed = subprocess.run(
        ["git", "grep", "-IlE", r"/(home|Users|root|work)/[a-z]"], cwd=ROOT, capture_output=True, text=True
    )
    assert set(listed.stdout.split()) <= {"tests/test_project.py"}  # the pattern itself
