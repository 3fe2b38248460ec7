"""Can the explanations of this network be trusted? `run` from Python, `foolbench audit` from the command line."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmark.audit.findings import Audit
    from benchmark.audit.notebook import run
    from benchmark.audit.report import write

__all__ = ["Audit", "run", "write"]


def __getattr__(name: str) -> Any:  # torch is loaded on first use
    if name == "run":
        from benchmark.audit.notebook import run

        return run
    if name == "write":
        from benchmark.audit.report import write

        return write
    if name == "Audit":
        from benchmark.audit.findings import Audit

        return Audit
    raise AttributeError(f"module 'benchmark.audit' has no attribute {name!r}")
