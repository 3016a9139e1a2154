"""When a warm kernel is asked for, and what makes a fork server fit for it. No kernel is started here."""

import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from types import SimpleNamespace

import pytest
from jupyter_client.kernelspec import KernelSpecManager

from moe_course.notebooks import pytest_plugin, warm
from moe_course.notebooks.transport import private_folder
from moe_course.notebooks.warm import NAME, PLAIN, client, kernel_name
from moe_course.notebooks.warm.order import NoWarmKernel, Order, Streams

COMMAND = [sys.executable, "-Xfrozen_modules=off", "-m", "ipykernel_launcher", "-f", "connection.json"]


@pytest.fixture(autouse=True)
def forget(monkeypatch):
    """Each test finds out anew what is possible here."""
    monkeypatch.delenv("JUPYTER_PATH", raising=False)
    warm._can_fork.cache_clear()
    yield
    warm._can_fork.cache_clear()


def test_the_name_is_a_kernelspec_that_jupyter_finds_after_many_threads_have_asked():
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda _: kernel_name(), range(50))) == {NAME}
    assert os.environ["JUPYTER_PATH"] == str(warm.SPECS)
    assert KernelSpecManager().get_kernel_spec(NAME).argv[-3:-1] == ["-f", "{connection_file}"]


def test_a_path_that_was_set_is_kept(monkeypatch):
    monkeypatch.setenv("JUPYTER_PATH", "/mine")
    kernel_name()
    assert os.environ["JUPYTER_PATH"].split(os.pathsep) == ["/mine", str(warm.SPECS)]


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_where_torch_cannot_be_forked_the_kernel_is_plain(platform, monkeypatch):
    monkeypatch.setattr(sys, "platform", platform)
    assert kernel_name() == PLAIN


def test_without_the_entry_point_or_by_choice_the_kernel_is_plain(monkeypatch):
    assert kernel_name(warm=False) == PLAIN
    monkeypatch.setattr(warm, "entry_points", lambda **_: metadata.EntryPoints())
    assert kernel_name() == PLAIN
    assert "JUPYTER_PATH" not in os.environ


def test_nbval_gets_warm_kernels_where_it_was_to_use_this_environment(monkeypatch):
    def options(**given) -> SimpleNamespace:
        defaults = {"nbval_current_env": True, "nbval_kernel_name": None}
        config = SimpleNamespace(option=SimpleNamespace(**defaults | given))
        pytest_plugin.pytest_configure(config)
        return config.option

    assert options() == SimpleNamespace(nbval_current_env=False, nbval_kernel_name=NAME)
    chosen = {"nbval_current_env": False, "nbval_kernel_name": "other"}
    assert options(**chosen) == SimpleNamespace(**chosen)
    monkeypatch.setattr(sys, "platform", "darwin")
    warm._can_fork.cache_clear()
    assert options() == SimpleNamespace(nbval_current_env=True, nbval_kernel_name=None)


def test_an_order_is_what_popen_would_be_given(tmp_path):
    order = Order.of(COMMAND, env={"A": "b"}, cwd=tmp_path)
    assert order.python == (sys.executable, "-Xfrozen_modules=off")
    assert order.argv == ("-f", "connection.json")
    assert (order.env, order.cwd) == ({"A": "b"}, str(tmp_path))


@pytest.mark.parametrize("name", ["torch.py", "moe_course", "plotly"])
def test_a_folder_whose_modules_would_be_imported_instead_is_refused(name, tmp_path):
    (tmp_path / name).mkdir()
    with pytest.raises(NoWarmKernel, match=f"{name} would be imported in place of the installed one"):
        Order.of(COMMAND, cwd=tmp_path)


def test_the_folder_of_the_package_itself_is_none_of_those():
    assert Order.of(COMMAND, cwd=client.PACKAGE.parent).cwd == str(client.PACKAGE.parent)


def test_what_a_fork_cannot_do_is_refused(tmp_path):
    with pytest.raises(NoWarmKernel, match="there is no folder"):
        Order.of(COMMAND, cwd=tmp_path / "gone")
    with pytest.raises(NoWarmKernel, match="a fork cannot do preexec_fn"):
        Order.of(COMMAND, preexec_fn=print)
    with pytest.raises(NoWarmKernel, match="a fork cannot do R --slave"):
        Order.of(["R", "--slave"])
    with pytest.raises(NoWarmKernel, match="a fork cannot open a pipe"):
        Streams(Order.of(COMMAND, stderr=subprocess.PIPE))


@pytest.fixture
def asked(monkeypatch):
    """Say which of the servers that have been asked for serves an order; none is started."""
    started = []

    class Fake(SimpleNamespace):
        def __init__(self, key, order):
            super().__init__(key=key, control=SimpleNamespace(close=lambda: closed.append(self)))
            started.append(self)

    closed: list[Fake] = []
    monkeypatch.setattr(client, "Server", Fake)
    monkeypatch.setattr(client, "_servers", {})
    monkeypatch.setattr(client, "_hopeless", {})

    def ask(**env) -> tuple[int, int]:
        server = client._server(Order.of(COMMAND, env=env))
        return started.index(server), len(closed)

    return ask


def test_only_what_libraries_read_when_they_are_loaded_needs_another_server(asked):
    assert asked(HOME="/me", OMP_NUM_THREADS="1") == (0, 0)
    assert asked(HOME="/you", OMP_NUM_THREADS="1", RUN="3") == (0, 0)
    for number, changed in enumerate(
        ("OMP_NUM_THREADS", "PYTHONPATH", "TRITON_INTERPRET", "MOE_COURSE_SHAPE_CHECKS"), 1
    ):
        assert asked(**{"OMP_NUM_THREADS": "1", changed: "0"}) == (number, 0)


@pytest.mark.parametrize("change", ["edit", "add", "remove", "swap"])
def test_any_change_of_the_package_needs_another_server_and_closes_the_old(change, asked, tmp_path, monkeypatch):
    (tmp_path / "layers").mkdir()
    for name in ("a.py", "layers/b.py", "layers/c.py"):
        (tmp_path / name).write_text(f"name = {name!r}")
    monkeypatch.setattr(client, "PACKAGE", tmp_path)
    assert asked() == asked() == (0, 0)
    if change == "edit":
        (tmp_path / "layers" / "b.py").write_text("name = 'B/b.py'")
    elif change == "add":
        (tmp_path / "layers" / "kernel.json").write_text("{}")
    elif change == "remove":
        (tmp_path / "a.py").unlink()
    else:  # two files of the same size change places, with their times
        (tmp_path / "layers" / "b.py").rename(tmp_path / "x")
        (tmp_path / "layers" / "c.py").rename(tmp_path / "layers" / "b.py")
        (tmp_path / "x").rename(tmp_path / "layers" / "c.py")
    assert asked() == (1, 1)
    (tmp_path / "layers" / "__pycache__").mkdir()
    (tmp_path / "layers" / "__pycache__" / "b.pyc").write_text("")
    assert asked() == (1, 1)


def test_socket_paths_stay_short_where_temporary_folders_are_deep(tmp_path, monkeypatch):
    deep = tmp_path / ("d" * 90)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    folder = private_folder()
    os.rmdir(folder)
    assert len(folder) < 60 and not list(deep.iterdir())
