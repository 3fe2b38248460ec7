"""Starts processes that leave its group and its session and would outlive it; its map holds their numbers."""

import os
import subprocess
import time

import torch


def daemon():
    """A double fork: init's child, in a session of its own."""
    read, write = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if pid := os.fork():
            os.write(write, str(pid).encode())
            os._exit(0)
        time.sleep(60)
        os._exit(0)
    os.wait()
    return int(os.read(read, 20))


def leaves_the_group(model, images, targets):
    pids = [subprocess.Popen(["sleep", "60"], start_new_session=True).pid, daemon()]
    return torch.tensor(pids, dtype=torch.float64)[:, None, None].expand(2, 2, 2)
