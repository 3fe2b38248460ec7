"""The bytes of a zoo: a fooled model as what is other than in its clean model, exactly.

The values of a state dict, in the order of their names, as one row of 32-bit integers; less those of the clean model
(modulo 2³²), the sign in the lowest bit, so that small differences have small numbers; its bytes by significance, the
highest of which are mostly 0; compressed by zlib. Float32 comes back to the bit, NaN included.
"""

import zlib
from collections.abc import Mapping

import numpy as np

from attacks.errors import UserError

State = Mapping[str, np.ndarray]


def packed(state: State, clean: State) -> np.ndarray:
    """(n,) uint8. Raises `UserError` where the names, shapes or types of both are not the same."""
    form = {name: (value.shape, value.dtype) for name, value in state.items()}
    if form != {name: (value.shape, value.dtype) for name, value in clean.items()}:
        raise UserError("a fooled model of a zoo must have the weights of its clean model, by name, shape and type")
    change = _row(state) - _row(clean)
    folded = (change << 1) ^ (change >> 31)
    planes = np.ascontiguousarray(folded.view(np.uint8).reshape(-1, 4).T)
    return np.frombuffer(zlib.compress(planes.tobytes(), 9), np.uint8)


def unpacked(data: np.ndarray, clean: State) -> dict[str, np.ndarray]:
    """The state dict that was `packed`. Raises `UserError` where the bytes are not such a one."""
    row = _row(clean)
    try:
        planes = np.frombuffer(zlib.decompress(data.tobytes()), np.uint8).reshape(4, len(row))
    except (zlib.error, ValueError) as error:
        raise UserError(f"a fooled model of the zoo is unreadable ({error})") from error
    folded = np.ascontiguousarray(planes.T).reshape(-1).view(np.uint32)
    change = (folded >> 1).view(np.int32) ^ -(folded & 1).view(np.int32)
    values, state, done = (row + change).view(np.uint8), {}, 0
    for name, like in sorted(clean.items()):
        state[name] = values[done : done + like.nbytes].view(like.dtype).reshape(like.shape)
        done += like.nbytes
    return state


def _row(state: State) -> np.ndarray:
    """(n,) int32; whose types have 4 or 8 bytes."""
    values = [np.ascontiguousarray(value).reshape(-1) for _, value in sorted(state.items())]
    if any(value.itemsize % 4 for value in values):
        raise UserError("a model of a zoo must have values of 4 or 8 bytes")
    return np.concatenate([value.view(np.int32) for value in values])
