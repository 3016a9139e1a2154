"""How warm kernels and their fork server live and die: nothing is left behind, and a plain kernel is always there."""

import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from moe_course.notebooks.warm import NAME, PLAIN, client, is_warm, order
from tests.notebooks.warm import LIGHT, alive, environment, eventually, is_fork_server, kernel, parent


@pytest.fixture(autouse=True)
def light(monkeypatch, tmp_path):
    """Kernels come from servers that import next to nothing, and whose sockets lie in a folder of the test."""
    serve(monkeypatch)
    (tmp_path / "sockets").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "sockets"))


def serve(monkeypatch, first: str = "pass") -> None:
    """From now on, run this code in a fork server before it serves."""
    monkeypatch.setattr(client, "SERVE", f"{LIGHT}; {first}; server.main({{fd}})")
    monkeypatch.setattr(client, "_hopeless", {})
    monkeypatch.setenv("MOE_COURSE_LIGHT", first)  # sets these servers apart from the others of this process


def test_interrupt(tmp_path):
    note = tmp_path / "note"
    with kernel() as talk:
        with ThreadPoolExecutor(1) as pool:
            said = pool.submit(talk.say, f"import time; open({str(note)!r}, 'w').close()\nwhile True: time.sleep(1)")
            assert eventually(note.exists)
            talk.manager.interrupt_kernel()
            assert said.result() == "KeyboardInterrupt"
        assert talk.say("print(2)") == "2"


def test_restart():
    with kernel() as talk:
        before = talk.pid
        talk.say("x = 1")
        talk.manager.restart_kernel(now=True)
        talk.client.wait_for_ready(timeout=60)
        assert not alive(before) and talk.pid != before and is_warm(talk.manager)
        assert talk.say("x") == "NameError"


def test_a_shutdown_lets_the_kernel_finish_and_leaves_nothing(tmp_path):
    note = tmp_path / "note"
    with kernel() as talk:
        talk.say(f"import atexit; atexit.register(lambda: open({str(note)!r}, 'w').write('bye'))")
        talk.say(f"left_open = open({str(note) + '-2'!r}, 'w'); left_open.write('and thanks'); loop = [left_open]")
        talk.say("import threading, time; loop.append(loop); del left_open; code = 'time.sleep(0.3); slow.touch()'")
        talk.say(f"import pathlib; slow = pathlib.Path({str(note) + '-3'!r})")
        talk.say("threading.Thread(target=exec, args=(code, {'time': time, 'slow': slow})).start()")
        folder = Path(talk.manager.ip).parent
        # A folder whose path is too long for a socket, as under xdist, is passed over for /tmp.
        assert talk.manager.transport == "ipc" and folder.parent in (tmp_path / "sockets", Path("/tmp"))
        assert oct(folder.stat().st_mode)[-3:] == "700"
        talk.manager.shutdown_kernel()
        assert note.read_text() == "bye"
        assert (tmp_path / "note-2").read_text() == "and thanks"
        assert (tmp_path / "note-3").exists()
        assert not alive(talk.pid) and not folder.exists()


DEATHS = {
    "os._exit(3)": 3,
    "os._exit(0)": 0,
    "os.kill(os.getpid(), 9)": -9,
    "os.kill(os.getpid(), 11)": -11,
    "import ctypes; ctypes.string_at(0)": -11,
}


@pytest.mark.parametrize("code", DEATHS)
def test_a_death_is_seen_with_its_cause(code):
    with kernel() as talk:
        process = talk.manager.provisioner.process
        assert talk.manager.is_alive() and process.poll() is None
        talk.client.execute("import os; " + code)
        assert eventually(lambda: not talk.manager.is_alive())
        assert process.poll() == process.wait() == DEATHS[code]
        assert not Path(f"/proc/{talk.pid}").exists() or eventually(lambda: not Path(f"/proc/{talk.pid}").exists())


def test_many_threads_start_kernels_at_once():
    def start(number: int) -> tuple[str, int, int]:
        with kernel() as talk:
            assert is_warm(talk.manager)
            return talk.say(f"print({number})"), talk.pid, parent(talk.pid)

    with ThreadPoolExecutor(6) as pool:
        said, pids, servers = zip(*pool.map(start, range(6)), strict=True)
    assert said == tuple("012345")
    assert len(set(pids)) == 6
    assert len(set(servers)) == 1


def test_what_the_run_asks_for_is_honoured(tmp_path):
    (tmp_path / "extra").mkdir()
    (tmp_path / "extra" / "brought_along.py").write_text("x = 5")
    (tmp_path / "beside.py").write_text("y = 6")
    env = environment(
        **{"OMP_NUM_THREADS": "3", "PYTHONPATH": str(tmp_path / "extra"), "MPLBACKEND": "svg", "TZ": "Asia/Tokyo"},
        MINE="a = b\nc",
    )
    with kernel(env=env | {"TZ": "UTC", "NOT_MINE": "1"}, cwd=str(tmp_path)) as other:
        server = parent(other.pid)
    errors = tmp_path / "errors"
    with errors.open("w") as stderr, kernel(env=env, cwd=str(tmp_path), stderr=stderr) as talk:
        assert is_warm(talk.manager) and parent(talk.pid) == server
        assert talk.say("import os, brought_along, beside; print(brought_along.x, beside.y)") == "5 6"
        names = ("OMP_NUM_THREADS", "MPLBACKEND", "MINE", "PYTHONPATH")
        assert talk.say(f"print([os.environ[name] for name in {names}])") == str([env[name] for name in names])
        assert talk.say("print('NOT_MINE' in os.environ)") == "False"
        assert talk.say("import time; print(os.getcwd(), *time.tzname)") == f"{tmp_path} JST JST"
        assert talk.say("import subprocess; print(subprocess.getoutput('echo $MPLBACKEND'))") == "svg"
        talk.say("import sys; print('mind the gap', file=sys.__stderr__, flush=True)")
    assert "mind the gap" in errors.read_text()


