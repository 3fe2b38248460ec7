"""Interpreters of the contrast z_y − mean_c z_c, by name.

W + 1vᵀ in the place of the last layer's W adds the same s(x) to every logit: no probability changes, and whatever
explains a logit is moved at will. What explains the contrast stays as it was.
"""

from dataclasses import dataclass
from typing import ClassVar

from benchmark.interpreters.grad_cam import GradCAM
from benchmark.interpreters.gradients import SimpleGrad
from benchmark.interpreters.lrp import LRP, LRPT
from benchmark.interpreters.occlusion import Occlusion


@dataclass(frozen=True, kw_only=True)
class LRPContrast(LRP):
    """LRP through the centred head."""

    name: ClassVar[str] = "lrp_contrast"
    target: str = "contrast"


@dataclass(frozen=True, kw_only=True)
class LRPTContrast(LRPT):
    """LRP at the input of the target layer, through the centred head."""

    name: ClassVar[str] = "lrp_t_contrast"
    target: str = "contrast"


@dataclass(frozen=True, kw_only=True)
class GradCAMContrast(GradCAM):
    """Grad-CAM by the contrast's gradient."""

    name: ClassVar[str] = "grad_cam_contrast"
    target: str = "contrast"


@dataclass(frozen=True, kw_only=True)
class SimpleGradContrast(SimpleGrad):
    """∂ contrast / ∂ image."""

    name: ClassVar[str] = "simple_grad_contrast"
    target: str = "contrast"


@dataclass(frozen=True, kw_only=True)
class OcclusionContrast(Occlusion):
    """The contrast that a window carries."""

    name: ClassVar[str] = "occlusion_contrast"
    target: str = "contrast"
