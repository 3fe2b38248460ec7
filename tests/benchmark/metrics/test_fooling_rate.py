import pytest
import torch

from attacks.errors import UserError
from attacks.heatmaps import blank
from benchmark.metrics.fooling_rate import fooling_rate


def test_fooling_rate_is_the_share_of_the_images() -> None:
    assert fooling_rate(torch.tensor([True, False, True, True])).item() == 0.75
    assert fooling_rate(torch.tensor([[True, False], [True, True]])).tolist() == [1, 0.5]
    assert fooling_rate(torch.zeros(0, dtype=torch.bool)).isnan()


@pytest.mark.parametrize("success", [torch.ones(3), torch.tensor(True)], ids=["not boolean", "no images"])
def test_fooling_rate_takes_only_decisions_per_image(success: torch.Tensor) -> None:
    with pytest.raises(UserError, match="success must be boolean"):
        fooling_rate(success)


def test_a_constant_map_is_blank() -> None:
    maps = torch.stack([torch.zeros(3, 3), torch.full((3, 3), 0.7), torch.arange(9.0).view(3, 3), torch.zeros(3, 3)])
    maps[3, 1, 1] = torch.nan
    assert blank(maps).tolist() == [True, True, False, False]
