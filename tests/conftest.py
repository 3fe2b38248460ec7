"""One thread: the tests' tensors are small, and threads that wait for each other cost more than they bring."""

import gc
import os
import sys
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch; and of the processes that tests start
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # each of them would compile the whole package once more

sys.dont_write_bytecode = False  # as above, of this process
sys.path.insert(0, str(Path(__file__).parent / "performance"))
sys.path.insert(0, str(Path(__file__).parent))  # pretended_cuda


def pytest_collection_finish() -> None:
    import torch  # not by the process that only hands out tests

    torch.set_num_threads(1)
    gc.freeze()  # what was imported and collected, a million objects that every full collection would look through
