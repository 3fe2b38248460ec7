"""What Linux is asked to hold a submission's process to, before any foreign code runs in it. No torch.

`confine` (Landlock, Linux 5.13 and later): the process and all that it starts read installed packages, the system and
the paths that are named, write into one folder alone, and, as the kernel is newer, open no TCP connection (6.7) and
send no signal to a process outside (6.12). What stays in the kernel is refused as well (`seccomp`), and of root's
rights those to files alone are left. It cannot be undone. `adopt` and `end_below`: a process that is adopted by its
ancestor cannot leave the tree, whatever group or session it moves to, and so dies with it.
"""

import ctypes
import os
import signal
import struct
import sys
import sysconfig
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import attacks
import benchmark
from benchmark.committed import HERE
from benchmark.submissions.seccomp import refuse_what_stays

DEATH_SIGNAL, SUBREAPER, NO_NEW_PRIVILEGES = 1, 36, 38  # of prctl
CAPABILITIES, ANY_FILE = struct.pack("Ii", 0x20080522, 0), 0b110  # of this process; read and write whosever file
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # system calls, alike on all architectures
RIGHTS = {1: 13, 2: 14, 3: 15}  # how many rights of files an ABI knows; later ones leave these as they are
READ, READ_FILE = 1 << 0 | 1 << 2 | 1 << 3, 1 << 2  # execute, read a file, read a folder
WRITE_FILE, OF_FILES = 1 << 1, 1 << 0 | 1 << 1 | 1 << 2 | 1 << 14  # the rights that a single file can have
TCP, ABSTRACT_SOCKETS_AND_SIGNALS = 0b11, 0b11
SYSTEM = ("/usr", "/lib", "/lib64", "/bin", "/etc", "/proc", "/sys", "/dev/zero", "/dev/random", "/dev/urandom")


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def adopt() -> None:
    """Orphans below this process become its children. Linux alone can."""
    if sys.platform == "linux":
        _libc().prctl(SUBREAPER, 1, 0, 0, 0)


def die_with_parent() -> None:
    if sys.platform == "linux":
        _libc().prctl(DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)


def landlock() -> int:
    """The version of Landlock that the kernel offers; 0 where it has none."""
    return max(0, _libc().syscall(CREATE_RULESET, None, 0, 1)) if sys.platform == "linux" else 0


def confine(folder: str, readable: Iterable[str] = ()) -> None:
    """Hold this process to `folder`, for good; it may read the `readable` too. Does nothing without Landlock."""
    version = landlock()
    if not version:
        return
    libc, rights = _libc(), (1 << RIGHTS.get(version, 15)) - 1
    attributes = struct.pack("QQQ", rights, TCP * (version >= 4), ABSTRACT_SOCKETS_AND_SIGNALS * (version >= 6))
    size = 8 if version < 4 else 16 if version < 6 else 24
    ruleset = libc.syscall(CREATE_RULESET, attributes, size, 0)
    devices = [str(path) for path in Path("/dev").glob("nvidia*")]
    read = {path: right for whole in [*SYSTEM, *_installed()] for path, right in but_for(str(HERE), whole).items()}
    allowed = read | dict.fromkeys(readable, READ) | dict.fromkeys(["/dev/null", *devices], READ | 2)
    for path, right in (allowed | {folder: rights}).items():
        with suppress(OSError):  # not every system has them all
            descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
            right &= rights if os.path.isdir(path) else rights & OF_FILES
            libc.syscall(ADD_RULE, ruleset, 1, struct.pack("=Qi", right, descriptor), 0)
            os.close(descriptor)
    libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    _few_rights(libc)
    if ruleset < 0 or libc.syscall(RESTRICT_SELF, ruleset, 0):
        raise OSError(ctypes.get_errno(), "Landlock is there and does not take its rules")
    os.close(ruleset)
    refuse_what_stays()


def _few_rights(libc: ctypes.CDLL) -> None:
    """Of root's: those to read and write whosever file, where they are there, and no others."""
    found = ctypes.create_string_buffer(24)
    libc.capget(CAPABILITIES, found)
    effective, permitted, *_ = struct.unpack("6I", found.raw)
    libc.capset(CAPABILITIES, struct.pack("6I", effective & ANY_FILE, permitted & ANY_FILE, 0, 0, 0, 0))


def but_for(kept: str, whole: str) -> dict[str, int]:
    """Rights by path that let `whole` be read, but for the folder `kept`, of which the names are seen alone: the boards
    of an installed package, whose zoo is what submissions are scored on. A rule holds for all that lies below."""
    kept = os.path.realpath(kept)
    if kept == os.path.realpath(whole):
        return {}
    if not kept.startswith(os.path.join(os.path.realpath(whole), "")):
        return {whole: READ}
    rights = {whole: READ & ~READ_FILE}
    with os.scandir(whole) as entries:
        for entry in entries:
            rights |= {} if entry.is_symlink() else but_for(kept, entry.path)  # a rule follows it to where it points
    return rights


def _installed() -> list[str]:
    """Where Python, its packages and ours lie. Of the folder that ours lie in no more: it may hold anything."""
    ours = [str(Path(package.__file__).parent) for package in (attacks, benchmark)]  # type: ignore[arg-type]
    root = str(Path(ours[0]).parent)
    libraries = [path for path in os.environ.get("LD_LIBRARY_PATH", "").split(":") if path]
    paths = [*sysconfig.get_paths().values(), sys.prefix, sys.base_prefix, *sys.path, *libraries]
    return [*ours, *(path for path in paths if path not in ("", "/", root))]


def below(root: int) -> list[int]:
    """The processes that descend from this one and run."""
    parents, running = dict[int, int](), list[int]()
    for name in filter(str.isdecimal, os.listdir("/proc")):
        with suppress(OSError), open(f"/proc/{name}/stat", "rb", buffering=0) as file:
            state, parent = file.read().rpartition(b")")[2].split()[:2]
            parents[int(name)] = int(parent)
            if state not in b"ZX":
                running.append(int(name))
    found, new = set[int](), {root}
    while new := {pid for pid, parent in parents.items() if parent in new} - found:
        found |= new
    return [pid for pid in running if pid in found]


def end_below(root: int, group: int = 0) -> None:
    """Kill all processes that descend from this one, wherever they moved: stopped first, for what runs may start more.
    Without /proc, those of the process group. It returns when none of them runs."""
    if not os.path.isdir("/proc/self"):
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)
        return
    stopped: set[int] = set()
    while new := set(below(root)) - stopped:
        _signal(new, signal.SIGSTOP)
        stopped |= new
    while left := below(root):
        _signal(left, signal.SIGKILL)
        time.sleep(0.002)


def _signal(pids: Iterable[int], which: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, which)
