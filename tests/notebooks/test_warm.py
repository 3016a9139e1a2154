"""A warm kernel computes what a plain one does, and is set up as one is."""

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode

from moe_course.notebooks.warm import NAME, kernel_name
from tests.notebooks.warm import is_fork_server, kernel, parent

CELLS = {  # what is compared between a warm and a plain kernel, output by output
    "place": "import os, sys; print(os.getcwd(), sys.path, sys.argv[0], len(sys.orig_argv) > 3)",
    "environment": """
        import torch
        passing = ("JPY_PARENT_PID", "PYTEST_CURRENT_TEST")
        print(sorted((name, value) for name, value in os.environ.items() if name not in passing))""",
    "main": """
        import __main__
        print(__name__, vars(__main__) is globals(), sys.flags, sys.getrecursionlimit())
        print([name for name in dir() if name > 'f'])""",
    "process": """
        import gc, locale, resource, threading, time
        print(os.getpid() == os.getsid(0) == os.getpgrp(), os.umask(0o22), gc.isenabled(), time.tzname)
        print(locale.setlocale(locale.LC_ALL), resource.getrlimit(resource.RLIMIT_NOFILE), sys.stdout.encoding)
        print(sorted(thread.name.rstrip('12') for thread in threading.enumerate()), time.process_time() < 60)""",
    "signals": """
        import signal
        print([(each.name, str(signal.getsignal(each)).split(' at ')[0]) for each in signal.valid_signals()
               if hasattr(each, 'name')])
        print(signal.set_wakeup_fd(-1) >= 0, signal.pthread_sigmask(signal.SIG_BLOCK, []))""",
    "streams": "print(os.read(0, 1), sys.stdin is None); sys.stderr.write('mind'); os.system('echo from a shell');",
    "input": "input('Well?')",
    "threads": "print(torch.get_num_threads(), torch.get_num_interop_threads())",
    "random": """
        import random, numpy as np
        torch.manual_seed(1), np.random.seed(2), random.seed(3)
        print(torch.rand(3), torch.randn(2, dtype=torch.float64), np.random.rand(2), random.random())""",
    "training": """
        import torch.nn.functional as F
        net = torch.nn.Sequential(torch.nn.Linear(8, 64), torch.nn.GELU(), torch.nn.Linear(64, 8))
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
        for step in range(20):
            x = torch.randn(256, 8)
            loss = F.mse_loss(net(x), x.roll(1, 1))
            optimizer.zero_grad(), loss.backward(), optimizer.step()
        print(loss.item().hex())""",
    "checked": """
        from moe_course import check, quiz, show, sliders, Question
        from moe_course.exercises import by_id
        def top_k_routing(logits, top_k, renormalize=True):
            return logits
        check(top_k_routing).__module__""",
    "shapes are checked": """
        from moe_course.layers import MoELayer
        MoELayer(8, 16, 4, 2)(torch.zeros(3, 9))""",
    "triton": "from moe_course.kernels import is_interpreting; print(is_interpreting(), os.getenv('TRITON_INTERPRET'))",
    "figure": """
        import plotly.graph_objects as go
        show(go.Figure(go.Scatter(x=[0, 1], y=[2, 3]), {'title': {'text': 'A line'}}))""",
    "magic": "%time sum(range(9))\n%lsmagic",
    "exception": "1 / 0",
}


@pytest.fixture(scope="module")
def ran(tmp_path_factory) -> dict[str, dict[str, NotebookNode]]:
    """The cells, run in a plain and in a warm kernel."""
    folder = tmp_path_factory.mktemp("same")
    return {kind: run(kernel_name(kind == "warm"), folder) for kind in ("warm", "plain")}


def run(name: str, folder) -> dict[str, NotebookNode]:
    source = {each: "\n".join(line.removeprefix(" " * 8) for line in code.splitlines()) for each, code in CELLS.items()}
    cells = [nbformat.v4.new_code_cell(code.strip(), id=f"c{n}") for n, code in enumerate(source.values())]
    notebook = nbformat.v4.new_notebook(cells=cells)
    place = {"metadata": {"path": str(folder)}}
    patience = {"startup_timeout": 240, "record_timing": False, "allow_errors": True, "coalesce_streams": True}
    NotebookClient(notebook, kernel_name=name, resources=place, **patience).execute()
    return dict(zip(CELLS, notebook.cells, strict=True))


@pytest.mark.parametrize("name", CELLS)
def test_outputs_are_those_of_a_plain_kernel(ran, name):
    warm, plain = ran["warm"][name].outputs, ran["plain"][name].outputs
    if name == "magic":  # how long it took
        assert all(outputs.pop(0).text.startswith("CPU times: ") for outputs in (warm, plain))
    assert plain
    assert warm == plain


def test_a_warm_kernel_has_everything_at_hand_and_is_ready_soon():
    with kernel() as talk:
        assert talk.manager.kernel_name == NAME
        assert is_fork_server(parent(talk.pid))
        modules = (
            "import sys; print([m for m in ('torch._dynamo', 'plotly.io', 'moe_course.layers') if m in sys.modules])"
        )
        assert talk.say(modules) == "['torch._dynamo', 'plotly.io', 'moe_course.layers']"
        assert (
            float(talk.say("import time, torch; print(time.process_time())")) < 1.5
        )  # 0.16 on a quiet machine, 3 for imports


def test_each_kernel_has_random_numbers_of_its_own():
    draw = "import random, numpy, torch, uuid; print(torch.rand(1).item(), numpy.random.rand(), random.random())"
    with kernel() as first, kernel() as second:
        draws = [talk.say(draw).split() for talk in (first, second)]
    assert len(set(draws[0] + draws[1])) == 6


COMPUTING = {
    "many threads": (
        "torch.set_num_threads(2); x = torch.ones(600, 600).double(); print((x @ x @ x).sum().item())",
        "129600000000.0",
    ),
    "autograd": ("p = torch.ones(9, requires_grad=True); (p * p).sum().backward(); print(p.grad.sum().item())", "18.0"),
    "data loader": (
        "from torch.utils.data import DataLoader\n"
        "print(sum(batch.sum().item() for batch in DataLoader(list(range(32)), batch_size=4, num_workers=2)))",
        "496",
    ),
    "compile": (
        "square = torch.compile(lambda x: x.sin().cos(), backend='eager', fullgraph=True)\n"
        "x = torch.rand(8, requires_grad=True); square(x).sum().backward()\n"
        "print(torch.equal(x.grad, -x.detach().sin().sin() * x.detach().cos()))",
        "True",
    ),
    "a process of its own": (
        "import subprocess, sys; print(subprocess.run([sys.executable, '-c', 'print(5)'], capture_output=True).stdout)",
        r"b'5\n'",
    ),
    "a thread": ("from concurrent.futures import ThreadPoolExecutor as T\nprint(*T(2).map(abs, [-1, -2]))", "1 2"),
    "async": ("import asyncio\nawait asyncio.sleep(0.01)\nprint('slept')", "slept"),
}


@pytest.fixture(scope="module")
def computing():
    with kernel() as talk:
        talk.say("import torch")
        yield talk


@pytest.mark.parametrize("what", COMPUTING)
def test_what_threads_and_processes_are_needed_for_works(computing, what):
    code, says = COMPUTING[what]
    assert computing.say(code).splitlines()[-1] == says
