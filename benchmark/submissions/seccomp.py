"""What a process could leave for the next one without writing a file: refused by the kernel, for good (seccomp).

Landlock (`benchmark.submissions.confine`) knows files by their path and their content. Beside these the kernel keeps
shared memory, message queues and semaphores (System V and POSIX), keys and extended attributes until they are removed,
and so the times, modes and owners of this user's files, and the limits, priority and processors of its processes, which
a fork inherits, each of which holds some bytes. And who listens at a socket keeps what he is sent. The former, limits
and sockets fail; the others seem to succeed and change nothing, for packages set them in passing. io_uring, which is
not filtered, goes with them. Of x86-64 and arm64; elsewhere nothing is done. Needs no_new_privs.
"""

import ctypes
import os
import platform
import struct

SET_SECCOMP, FILTER = 22, 2  # of prctl
ERRNO, ALLOW = 0x00050000, 0x7FFF0000  # what a filter returns: fail with this errno, 0 for no failure; or do it
NUMBER, ARCHITECTURE, FIRST = 0, 4, 16  # offsets in struct seccomp_data; of an argument the lower half
LOAD, EQUAL, AT_LEAST, RETURN = 0x20, 0x15, 0x35, 0x06  # of classic BPF
OTHER_ABI = 0x40000000  # x32's numbers, on x86-64
EPERM = 1

KEPT = {  # shmget, semget, msgget, mq_open, add_key, request_key, keyctl, (l, f)setxattr(at), io_uring_setup, socket
    "x86_64": (29, 64, 68, 240, 248, 249, 250, 188, 189, 190, 463, 425, 41),
    "aarch64": (194, 190, 186, 180, 217, 218, 219, 5, 6, 7, 463, 425, 198),
}
MARKS = {  # (f)chmod(at, at2), (f, l)chown(at), utime(s), futimesat, utimensat;
    # setpriority, ioprio_set, sched_setparam, sched_setscheduler, sched_setaffinity, sched_setattr
    "x86_64": (90, 91, 268, 452, 92, 93, 94, 260, 132, 235, 261, 280, 141, 251, 142, 144, 203, 314),
    "aarch64": (52, 53, 452, 55, 54, 88, 140, 30, 118, 119, 122, 274),
}
LIMITS = {"x86_64": 302, "aarch64": 261}  # prlimit64, with which a process sets its own as well: then of process 0
NATIVE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}


def program(machine: str) -> bytes:
    """The filter, as instructions of BPF (code, jump if true, jump if false, value), 8 bytes each."""
    refused, ignored = ((RETURN, 0, 0, ERRNO | errno) for errno in (EPERM, 0))
    lines = [(LOAD, 0, 0, ARCHITECTURE), (EQUAL, 1, 0, NATIVE[machine]), refused, (LOAD, 0, 0, NUMBER)]
    lines += [(AT_LEAST, 0, 1, OTHER_ABI), refused]
    for numbers, end in ((KEPT[machine], refused), (MARKS[machine], ignored)):
        for number in numbers:
            lines += [(EQUAL, 0, 1, number), end]
    lines += [(EQUAL, 0, 3, LIMITS[machine]), (LOAD, 0, 0, FIRST), (EQUAL, 1, 0, 0), refused]
    return b"".join(struct.pack("=HBBI", *line) for line in [*lines, (RETURN, 0, 0, ALLOW)])


def refuse_what_stays(machine: str = "") -> None:
    """Hold this process, and all that it starts, to it."""
    machine = machine or platform.machine()
    if machine not in NATIVE:
        return
    instructions = program(machine)
    held = ctypes.create_string_buffer(instructions, len(instructions))
    given = struct.pack("@HP", len(instructions) // 8, ctypes.addressof(held))
    if ctypes.CDLL(None, use_errno=True).prctl(SET_SECCOMP, FILTER, given, 0, 0):
        raise OSError(ctypes.get_errno(), f"seccomp: {os.strerror(ctypes.get_errno())}")
