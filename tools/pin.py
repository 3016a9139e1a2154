"""Write constraints.txt: the version of every package that MoE Course and its tests install.

    .venv/bin/python tools/pin.py > constraints.txt

Run it after an upgrade of .venv. It walks the requirements of moe-course with all its extras, so what else
happens to be installed is not pinned. Local versions (`+cpu`) are left out: the same file must serve every build.
"""

import re
from importlib.metadata import PackageNotFoundError, distribution

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

# torch names one exact triton, but only in its CUDA build, so a CPU-only .venv may hold any other.
# `uv pip compile` on torch's pin tells which one it wants.
FIXED = {"triton": ("3.7.1", "torch 2.13.0 for Linux requires exactly this one")}

# Releases that the oldest Pythons of our range cannot have; there the installer picks an older one.
MARKERS = {name: 'python_full_version >= "3.11.5"' for name in ("beautifulsoup4", "soupsieve")}

HEADER = """\
# What CI runs, for `pip install -c constraints.txt`: a version that works of every package, direct or not.
# Ranges stand in pyproject.toml. Written by tools/pin.py.
"""


def main() -> None:
    """Print the constraints file."""
    print(HEADER)
    for name, version in sorted(installed_versions("moe-course").items()):
        pinned, reason = FIXED.get(name, (version, ""))
        marker = f"; {MARKERS[name]}" if name in MARKERS else ""
        print(f"{name}=={pinned}{marker}" + (f"  # {reason}" if reason else ""))


def installed_versions(root: str) -> dict[str, str]:
    """The version of each distribution that `root` with all its extras needs here, by canonical name."""
    found: dict[str, str] = {}
    extras = tuple(distribution(root).metadata.get_all("Provides-Extra") or ())
    todo = [(root, extras)]
    seen = set()
    while todo:
        name, wanted = todo.pop()
        if (name, wanted) in seen:
            continue
        seen.add((name, wanted))
        try:
            package = distribution(name)
        except PackageNotFoundError:  # an optional dependency of another platform
            continue
        if name != root:
            found[canonicalize_name(name)] = re.sub(r"\+.*", "", package.version)
        for line in package.requires or ():
            need = Requirement(line)
            if need.marker is None or any(need.marker.evaluate({"extra": each}) for each in ("", *wanted)):
                todo.append((canonicalize_name(need.name), tuple(sorted(need.extras))))
    return found


if __name__ == "__main__":
    main()
