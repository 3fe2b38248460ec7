"""Imports a module beside its own, which its digest would not know."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from frozen_in_memory import gradient as imports_beside_itself  # noqa: F401
