"""The audit's own process: `python -m benchmark.audit.child`, started by `benchmark.audit.process`.

It reads one request, JSON, from stdin, and writes lines of JSON to a descriptor: "say", then "end" or "error". A
network from a file is foreign code and is run here alone, in a fork that is held to the state's folder and reads
nothing but what is installed, the file, its weights and the listed images (`benchmark.submissions.confine`); what it
starts ends with it. It runs beside the audit, so what it finds is its word: an audit is of a network that one means to
trust.
"""

import json
import os
import resource
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

import torch
from torch import nn

from attacks.errors import UserError, one_line
from benchmark import models
from benchmark.audit import network
from benchmark.audit import preprocess as preparing
from benchmark.audit.listing import File, Listing
from benchmark.audit.notebook import moved, read
from benchmark.audit.settings import Settings
from benchmark.audit.study import audit
from benchmark.execution.executor import chosen_device
from benchmark.submissions import confine
from benchmark.submissions.sandbox import FILE
from benchmark.submissions.wire import last_line


def main() -> None:
    """Fork the one that works, which has never computed, and end all that it leaves behind."""
    request = json.load(sys.stdin)
    confine.die_with_parent()
    confine.adopt()
    if pid := os.fork():
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        confine.end_below(os.getpid(), pid)
        os._exit(code if code >= 0 else 128 - code)
    confine.die_with_parent()
    code = 1
    try:
        _work(request)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _work(request: dict[str, Any]) -> None:
    os.setsid()
    lines = os.fdopen(request["lines"], "w", buffering=1)

    def say(text: str, kind: str = "say") -> None:
        lines.write(json.dumps({kind: text[:4000]}) + "\n")

    try:
        named = preparing.usual(request["model"]) if request["preprocess"] is None else request["preprocess"]
        form = preparing.create(named)
        if request["file"]:
            _confined(request)
        listing = _listing(request["listing"])
        given: dict[str, Any] = {
            name: tuple(v) if isinstance(v, list) else v for name, v in request["settings"].items()
        }
        settings = Settings(**{**given, "device": chosen_device(given["device"])})
        model = _network(request, len(listing.classes) or None, say)
        about = {**request["about"], "preprocess": f"{named}: {form}"}
        photographs = moved(read(listing, form), settings.device)
        model = network.ready(model, settings.device)
        audit(model, photographs, settings, Path(request["state"]), about, say, request["start"])
        say("", "end")
    except UserError as error:
        say(one_line(error), "error")


def _confined(request: dict[str, Any]) -> None:
    """A temporary folder in the state's, no core files, none that are huge, and Landlock where there is one."""
    state = request["state"]
    tempfile.tempdir = os.environ["TMPDIR"] = os.environ["HOME"] = state
    os.chdir(state)
    for limit, value in ((resource.RLIMIT_FSIZE, 4 * FILE), (resource.RLIMIT_CORE, 0)):
        hard = resource.getrlimit(limit)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(limit, (value, value))
    files = [path for part in ("attacked", "held") for path, _ in request["listing"][part]]
    confine.confine(state, [request["file"], *files, *([request["weights"]] if request["weights"] else [])])


def _network(request: dict[str, Any], classes: int | None, say: Any) -> nn.Module:
    weights = request["weights"]
    if not request["file"]:
        with network.checkpoint():
            return network.named(request["model"], weights, classes)
    file, before = Path(request["file"]), os.fstat(1).st_size
    model = network.from_file(file, request["attribute"], request["digest"], classes)
    sys.stdout.flush()
    sys.stderr.flush()
    if (size := os.fstat(1).st_size) > before:
        written = os.pread(1, 400, before).decode(errors="replace")
        say(f"{file.name} prints when it is imported, which is left out: {last_line(written)!r}, {size - before} bytes")
    if weights:
        with network.checkpoint():
            models.load(model, weights)
    return model


def _listing(given: dict[str, Any]) -> Listing:
    attacked, held = (tuple(File(Path(path), label) for path, label in given[part]) for part in ("attacked", "held"))
    return Listing(attacked, held, tuple(given["classes"]), given["parted"])


if __name__ == "__main__":
    torch.set_grad_enabled(True)
    main()
