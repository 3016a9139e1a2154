"""Takes a process's rights away: its own files, processes and memory, and not one privilege more. Linux only.

The calls that Python does not offer go through libc; each raises OSError when the kernel refuses.
"""

import ctypes
import os
import resource
import signal
import struct
import sys
from pathlib import Path

NEW_MOUNTS, NEW_IPC, NEW_USERS = 0x00020000, 0x08000000, 0x10000000  # CLONE_NEWNS, _NEWIPC, _NEWUSER
NEW_PROCESSES, NEW_NETWORK = 0x20000000, 0x40000000  # CLONE_NEWPID, _NEWNET
NO_SUID, NO_DEV, BIND, PRIVATE_TREE = 2, 4, 0x1000, 0x4000 | 0x40000  # mount flags
MEMORY = 2 << 30  # bytes that a student's process may ask for beyond what it starts with
PRIVATE_FILES = 32 << 20  # bytes of its /tmp
FILE_SIZE = 16 << 20
PROCESSES = 32  # threads count, too
DESCRIPTORS = 64

_libc = ctypes.CDLL(None, use_errno=True)


def own_spaces() -> None:
    """Go on in a process that sees no network and no processes but its own; it must have one thread yet."""
    spaces = NEW_NETWORK | NEW_IPC | NEW_PROCESSES
    try:
        _call("unshare", spaces)
    except OSError:  # not root: then in a user namespace, in which nobody but this user exists
        user, group = os.getuid(), os.getgid()
        _call("unshare", spaces | NEW_USERS)
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    pid = os.fork()
    if pid:
        os.closerange(3, 256)
        os._exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) & 255)
    set_death_signal = 1
    _call("prctl", set_death_signal, signal.SIGKILL, 0, 0, 0)


def new_process_space() -> None:
    """The next child starts a process space of its own; when it ends, the kernel ends all that are left in it."""
    _call("unshare", NEW_PROCESSES)


def back_to_own_process_space(descriptor: int) -> None:
    """Children start in this process's own space again; `descriptor` is of /proc/self/ns/pid."""
    _call("setns", descriptor, NEW_PROCESSES)


def private_files() -> None:
    """Empty temporary folders that nobody else sees, gone with the process; a /proc of its own processes only."""
    _call("unshare", NEW_MOUNTS | NEW_IPC)
    _mount(b"none", b"/", None, PRIVATE_TREE, None)
    size = b"mode=1777,size=%d" % PRIVATE_FILES
    hidden = {prefix: os.open(prefix, os.O_PATH) for prefix in {sys.prefix, sys.base_prefix} if _is_temporary(prefix)}
    for folder in (b"/tmp", b"/dev/shm"):
        _mount(b"tmpfs", folder, b"tmpfs", NO_SUID | NO_DEV, size)
    for prefix, descriptor in hidden.items():  # a Python that lives in /tmp still has modules to load
        os.makedirs(prefix)
        _mount(b"/proc/self/fd/%d" % descriptor, os.fsencode(prefix), None, BIND, None)
        os.close(descriptor)
    _mount(b"proc", b"/proc", b"proc", NO_SUID | NO_DEV, None)


def _is_temporary(path: str) -> bool:
    return os.path.realpath(path).startswith("/tmp/")


def limit_resources(seconds: int) -> None:
    """Bounds on processor time, memory, files and processes, for this process and each that it starts."""
    limits = {
        resource.RLIMIT_CPU: seconds,
        resource.RLIMIT_AS: _virtual_memory() + MEMORY,
        resource.RLIMIT_FSIZE: FILE_SIZE,
        resource.RLIMIT_NOFILE: DESCRIPTORS,
        resource.RLIMIT_NPROC: PROCESSES,
        resource.RLIMIT_CORE: 0,
    }
    for kind, most in limits.items():
        hard = resource.getrlimit(kind)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (most, most))


def may_become(user: int) -> bool:
    """Whether this process is root where there is such a user; in a user namespace there often is none but itself."""
    spans = [line.split() for line in Path("/proc/self/uid_map").read_text().splitlines()]
    return os.getuid() == 0 and any(int(first) <= user < int(first) + int(count) for first, _, count in spans)


def become(user: int) -> None:
    """Give up root for an unprivileged user, whom the limit on processes applies to."""
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)


def drop_privileges() -> None:
    """No capability is left, and none can come back, not even through a set-user-id program."""
    no_new_privileges()
    head = struct.pack("Ii", 0x20080522, 0)
    _call("capset", head, bytes(24))


def no_new_privileges() -> None:
    """Starting a program grants nothing."""
    set_no_new_privileges = 38
    _call("prctl", set_no_new_privileges, 1, 0, 0, 0)


def adopt_orphans() -> None:
    """Processes whose parents end become children of this one, so that it can end them."""
    set_child_subreaper = 36
    _call("prctl", set_child_subreaper, 1, 0, 0, 0)


def _virtual_memory() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()


def _mount(source: bytes, target: bytes, kind: bytes | None, flags: int, data: bytes | None) -> None:
    _call("mount", source, target, kind, ctypes.c_ulong(flags), data)


def _call(name: str, *arguments: object) -> None:
    if getattr(_libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
