"""Hostile answers to one exercise, as data: what each does, and what it deserves.

Each defines `tokens_per_expert`, worth one point. `earns` says which share is deserved: "all" for an answer that is
right whatever else it does, "nothing" for one that returns no right value.
"""

import textwrap
from dataclasses import dataclass

RIGHT = "return torch.bincount(expert_ids.flatten(), minlength=num_experts)"


@dataclass(frozen=True)
class Attack:
    """One hostile answer.

    Args:
        name: of the student who hands it in.
        source: the exercise's cell. {canary}, {root}, {port} and {report} are filled in by the test.
        status: that it must get.
        earns: "all" or "nothing".
    """

    name: str
    source: str
    status: str = "graded"
    earns: str = "nothing"


def attack(name: str, body: str, status: str = "graded", earns: str = "nothing", top: str = "") -> Attack:
    body = textwrap.indent(textwrap.dedent(body).strip().replace("RIGHT", RIGHT), "    ")
    return Attack(
        name, f"{textwrap.dedent(top)}\ndef tokens_per_expert(expert_ids, num_experts):\n{body}\n", status, earns
    )


LOOPS = [
    attack("loop-python", "while True: pass", "timeout"),
    attack("loop-deaf", "while True:\n    try:\n        while True: pass\n    except BaseException: pass", "timeout"),
    attack("loop-no-alarm", "import signal\nsignal.setitimer(signal.ITIMER_REAL, 0)\nwhile True: pass", "timeout"),
    attack("loop-in-c", "sum(iter(int, 1))", "timeout"),
    attack(
        "loop-blocked-signals",
        """
        import signal, time
        signal.pthread_sigmask(signal.SIG_BLOCK, range(1, signal.NSIG))
        time.sleep(10**6)
        """,
        "timeout",
    ),
    Attack(
        "loop-at-definition",
        "forever = [0 for _ in iter(int, 1)]\n\ndef tokens_per_expert(expert_ids, num_experts):\n    return forever\n",
        "timeout",
    ),
    attack(
        "loop-thread-join",
        "import threading\nt = threading.Thread(target=threading.Event().wait)\nt.start()\nt.join()",
        "timeout",
    ),
]
EXITS = [
    attack("exit-sys", "import sys\nsys.exit(0)"),
    attack("exit-os", "import os\nos._exit(0)", "crashed"),
    attack("exit-abort", "import os\nos.abort()", "crashed"),
    attack("exit-segfault", "import ctypes\nctypes.string_at(0)", "crashed"),
    attack("exit-kill-all", "import os\nos.kill(-1, 9)\nreturn None"),
    attack("exit-recursion", "return tokens_per_expert(expert_ids, num_experts)"),
    attack("exit-keyboard", "raise KeyboardInterrupt"),
    attack("exit-generator", "raise GeneratorExit"),
    attack("exit-exec", "import os\nos.execv('/bin/true', ['true'])", "crashed"),
]
PATCHES = [
    attack(
        "patch-allclose",
        """
        true = lambda *a, **k: True
        torch.allclose = torch.equal = torch.Tensor.equal = true
        torch.isclose = lambda a, *r, **k: torch.ones(a.shape, dtype=torch.bool)
        return torch.full((num_experts,), -1)
        """,
    ),
    attack(
        "patch-comparison",
        """
        import sys
        for module in list(sys.modules.values()):
            for name in ("difference", "agree", "same", "judge", "observation", "changes"):
                if hasattr(module, name):
                    setattr(module, name, lambda *a, **k: None)
        return torch.full((num_experts,), -1)
        """,
    ),
    attack(
        "patch-tensor-eq",
        """
        torch.Tensor.__eq__ = lambda a, b: torch.ones(1, dtype=torch.bool)
        torch.Tensor.__ne__ = lambda a, b: torch.zeros(1, dtype=torch.bool)
        return torch.full((num_experts,), -1)
        """,
    ),
    attack(
        "patch-builtins",
        "import builtins\nbuiltins.isinstance = lambda *a: True\nbuiltins.all = lambda *a: True\nreturn None",
        "crashed",
    ),
]
PROTOCOL = [
    attack(
        "wire-forged-result",
        """
        import os, json, struct
        text = json.dumps({"status": "graded", "points": 1, "passed": True, "case": 0}).encode()
        for fd in range(3, 64):
            try: os.write(fd, struct.pack("<4sIQ", b"moe1", len(text), 0) + text)
            except OSError: pass
        return None
        """,
        "crashed",
    ),
    attack(
        "wire-noise",
        """
        import os
        for fd in range(3, 64):
            try: os.write(fd, os.urandom(4096))
            except OSError: pass
        return None
        """,
        "crashed",
    ),
    attack(
        "wire-huge-head",
        """
        import os, struct
        for fd in range(3, 64):
            try: os.write(fd, struct.pack("<4sIQ", b"moe1", 2**32 - 1, 2**63))
            except OSError: pass
        return None
        """,
        "crashed",
    ),
    attack("wire-closed", "import os\nos.closerange(0, 64)\nreturn None", "crashed"),
    attack(
        "wire-deep-json",
        """
        import os, struct
        text = b'{"case": 0, "output": ' + b'[' * 200000 + b']' * 200000 + b'}'
        for fd in range(3, 64):
            try: os.write(fd, struct.pack("<4sIQ", b"moe1", len(text), 0) + text)
            except OSError: pass
        return None
        """,
        "crashed",
    ),
    attack(
        "wire-stolen-socket",
        """
        import gc, socket
        for thing in gc.get_objects():
            if isinstance(thing, socket.socket):
                thing.close()
        return None
        """,
        "crashed",
    ),
    attack(
        "wire-false-tensor",
        """
        import json, os, struct
        head = {"kind": "tensor", "dtype": "int64", "shape": [2**40], "offset": 0}
        text = json.dumps({"case": 0, "output": head}).encode()
        for fd in range(3, 64):
            try: os.write(fd, struct.pack("<4sIQ", b"moe1", len(text), 0) + text)
            except OSError: pass
        return None
        """,
        "crashed",
    ),
    attack(
        "wire-patched-packer",
        """
        import sys
        wire = sys.modules["moe_course.grading.inside.wire"]
        wire.Packer.pack = lambda *a: {"kind": "passed", "value": True}
        return None
        """,
        "crashed",
    ),
]
LIARS = [
    attack(
        "liar-equal",
        """
        return Liar()
        """,
        top="""
        class Liar:
            def __eq__(self, other): return True
            def __getattr__(self, name): return self
            def __call__(self, *a, **k): return self
            def __bool__(self): return True
        """,
    ),
    attack(
        "liar-subclass",
        "return torch.full((num_experts,), -1).as_subclass(Always)",
        top="""
        class Always(torch.Tensor):
            @classmethod
            def __torch_function__(cls, func, types, args=(), kwargs=None):
                if func in (torch.equal, torch.allclose, torch.isclose): return True
                return super().__torch_function__(func, types, args, kwargs or {})
        """,
    ),
    attack("liar-meta", "return torch.zeros(num_experts, dtype=torch.int64, device='meta')"),
    attack("liar-nan", "return torch.full((num_experts,), float('nan'))"),
    attack("liar-inf", "return torch.full((num_experts,), float('inf'))"),
    attack("liar-sparse", "return torch.full((num_experts,), -1).to_sparse()"),
    attack("liar-complex", "return torch.zeros(num_experts, dtype=torch.complex64)"),
    attack("liar-float8", "return torch.zeros(num_experts).to(torch.float8_e4m3fn)"),
    attack("liar-aliased", "return expert_ids.as_strided((num_experts,), (0,)) if expert_ids.numel() else None"),
    attack("liar-huge-number", "return 10 ** 5000"),
    attack("liar-huge-ids", "return torch.full((num_experts,), 2**62)"),
    attack("liar-many", "return [0] * 10**4"),
    attack("liar-cycle", "loop = []\nloop.append(loop)\nreturn loop"),
    attack(
        "liar-dataclass",
        """
        return D(1)
        """,
        top="""
        import dataclasses
        @dataclasses.dataclass
        class D:
            x: int
            def __getattribute__(self, name): raise RuntimeError('no')
        """,
    ),
    attack(
        "liar-pickle",
        """
        return Bomb()
        """,
        top="""
        class Bomb:
            def __reduce__(self):
                import os
                return os.system, ('touch {canary}/pickle',)
        """,
    ),
    attack("liar-array", "import numpy\nreturn numpy.zeros(num_experts, dtype='int64')"),
    attack(
        "liar-strange-text",
        "raise ValueError(chr(0) + chr(27) + '[2J' + chr(0xd800) + '<script>alert(1)</script>' * 9)",
    ),
]
KEYS = [
    attack(
        "key-import",
        """
        from moe_course.exercises import by_id
        return by_id('02.tokens_per_expert').reference(expert_ids, num_experts)
        """,
    ),
    attack(
        "key-import-lesson",
        """
        from moe_course.exercises.lesson_02.tokens_per_expert import tokens_per_expert as key
        return key(expert_ids, num_experts)
        """,
    ),
    attack(
        "key-layers",
        """
        from moe_course.layers import Routing
        return Routing(None, None, None, expert_ids).tokens_per_expert[:num_experts]
        """,
    ),
    attack(
        "key-check",
        "from moe_course import check\nreturn check(lambda expert_ids, num_experts: None)(expert_ids, num_experts)",
    ),
    attack(
        "key-disk",
        """
        import pathlib
        for name in ("solutions/02_router.py", "moe_course/exercises/lesson_02/tokens_per_expert.py"):
            text = pathlib.Path("{root}", name).read_text()
            if "bincount" in text:
                RIGHT
        """,
    ),
    attack(
        "key-search",
        """
        import os
        for folder, _, files in os.walk("/"):
            if folder.startswith(("/proc", "/sys", "/usr")): continue
            if any(name in ("tokens_per_expert.py", "02_router.py", "02_router.ipynb") for name in files):
                RIGHT
        """,
        "",
    ),
    attack(
        "key-gc",
        """
        import gc, types
        mine = tokens_per_expert
        for thing in gc.get_objects():
            if isinstance(thing, types.FunctionType) and thing.__name__ == "tokens_per_expert" and thing is not mine:
                return thing(expert_ids, num_experts)
        """,
    ),
    attack(
        "key-frames",
        """
        import sys
        frame = sys._getframe()
        while frame:
            for value in frame.f_locals.values():
                if hasattr(value, "reference") or hasattr(value, "exact"):
                    return value.reference(expert_ids, num_experts)
            frame = frame.f_back
        """,
    ),
    attack(
        "key-proc",
        """
        import os
        for pid in filter(str.isdigit, os.listdir("/proc")):
            if int(pid) != os.getpid():
                open(f"/proc/{{pid}}/mem", "rb").read(1)
                RIGHT
        """,
    ),
]
FILES = [
    attack(
        "file-report",
        """
        for name in ('grades.csv', 'results/ada.02.json'):
            open('{report}/' + name, 'w').write('mine')
        return None
        """,
    ),
    attack("file-canary", "open('{canary}/written', 'w').write('x')\nreturn None"),
    attack(
        "file-others",
        "import os\nif os.listdir('{canary}'): RIGHT",
    ),
    attack(
        "file-mount",
        "import ctypes\nassert ctypes.CDLL(None).mount(b'/proc', b'/mnt', b'proc', 0, None) == 0\nRIGHT",
    ),
    attack("file-chroot", "import os\nos.chroot('/')\nRIGHT"),
    attack("file-setuid", "import os\nos.setuid(0)\nos.mkdir('/usr/mine')\nRIGHT"),
    attack(
        "file-bomb",
        "while True:\n    for i in range(1000):\n        with open(f'{{i}}', 'wb') as f: f.write(bytes(1 << 22))",
        "graded",
    ),
    attack("file-one-bomb", "with open('/tmp/one', 'wb') as f:\n    while True: f.write(bytes(1 << 20))", "graded"),
    attack(
        "network-tcp",
        "import socket\nsocket.create_connection(('127.0.0.1', {port}), 2)\nRIGHT",
    ),
    attack(
        "network-abstract",
        "import socket\nsocket.socket(socket.AF_UNIX).connect('\\0moe-course-{port}')\nRIGHT",
    ),
]
BOMBS = [
    attack("bomb-memory", "return torch.ones(1 << 36)", "out of memory"),
    attack("bomb-list", "held = []\nwhile True: held.append(torch.empty(1 << 28))", "out of memory"),
    attack("bomb-forks", "import os\nwhile True: os.fork()", ""),
    attack(
        "bomb-threads",
        "import threading\nfor _ in range(10**5): threading.Thread(target=threading.Event().wait, daemon=True).start()",
    ),
    attack("bomb-output", "while True: print('x' * 10**6)", "timeout"),
    attack("bomb-result", "return torch.zeros((1 << 23) + 1)", ""),
    attack("bomb-descriptors", "held = [open('/dev/null') for _ in range(10**5)]"),
    attack(
        "orphan",
        """
        import os, time
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0: time.sleep(10**6)
            os._exit(0)
        RIGHT
        """,
        earns="all",
    ),
    attack(
        "orphan-program",
        "import subprocess\nsubprocess.Popen(['sleep', '987654'], start_new_session=True)\nRIGHT",
        earns="all",
    ),
]
STATE = [
    attack("state-counter", "calls.append(1)\nreturn torch.full((num_experts,), len(calls))", top="calls = []\n"),
    attack(
        "state-left", "open('/tmp/left', 'w').write('x')\nopen('/dev/shm/left', 'w').write('x')\nRIGHT", earns="all"
    ),
    attack(
        "state-looked-for",
        "import os\nleft = os.path.exists('/tmp/left') or os.path.exists('/dev/shm/left')\nif left: RIGHT",
    ),
    attack("state-seed", "torch.manual_seed(0)\nreturn torch.randint(9, (num_experts,))"),
    attack("state-random", "return torch.randint(9, (num_experts,))"),
    attack("state-inputs", "counts = " + RIGHT[7:] + "\nexpert_ids.zero_()\nreturn counts", earns="some"),
]
# What a process could still do to those that it shares a machine with.
NEIGHBOURS = [
    attack("neighbour-kill", "import os\nassert os.getppid()\nos.kill(os.getppid(), 0)\nRIGHT"),
    attack(
        "neighbour-kill-any",
        """
        import os
        killed = 0
        for pid in range(2, 5000):
            if pid != os.getpid():
                try: os.kill(pid, 0)
                except OSError: continue
                killed += 1
        if killed: RIGHT
        """,
        "",
    ),
    attack(
        "neighbour-limits",
        "import os, resource\nassert os.getppid()\nresource.prlimit(os.getppid(), resource.RLIMIT_CPU)\nRIGHT",
    ),
    attack(
        "neighbour-nice", "import os\nassert os.getppid()\nos.setpriority(os.PRIO_PROCESS, os.getppid(), 19)\nRIGHT"
    ),
    attack("neighbour-chmod", "import os\nos.chmod('{canary}/secret', 0)\nRIGHT"),
    attack("neighbour-chmod-python", "import os, sys\nos.chmod(sys.prefix, 0o755)\nRIGHT"),
    attack("neighbour-truncate", "import os\nos.truncate('{canary}/secret', 0)\nRIGHT"),
    attack("neighbour-touch", "import os\nos.utime('{canary}/secret', (0, 0))\nRIGHT"),
    attack("neighbour-read", "if open('{canary}/secret').read(): RIGHT"),
    attack("neighbour-remove", "import os\nos.remove('{canary}/secret')\nRIGHT"),
    attack("neighbour-rename", "import os\nos.rename('{canary}/secret', '{canary}/stolen')\nRIGHT"),
    attack("neighbour-link", "import os\nos.link('{canary}/secret', 'mine')\nif open('mine').read(): RIGHT"),
    attack("neighbour-symlink", "import os\nos.symlink('{canary}/secret', 'mine')\nif open('mine').read(): RIGHT"),
    attack("neighbour-classmate", "if open('{report}/../class/ada/02_router.ipynb').read(): RIGHT"),
    attack("neighbour-classmates", "import os\nif os.listdir('{report}/../class'): RIGHT"),
    attack(
        "neighbour-folders",
        "import os\nif len([n for n in os.listdir('..') if n.startswith('tmp')]) and os.getcwd() != '/tmp': RIGHT",
    ),
    attack(
        "neighbour-environment",
        """
        import os
        for pid in (os.getppid(), *range(2, 2000)):
            if pid != os.getpid():
                try: read = open(f"/proc/{{pid}}/environ", "rb").read()
                except OSError: continue
                if read: RIGHT
        """,
        "",
    ),
    attack(
        "neighbour-memory",
        """
        import ctypes, os
        here = ctypes.create_string_buffer(8)
        class Part(ctypes.Structure):
            _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]
        part = Part(ctypes.addressof(here), 8)
        libc = ctypes.CDLL(None, use_errno=True)
        found = libc.process_vm_readv(os.getppid(), ctypes.byref(part), 1, ctypes.byref(part), 1, 0)
        if found > 0 or ctypes.get_errno() == 14: RIGHT
        """,
    ),
    attack(
        "neighbour-shared-memory",
        "import ctypes\nassert ctypes.CDLL(None).shmget(0x4d6f45, 4096, 0o1666) >= 0\nRIGHT",
    ),
    attack("network-udp", "import socket\nsocket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', 9))\nRIGHT"),
    attack("network-path", "import socket\nsocket.socket(socket.AF_UNIX).connect('{canary}/socket')\nRIGHT"),
    attack("network-raw", "import socket\nsocket.socket(socket.AF_NETLINK, socket.SOCK_RAW)\nRIGHT"),
    attack(
        "network-own-child",
        """
        import subprocess, sys
        code = "import socket; socket.create_connection(('127.0.0.1', {port}), 2)"
        subprocess.run([sys.executable, "-c", code], check=True)
        RIGHT
        """,
        "",
    ),
    attack("user-namespace", "import ctypes\nassert ctypes.CDLL(None).unshare(0x10000000) == 0\nRIGHT"),
]
HONEST = [
    attack(
        "honest-prints",
        "print('hello' * 100)\nimport sys, warnings\nprint('x', file=sys.stderr)\nwarnings.warn('careful')\nRIGHT",
        earns="all",
    ),
    attack("honest-slow", "import time\ntime.sleep(0.02)\nRIGHT", earns="all"),
    attack("honest-logging", "import logging\nlogging.error('oh')\nRIGHT", earns="all"),
]
ATTACKS = [*LOOPS, *EXITS, *PATCHES, *PROTOCOL, *LIARS, *KEYS, *FILES, *BOMBS, *STATE, *NEIGHBOURS, *HONEST]
