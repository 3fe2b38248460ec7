"""One thread: the tests' tensors are small, and threads that wait for each other cost more than they bring."""

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from zlib import crc32

import pytest

os.environ["OMP_NUM_THREADS"] = "1"  # before torch; and of the processes that tests start
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # each of them would compile the whole package once more

sys.dont_write_bytecode = False  # as above, of this process
sys.path.insert(0, str(Path(__file__).parent / "performance"))
sys.path.insert(0, str(Path(__file__).parent))  # pretended_cuda
gc.disable()  # until all is collected: next to nothing of it is ever let go


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    try:
        return (yield)
    finally:
        gc.enable()


def pytest_collection_finish() -> None:
    import torch  # not by the process that only hands out tests

    torch.set_num_threads(1)
    gc.freeze()  # what was imported and collected, a million objects that every full collection would look through
    gc.set_threshold(10_000, 10, 10)  # modules are all cycles of small dicts: 700 is reached by copying one network


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[object]) -> None:
    _seed(f"{fixturedef.baseid} {fixturedef.argname}")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> None:
    _seed(item.nodeid)


def _seed(name: str) -> None:
    """What a test or a fixture draws without a generator is the same in every run and order, and another's is other."""
    import torch

    torch.manual_seed(crc32(name.encode()))
