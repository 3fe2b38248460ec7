"""What the tests of the checks spoil, each in one way, and what they then look at."""

from torch import Tensor, nn

from benchmark import interpreters

good = interpreters.create("simple_grad")  # the plain gradient, which passes


def raw(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    return good.attribute(model, images, targets).abs().sum(1).detach()


def errors(found) -> dict[str, str]:
    """The messages of all errors, by check."""
    return {finding.check: finding.message for finding in found if not finding.ok and finding.severity == "error"}
