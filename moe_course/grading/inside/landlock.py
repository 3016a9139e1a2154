"""Landlock: a process may open only the files below some folders, for as long as it lives. Linux 5.13 and newer.

What Landlock does not cover (`stat`, rights and dates of files, most of the network) is for `calls` to forbid.
Source: the kernel's documentation, userspace-api/landlock.
"""

import ctypes
import os
import stat
import struct
from collections.abc import Iterable

EXECUTE, WRITE, READ, LIST = 1, 2, 4, 8
REFER, TRUNCATE, DEVICES = 1 << 13, 1 << 14, 1 << 15  # known to versions 2, 3 and 5
OF_A_FILE = EXECUTE | WRITE | READ | TRUNCATE | DEVICES  # the others make sense for folders only
MAKE_DEVICES = 1 << 6 | 1 << 11
BIND_TCP_CONNECT_TCP = 3  # version 4
ABSTRACT_SOCKETS_SIGNALS = 3  # version 6
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446

_libc = ctypes.CDLL(None, use_errno=True)


def version() -> int:
    """The version of Landlock that this kernel has; 0 for none."""
    ask_version = 1
    return max(0, int(_libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), ask_version)))


def restrict(readable: Iterable[str], listable: Iterable[str], writable: Iterable[str]) -> None:
    """Leave this process, and all that it starts, only some files; it must have given up new privileges before.

    Args:
        readable: files and folders whose content may be read and executed. What does not exist is passed over.
        listable: folders of which the names may be seen, in all that is below them.
        writable: folders in which everything but devices is allowed, and files that may be read and written.

    Raises:
        OSError: this kernel has no Landlock, or refuses.
    """
    known = version()
    if not known:
        raise OSError("this kernel has no Landlock")
    handled = (1 << 13) - 1
    for since, right in ((2, REFER), (3, TRUNCATE), (5, DEVICES)):
        handled |= right if known >= since else 0
    fields = [handled, BIND_TCP_CONNECT_TCP][: 1 if known < 4 else 2] + [ABSTRACT_SOCKETS_SIGNALS] * (known >= 6)
    attributes = struct.pack(f"{len(fields)}Q", *fields)
    rules = _call(_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0)
    try:
        for paths, rights in ((readable, READ | LIST | EXECUTE), (listable, LIST), (writable, handled & ~MAKE_DEVICES)):
            for path in paths:
                _allow(rules, path, rights & handled)
        _call(_RESTRICT_SELF, rules, 0)
    finally:
        os.close(rules)


def _allow(rules: int, path: str, rights: int) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            rights &= OF_A_FILE
        path_beneath = 1
        _call(_ADD_RULE, rules, path_beneath, struct.pack("=Qi", rights, descriptor), 0)
    finally:
        os.close(descriptor)


def _call(number: int, *arguments: object) -> int:
    done = int(_libc.syscall(number, *arguments))
    if done < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"Landlock: {os.strerror(error)}")
    return done
