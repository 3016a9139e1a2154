"""Create .venv and install MoE Course in it: what `make setup` runs, and what Windows users run by hand.

    python3 tools/setup_venv.py            # what a learner needs
    python3 tools/setup_venv.py --grade    # also what grading needs: bubblewrap, on Debian and its like
    python3 tools/setup_venv.py --dev      # also what `make test` needs, bubblewrap among it

It needs nothing but Python and says in one sentence what to do when something is missing. The versions are those
of constraints.txt. uv does the work where it is installed, pip elsewhere. When pyproject.toml and constraints.txt
are the same as at the last run, nothing happens.

The syntax stays that of Python 3.6: an older Python must get as far as the sentence that says it is too old.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

OLDEST = (3, 11)
ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
STAMP = VENV / "moe-course-setup.json"
LOG = VENV / "setup.log"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
EXTRAS = {"learn": "", "grade": "", "dev": "[dev,hf]"}


class SetupError(Exception):
    """What went wrong and what to try, in one sentence."""


def main():
    """Set up for the purpose named on the command line; the exit status says whether it worked."""
    if sys.argv[1:] not in ([], ["--grade"], ["--dev"]):
        print(__doc__)
        return 2
    purpose = sys.argv[1][2:] if sys.argv[1:] else "learn"
    try:
        if not is_up_to_date(purpose):
            check_python()
            set_up(purpose)
        if purpose != "learn":
            install_bubblewrap()
    except SetupError as error:
        print("Set-up failed: {}".format(error), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nSet-up interrupted; run it again to go on.", file=sys.stderr)
        return 130
    return 0


def check_python():
    """Refuse a Python that is too old, naming a newer one if the machine has it."""
    if sys.version_info[:2] >= OLDEST:
        return
    newer = [name for name in ("python3.%d" % minor for minor in range(11, 16)) if runs(name)]
    remedy = (
        "run `make setup PYTHON={}`, which you have".format(newer[-1])
        if newer
        else "install Python 3.12, then run `make setup PYTHON=python3.12`"
    )
    raise SetupError(
        "Python {}.{} is too old, MoE Course needs {}.{} or newer; {}.".format(*sys.version_info[:2], *OLDEST, remedy)
    )


def runs(program):
    """Whether `program` is there and starts (version managers leave launchers of versions that are not)."""
    try:
        return shutil.which(program) and subprocess.run([program, "--version"], **QUIET).returncode == 0
    except OSError:
        return False


QUIET = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}


def is_up_to_date(purpose):
    """Whether .venv holds what `purpose` needs, by the note that the last set-up left in it."""
    try:
        note = json.loads(STAMP.read_text())
    except (OSError, ValueError):
        return False
    packages = "dev" if purpose == "dev" else "learn"
    return note == dict(note, inputs=fingerprint()) and packages in note["purposes"] and PYTHON.exists()


def fingerprint():
    """A hash of the files that say what to install, and of where the editable install points."""
    parts = [(ROOT / name).read_bytes() for name in ("pyproject.toml", "constraints.txt")]
    return hashlib.sha256(b"\0".join([*parts, str(ROOT).encode()])).hexdigest()


def set_up(purpose):
    """Create .venv if need be, install, and note what was installed."""
    start = time.monotonic()
    uv = shutil.which("uv")
    what = "what learners and the tests need" if purpose == "dev" else "what learners need"
    print("Setting up .venv with {} ({}, Python {}.{}).".format(what, "uv" if uv else "pip", *sys.version_info[:2]))
    if not venv_works(uv):
        print("  1/2 creating .venv")
        create_venv(uv)
    print("  2/2 installing packages (first time: minutes, 1 GB or more; log: .venv/{})".format(LOG.name))
    install(purpose, uv)
    purposes = ["learn", "dev"] if purpose == "dev" else ["learn"]
    STAMP.write_text(json.dumps({"inputs": fingerprint(), "purposes": purposes}))
    print("Ready after {:.0f} s.".format(time.monotonic() - start))


def venv_works(uv):
    """Whether .venv holds a new enough Python that starts, and pip where it is needed."""
    check = "{} sys; sys.exit(sys.version_info[:2] < {})".format("import" if uv else "import pip,", OLDEST)
    return PYTHON.exists() and subprocess.run([str(PYTHON), "-c", check], **QUIET).returncode == 0


def create_venv(uv):
    """Create .venv anew."""
    if uv:
        command = [uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(VENV)]
    else:
        try:
            import ensurepip  # noqa: F401
            import venv  # noqa: F401
        except ImportError:
            raise SetupError(
                "this Python has no venv module; on Debian and Ubuntu run `sudo apt install python3-venv`."
            ) from None
        command = [sys.executable, "-m", "venv", "--clear", str(VENV)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        last = done.stdout.decode(errors="replace").strip().splitlines()[-1:]
        raise SetupError("`{}` did not work: {}".format(" ".join(command), "".join(last) or "no reason given"))


def install(purpose, uv):
    """Install the package, editable, with the pinned versions of what it needs."""
    what = ["-c", "constraints.txt", "-e", "." + EXTRAS[purpose]]
    if uv:  # uv shows its own progress; unlike pip it does not read PIP_FIND_LINKS
        links = [part for link in os.environ.get("PIP_FIND_LINKS", "").split() for part in ("--find-links", link)]
        command = [uv, "pip", "install", "--python", str(PYTHON), *links, *what]
    else:
        # Most of pip's time went into compiling 19 000 files, of which few are ever imported; uv leaves that out, too.
        flags = ["--disable-pip-version-check", "--progress-bar=off", "--no-compile"]
        command = [str(PYTHON), "-m", "pip", "install", *flags, *what]
    with LOG.open("w", encoding="utf-8") as log, Progress() as progress:
        process = subprocess.Popen(
            command, cwd=str(ROOT), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
        )
        try:
            for raw in process.stdout:
                line = raw.decode(errors="replace")
                log.write(line)
                progress.see(line)
            failed = process.wait() != 0
        finally:
            process.kill()
    if failed:
        raise SetupError(explain(LOG.read_text(encoding="utf-8")))


def install_bubblewrap():
    """Install the sandbox for other people's code, where that needs no password; elsewhere say how, and go on."""
    if not sys.platform.startswith("linux") or shutil.which("bwrap"):
        return
    remedy = "grading shuts student code in best with bubblewrap; install it with `sudo apt install bubblewrap`"
    if not shutil.which("apt-get"):
        print("Note: grading shuts student code in best with bubblewrap; install it with your system's packages.")
        return
    sudo = [] if os.geteuid() == 0 else ["sudo", "-n"]
    if sudo and not may([*sudo, "true"]):
        print("Note: {}.".format(remedy))
        return
    print("Installing bubblewrap, which shuts student code in (apt-get).")
    apt = [*sudo, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-qq"]
    install = [*apt, "install", "--yes", "--no-install-recommends", "bubblewrap"]
    # The package lists of a fresh machine or container are often missing.
    if not (may(install) or (may([*apt, "update"]) and may(install))):
        print("Note: that did not work; {}.".format(remedy))


def may(command):
    """Whether a command works, without asking anything."""
    try:
        return subprocess.run(command, stdin=subprocess.DEVNULL, timeout=300, **QUIET).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


class Progress:
    """One line that says what the installer is at and for how long: rewritten on a screen, repeated in a log."""

    def __init__(self):
        self.doing, self.packages, self.start = "starting", set(), time.monotonic()
        self.on_screen, self.stop = sys.stdout.isatty(), threading.Event()
        self.ticker = threading.Thread(target=self.tick, daemon=True)

    def __enter__(self):
        self.ticker.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        self.ticker.join()
        if self.on_screen:
            print("\r\x1b[K", end="")

    def see(self, line):
        """Take in one line of the installer's output."""
        collecting = re.match(r"\s*(?:Collecting|Requirement already satisfied:) ([\w.-]+)", line)
        downloading = re.match(r"\s*Downloading (?:\S*/)?([^\s/]+?)(?:-\d\S*)? (\(.*\))", line)
        if collecting:
            self.packages.add(collecting.group(1))
            self.doing = "looking at " + collecting.group(1)
        elif downloading:
            self.doing = "downloading {} {}".format(*downloading.groups())
        elif line.startswith("Installing collected packages"):
            self.doing = "unpacking {} packages".format(line.count(",") + 1)
        elif line.startswith(("Resolved", "Prepared", "Installed", "Building", "   Building")):
            self.doing = line.strip()

    def tick(self):
        """Print the line every second on a screen, every 20 seconds elsewhere."""
        while not self.stop.wait(1 if self.on_screen else 20):
            seconds = time.monotonic() - self.start
            line = "      {:3.0f} s: {}".format(seconds, self.doing)
            print(
                ("\r\x1b[K" + line[: shutil.get_terminal_size().columns - 1]) if self.on_screen else line,
                end="" if self.on_screen else "\n",
                flush=True,
            )


# What the installers' logs say, and what to do about it; the first that matches is the cause.
CAUSES = [
    (r"No space left on device|Errno 28", "the disk is full; free at least 3 GB and run it again"),
    (
        r"NewConnectionError|NameResolutionError|ProxyError|ConnectTimeout|ReadTimeout|dns error"
        r"|[Ff]ailed to (?:fetch|connect)|Connection refused",
        "a package could not be fetched; check the network (and the proxy settings), then run it again",
    ),
    (r"CERTIFICATE_VERIFY_FAILED", "the package index's certificate was refused; check the clock and SSL_CERT_FILE"),
    (
        r"conflicting dependencies|requirements are unsatisfiable",
        "the versions in pyproject.toml and constraints.txt contradict each other; "
        "`git checkout pyproject.toml constraints.txt` restores them",
    ),
    (
        r"satisfies the requirement (\S+).*\(from versions: none\)",
        "{} could not be had; check the network and the package index, then try another Python, for example "
        "`make setup PYTHON=python3.12`",
    ),
    (
        r"No matching distribution found for (\S+)",
        "no release of {} fits Python {version} on {platform}; try another Python, for example "
        "`make setup PYTHON=python3.12`",
    ),
    (r"Failed building wheel for (\S+)", "{} could not be compiled; install a C compiler or try Python 3.12"),
    (r"(?m)^(?:ERROR|error): (.*)", "{}"),
]


def explain(log):
    """The cause of a failed installation as one sentence."""
    for pattern, sentence in CAUSES:
        found = re.search(pattern, log)
        if found:
            here = {"version": "{}.{}".format(*sys.version_info[:2]), "platform": sys.platform}
            return "{} (log: .venv/{}).".format(sentence.format(*found.groups(), **here).rstrip("."), LOG.name)
    return "the installer gave no reason; its log is .venv/{}.".format(LOG.name)


if __name__ == "__main__":
    sys.exit(main())
