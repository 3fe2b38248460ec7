"""How a command begins that loads torch: with a line, for that takes seconds, and many on a busy machine."""

import sys


def loading(command: str) -> None:
    """Say so on stderr, unless torch is loaded already. Whatever can be checked without it comes before."""
    if "torch" not in sys.modules:
        sys.stderr.write(f"{command}: loading torch ...\n")
        sys.stderr.flush()
