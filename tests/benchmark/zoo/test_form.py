"""What is packed as a difference comes back to the bit; what is no such thing is one line."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from attacks.errors import UserError
from benchmark.zoo.form import packed, unpacked

BITS = arrays(np.uint32, (2, 12))
ODD = np.array([0, 1 << 31, 0x7F800000, 0xFF800000, 0x7FC00001, 1, 0x80000001, 0xFFFFFFFF, 0x3F800000], np.uint32)


def states(bits: np.ndarray) -> list[dict[str, np.ndarray]]:
    """Two state dicts of the same form of any bits: matrices, a scalar, nothing, and whole numbers of 8 bytes."""
    return [
        {
            "b.weight": row[:6].view(np.float32).reshape(2, 3),
            "a": row[6:7].view(np.float32).reshape(()),
            "empty": row[:0].view(np.float32),
            "seen": row[8:12].copy().view(np.int64),
        }
        for row in bits
    ]


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(
        (a[k].shape, a[k].dtype, a[k].tobytes()) == (b[k].shape, b[k].dtype, b[k].tobytes()) for k in a
    )


@settings(max_examples=50, deadline=None)
@given(BITS | st.just(np.resize(ODD, (2, 12))))
def test_every_bit_comes_back(bits):
    fooled, clean = states(bits)
    assert same(unpacked(packed(fooled, clean), clean), fooled)


def test_what_is_near_is_small():
    clean = {"w": np.random.default_rng(0).normal(size=4096).astype(np.float32)}
    assert packed({"w": clean["w"] * np.float32(1 + 1e-6)}, clean).nbytes < 0.3 * clean["w"].nbytes


@pytest.mark.parametrize(
    "other", [{"v": np.zeros(3, np.float32)}, {"w": np.zeros(4, np.float32)}, {"w": np.zeros(3, np.int32)}]
)
def test_other_names_shapes_or_types_are_refused(other):
    with pytest.raises(UserError, match="by name, shape and type"):
        packed(other, {"w": np.zeros(3, np.float32)})


def test_values_of_two_bytes_are_refused():
    half = {"w": np.zeros(3, np.float16)}
    with pytest.raises(UserError, match="4 or 8 bytes"):
        packed(half, half)


def test_bytes_that_are_no_model_are_one_line():
    clean = {"w": np.zeros(3, np.float32)}
    for data in (b"", b"junk", packed({"v": np.ones(5, np.float32)}, {"v": np.zeros(5, np.float32)}).tobytes()):
        with pytest.raises(UserError, match="unreadable"):
            unpacked(np.frombuffer(data, np.uint8), clean)