def test_blas_has_the_threads_of_a_plain_kernel(monkeypatch):
    serve(monkeypatch, "import numpy")
    threads = (
        "import ctypes, re, numpy\n"
        "library = ctypes.CDLL(re.search(r'/\\S*openblas\\S*', open('/proc/self/maps').read())[0])\n"
        "print(library.scipy_openblas_get_num_threads64_())"
    )
    with kernel(env=environment(OMP_NUM_THREADS="2")) as talk:
        assert is_warm(talk.manager)
        assert talk.say(threads) == "2"
        assert talk.say("x = numpy.ones((500, 500)); print((x @ x).sum())") == "125000000.0"


OWNER = """
    import subprocess, sys, time
    from moe_course.notebooks.warm import client
    from tests.notebooks.warm import LIGHT, kernel, parent
    client.SERVE = LIGHT + "; server.main({{fd}})"
    with kernel() as first, kernel() as second:
        child = first.say("import subprocess; print(subprocess.Popen(['sleep', '99']).pid)")
        second.client.execute("while True: pass")
        print(parent(first.pid), first.pid, second.pid, child, flush=True)
        {end}
"""


@pytest.mark.parametrize("end", ["time.sleep(99)", "import os; os._exit(0)"], ids=["killed", "leaves in a hurry"])
def test_nothing_outlives_the_process_that_wanted_kernels(end, tmp_path):
    env = environment(TMPDIR=str(tmp_path / "sockets"), PYTHONPATH=os.pathsep.join(sys.path))
    code = textwrap.dedent(OWNER).format(end=end)
    with subprocess.Popen([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, text=True) as owner:
        server, *kernels = map(int, owner.stdout.readline().split())
        assert is_fork_server(server)
        owner.kill()
    assert eventually(lambda: not any(map(alive, (server, *kernels))))
    assert eventually(lambda: not list((tmp_path / "sockets").glob("moe-*")))


def test_when_the_server_is_killed_its_kernels_are_dead_and_the_next_has_another():
    with kernel() as talk:
        server = parent(talk.pid)
        assert is_fork_server(server)
        os.kill(server, signal.SIGKILL)
        assert eventually(lambda: not talk.manager.is_alive() and not alive(talk.pid))
    with kernel() as talk:
        assert is_warm(talk.manager) and parent(talk.pid) != server


def test_a_changed_package_is_imported_anew_and_kernels_of_the_old_one_live_on(tmp_path, monkeypatch):
    package = tmp_path / "moe_course"
    package.mkdir()
    (package / "layer.py").write_text("x = 1")
    for module in (client, order):
        monkeypatch.setattr(module, "PACKAGE", package)
    with kernel(cwd=tmp_path) as old, kernel(cwd=tmp_path) as same:
        (package / "layer.py").write_text("x = 2")
        with kernel(cwd=tmp_path) as new:
            servers = [parent(talk.pid) for talk in (old, same, new)]
            assert servers[0] == servers[1] != servers[2]
            assert old.say("print('alive')") == "alive"
    assert eventually(lambda: not alive(servers[0])), "a server nobody can ask any more must end with its last kernel"
    assert alive(servers[2])


def test_an_idle_server_ends_and_the_next_kernel_has_another(monkeypatch):
    serve(monkeypatch, "server.IDLE = 0.5")
    with kernel() as talk:
        server = parent(talk.pid)
        time.sleep(1.8)
        assert alive(server), "it is not idle while it has a kernel"
    assert eventually(lambda: not alive(server))
    with kernel() as talk:
        assert is_warm(talk.manager)


REFUSALS = {
    "threads": ("import threading; threading.Thread(target=threading.Event().wait, daemon=True).start()", "2 threads"),
    "imports": ("server._preload = lambda: 'the fork server cannot import sense'", "cannot import sense"),
    "silence": ("import sys; sys.exit()", "does not answer"),
}


@pytest.mark.parametrize("what", REFUSALS)
def test_a_plain_kernel_starts_where_a_fork_is_refused(what, monkeypatch, caplog):
    serve(monkeypatch, REFUSALS[what][0])
    with caplog.at_level("DEBUG", logger="traitlets"), kernel() as talk:
        assert talk.manager.kernel_name == NAME and not is_warm(talk.manager)
        assert not is_fork_server(parent(talk.pid))
        assert talk.say("print(1)") == "1"
    assert REFUSALS[what][1] in caplog.text


def test_a_process_forked_from_ours_does_not_ask_our_server():
    with kernel():
        assert client._servers
        child = os.fork()
        if child == 0:
            os._exit(len(client._servers))
        assert os.waitpid(child, 0)[1] == 0
        assert client._servers


def test_a_plain_kernel_is_not_warm():
    with kernel(warm=False) as talk:
        assert talk.manager.kernel_name == PLAIN and not is_warm(talk.manager)
