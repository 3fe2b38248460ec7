"""One thread: the tests' tensors are small, and threads that wait for each other cost more than they bring."""

import os
import sys
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch; and of the processes that tests start

import torch

torch.set_num_threads(1)
sys.path.insert(0, str(Path(__file__).parent / "performance"))
sys.path.insert(0, str(Path(__file__).parent))  # pretended_cuda
