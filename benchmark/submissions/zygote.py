"""The keeper's own process: `python -m benchmark.submissions.zygote CONTROL PARENT`, started by `submissions.keeper`.

It imports what submissions and the harness need, then forks on request; foreign code is loaded in the forks alone
(`benchmark.submissions.sandbox`). It has one thread and never computes: a fork of an idle torch is sound. It adopts
what its forks leave behind, and when the parent is gone it ends all of them, and removes the last one's folder.
"""

import gc
import json
import os
import select
import socket
import sys
import tempfile
import traceback
from contextlib import suppress
from typing import Any

from benchmark import interpreters, models  # noqa: F401  (imported once, here, for every fork)
from benchmark.submissions import checks, confine  # noqa: F401
from benchmark.submissions.folder import remove
from benchmark.submissions.sandbox import serve


def _fork(request: dict[str, Any], descriptors: list[int], control: socket.socket) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        control.close()
        _serve(request, *descriptors)
        code = 0
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _serve(request: dict[str, Any], requests: int, answers: int, errors: int) -> None:
    """In the fork: a session of its own, an own folder for everything that is written, and no way out of it."""
    os.setsid()
    confine.die_with_parent()
    os.dup2(errors, 2)
    for number in (0, 1):  # locks and flags are an open file's, not a process's: not the one that all forks inherit
        os.dup2(null := os.open(os.devnull, os.O_RDWR), number)
        os.close(null)
    folder = request["folder"]
    os.chdir(folder)
    os.environ |= {"HOME": folder, "TMPDIR": folder}
    tempfile.tempdir = None
    confine.confine(folder, request["readable"])
    with open(requests, "rb") as incoming, open(answers, "wb") as outgoing:
        serve(incoming, outgoing)


def _reap(ended: dict[int, int]) -> None:
    """Take note of what has ended, adopted ones as well."""
    with suppress(ChildProcessError):
        while (found := os.waitpid(-1, os.WNOHANG))[0]:
            ended[found[0]] = os.waitstatus_to_exitcode(found[1])


def main() -> None:
    control, parent = socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2])
    control.set_inheritable(False)
    confine.adopt()
    gc.freeze()  # forks share what was imported
    control.sendall(json.dumps({"landlock": confine.landlock()}).encode())
    ended: dict[int, int] = {}
    pid, folder, inode = 0, "", -1
    while os.getppid() == parent:
        asked = select.select([control], [], [], 1.0)[0]
        _reap(ended)
        if not asked:
            continue
        data, descriptors, _, _ = socket.recv_fds(control, 2**20, 3)
        if not data:
            break
        request = json.loads(data)
        if "folder" in request:
            if inode >= 0:
                os.close(inode)
            ended.clear()
            folder = request["folder"]
            inode = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            pid = _fork(request, descriptors, control)
            answer: dict[str, Any] = {"pid": pid}
        else:
            answer = {"code": ended.get(request["pid"])}
        for descriptor in descriptors:
            os.close(descriptor)
        control.sendall(json.dumps(answer).encode())
    confine.end_below(os.getpid(), pid)
    if inode >= 0:
        remove(folder, inode)


if __name__ == "__main__":
    main()
