"""Which process of which machine: who is gone, and what it left."""

import hashlib
import os
import socket
from contextlib import suppress
from pathlib import Path


def host() -> str:
    """Where process numbers mean the same: containers may share a host's name, but not its processes."""
    spaces = [socket.gethostname()]
    with suppress(OSError):  # Linux has both
        spaces += [Path("/proc/sys/kernel/random/boot_id").read_text().strip(), os.readlink("/proc/self/ns/pid")]
    return " ".join(spaces)


def lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def here() -> str:
    return hashlib.sha256(host().encode()).hexdigest()[:8]


def orphaned(name: str) -> bool:
    """Whether a temporary folder of that name is of a process of this machine that is gone."""
    parts = name.split("-")
    return len(parts) > 3 and parts[1] == here() and parts[2].isdecimal() and not lives(int(parts[2]))
