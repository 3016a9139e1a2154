"""Forbids a process system calls that no answer needs, by a seccomp filter. Linux on x86-64 and ARM64.

They reach what files do not cover: the network, other processes, the kernel's own stores, and the rights, dates and
attributes of files, which Landlock leaves open. A forbidden call fails with EPERM; nothing can lift the filter.
"""

import ctypes
import errno
import os
import struct
from collections.abc import Iterable

# Machine: its number in AUDIT_ARCH, that of seccomp itself, and where the numbers of another binary interface begin.
MACHINES = {"x86_64": (0xC000003E, 317, 0x40000000), "aarch64": (0xC00000B7, 277, 0)}
# The numbers on x86-64 and on ARM64; 0 where there is no such call.
NETWORK = {
    "socket": (41, 198),
    "io_uring_setup": (425, 425),  # would open sockets past this filter
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
}
OTHER_PROCESSES = {
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "pidfd_getfd": (438, 438),
    "kcmp": (312, 272),
    "setpriority": (141, 140),
    "ioprio_set": (251, 30),
    "sched_setscheduler": (144, 119),
    "sched_setparam": (142, 118),
    "sched_setattr": (314, 274),
    "sched_setaffinity": (203, 122),
    "migrate_pages": (256, 238),
    "move_pages": (279, 239),
    "unshare": (272, 97),
    "setns": (308, 268),
}
STORES = {
    "shmget": (29, 194),
    "shmat": (30, 196),
    "shmctl": (31, 195),
    "semget": (64, 190),
    "semop": (65, 193),
    "semtimedop": (220, 192),
    "semctl": (66, 191),
    "msgget": (68, 186),
    "msgsnd": (69, 189),
    "msgrcv": (70, 188),
    "msgctl": (71, 187),
    "mq_open": (240, 180),
    "mq_unlink": (241, 181),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "bpf": (321, 280),
    "userfaultfd": (323, 282),
    "perf_event_open": (298, 241),
    "syslog": (103, 116),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "move_mount": (429, 429),
    "open_tree": (428, 428),
    "fsopen": (430, 430),
    "mount_setattr": (442, 442),
}
ABOUT_FILES = {
    "chmod": (90, 0),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "chown": (92, 0),
    "fchown": (93, 55),
    "lchown": (94, 0),
    "fchownat": (260, 54),
    "utime": (132, 0),
    "utimes": (235, 0),
    "futimesat": (261, 0),
    "utimensat": (280, 88),
    "truncate": (76, 45),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "setxattrat": (463, 463),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
    "removexattrat": (466, 466),
    "file_setattr": (469, 469),
    "inotify_init": (253, 0),
    "inotify_init1": (294, 26),
    "fanotify_init": (300, 262),
}
SIGNALS = {
    "kill": (62, 129),
    "tkill": (200, 130),
    "tgkill": (234, 131),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "pidfd_send_signal": (424, 424),
}
PRLIMIT = (302, 261)  # allowed for the process itself: its number is then 0

LOAD, EQUAL, AT_LEAST, RETURN = 0x20, 0x15, 0x35, 0x06
ALLOW, REFUSE, KILL = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x80000000


def forbid(shared: bool) -> None:
    """Forbid the calls for this process and all that it starts; it must have given up new privileges before.

    Args:
        shared: whether other people's files and processes are in reach, so that those about files and those that
            send signals are forbidden as well.

    Raises:
        OSError: this kernel has no filters, or this machine is not known.
    """
    machine = os.uname().machine
    if machine not in MACHINES:
        raise OSError(errno.ENOSYS, f"system calls of {machine} are not known")
    column = list(MACHINES).index(machine)
    forbidden = NETWORK | OTHER_PROCESSES | STORES | (ABOUT_FILES | SIGNALS if shared else {})
    numbers = [each[column] for each in forbidden.values() if each[column]]
    program = b"".join(_filter(*MACHINES[machine], numbers, PRLIMIT[column]))
    code = ctypes.create_string_buffer(program, len(program))
    head = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)
    set_mode_filter, keep_speculation = 1, 4  # without the flag, older kernels would slow the process down
    if libc.syscall(MACHINES[machine][1], set_mode_filter, keep_speculation, head) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"seccomp: {os.strerror(number)}")


def _filter(audit: int, _: int, foreign: int, numbers: list[int], prlimit: int) -> Iterable[bytes]:
    """The filter's instructions: code, jump where it holds, jump where not, number."""
    number_at, machine_at, first_argument_at = 0, 4, 16
    yield _step(LOAD, machine_at)
    yield _step(EQUAL, audit, 1, 0)
    yield _step(RETURN, KILL)
    yield _step(LOAD, number_at)
    if foreign:
        yield _step(AT_LEAST, foreign, 0, 1)
        yield _step(RETURN, REFUSE)
    for number in numbers:
        yield _step(EQUAL, number, 0, 1)
        yield _step(RETURN, REFUSE)
    yield _step(EQUAL, prlimit, 1, 0)
    yield _step(RETURN, ALLOW)
    yield _step(LOAD, first_argument_at)
    yield _step(EQUAL, 0, 1, 0)
    yield _step(RETURN, REFUSE)
    yield _step(RETURN, ALLOW)


def _step(code: int, number: int, if_so: int = 0, if_not: int = 0) -> bytes:
    return struct.pack("HBBI", code, if_so, if_not, number)
