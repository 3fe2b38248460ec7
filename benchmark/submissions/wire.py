"""What both sides of a submission's pipes share: how a request and an answer are written, and what both sides check.

A request is its length and what `torch.save` wrote of it: the child trusts the parent. An answer is two lengths, a JSON
header and safetensors, so that nothing the child sends is ever unpickled.
"""

import hashlib
import io
import os
import pkgutil
import re
import struct
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor, nn

from attacks.errors import UserError

LENGTH = struct.Struct(">Q")  # of a request
LENGTHS = struct.Struct(">QQ")  # of an answer's header and of its tensors
HEADER = 64 * 2**10  # bytes of an answer's header, at most
NO_MEMORY = re.compile("MemoryError|bad_alloc|(can't|cannot|not enough) (allocate )?memory", re.IGNORECASE)
NUMPY_TYPES = [type(np.dtype(code)) for code in np.typecodes["All"]]


class BrokenError(Exception):
    """A process can no longer be talked to; the text says what happened to it."""


Answer = tuple[dict[str, Any], dict[str, Tensor]]  # header and tensors
HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")  # of a module


def pack(request: dict[str, Any]) -> bytes:
    """A request as bytes. Raises `UserError` where it holds what cannot be pickled."""
    file = io.BytesIO()
    try:
        torch.save(request, file)
    except Exception as error:  # pickling runs the code of any class
        raise UserError(f"this cannot be sent to a submission's process: {one_line(str(error))}") from error
    return file.getvalue()


def unpack(data: bytes) -> dict[str, Any]:
    """What the parent packed. The child trusts the parent: every class that is named is let through."""
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(io.BytesIO(data))
        classes: list[Any] = [(pkgutil.resolve_name(name), name) for name in names]
        with torch.serialization.safe_globals([*classes, *NUMPY_TYPES]):
            return torch.load(io.BytesIO(data), weights_only=True)
    except Exception as error:
        raise UserError(f"this cannot be read in a submission's process: {one_line(str(error))}") from error


def one_line(text: str, most: int = 400) -> str:
    """Foreign text, fit for a message: one line, printable, at most `most` characters."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= most else f"{line[:most]} ..."


def content(tensor: Tensor) -> bytes:
    """The values of a tensor, bit for bit."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def tail(errors: IO[bytes]) -> str:
    """The end of what a process wrote to stderr, 400 bytes at most."""
    size = os.fstat(errors.fileno()).st_size
    return os.pread(errors.fileno(), 400, max(0, size - 400)).decode(errors="replace").strip()


def last_line(text: str) -> str:
    return one_line(text.splitlines()[-1]) if text else ""


def fingerprint(model: nn.Module) -> dict[str, str]:
    """What a submission must leave as it was: every parameter and buffer bit for bit, and the state of every module.

    From what it is, in words, to its digest: of requires_grad, type, shape and bytes; of mode and number of hooks.
    """
    digests = {}
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        head = f"{tensor.requires_grad} {tensor.dtype} {tuple(tensor.shape)}"
        digest = hashlib.sha256(head.encode())
        digest.update(content(tensor))
        digests[f"parameter or buffer {name!r}"] = digest.hexdigest()
    for name, module in model.named_modules():
        counts = [len(getattr(module, kind)) for kind in HOOKS]
        digests[f"training mode or hooks of {name!r}"] = f"{module.training} {counts} {module!r}"
    return digests


def check_form(heatmaps: Any, images: Tensor) -> None:
    """UserError unless these are heatmaps of these images: a floating (N, h, w), no finer than the images."""
    if not isinstance(heatmaps, Tensor):
        raise UserError(f"returned {type(heatmaps).__name__}, expected a Tensor")
    n, (height, width) = len(images), images.shape[-2:]
    shape = tuple(heatmaps.shape)
    if len(shape) != 3 or shape[0] != n or 0 in shape[1:]:
        raise UserError(f"returned shape {shape}, expected ({n}, h, w)")
    if shape[1] > height or shape[2] > width:
        raise UserError(f"returned shape {shape}, expected ({n}, h, w) with h <= {height}, w <= {width}")
    if not heatmaps.is_floating_point():
        raise UserError(f"returned {heatmaps.dtype}, expected a floating type")
