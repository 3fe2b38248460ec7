"""Interpreters by name. `create("lrp_t", layer="features.34")(model, images, targets)` -> heatmaps (N, h, w)."""

from dataclasses import fields
from typing import Any

from attacks.errors import UserError, unknown
from benchmark.interpreters import entry_points
from benchmark.interpreters.adversarial_explanation import AdversarialExplanation
from benchmark.interpreters.aggregate import Aggregate
from benchmark.interpreters.attention_grad_cam import AttentionGradCAM
from benchmark.interpreters.attention_rollout import AttentionRollout
from benchmark.interpreters.base import Interpreter
from benchmark.interpreters.cam import EigenCAM, GradCAMPlusPlus, LayerCAM
from benchmark.interpreters.captum_lrp import CaptumLRP
from benchmark.interpreters.captum_methods import GradientShap, IntegratedGradients, SmoothGrad, VarGrad
from benchmark.interpreters.contrast import (
    GradCAMContrast,
    LRPContrast,
    LRPTContrast,
    OcclusionContrast,
    SimpleGradContrast,
)
from benchmark.interpreters.controls import CentrePrior, Constant, InputMagnitude, Random, Sobel
from benchmark.interpreters.deep_lift import DeepLift
from benchmark.interpreters.generic_attention import GenericAttention
from benchmark.interpreters.grad_cam import GradCAM
from benchmark.interpreters.gradients import InputXGradient, SimpleGrad, SimpleGradT
from benchmark.interpreters.guided import Deconvolution, GuidedBackprop, GuidedGradCAM
from benchmark.interpreters.lrp import (
    CPLRP,
    LRP,
    LRPT,
    AttnLRP,
    LRPAlpha2Beta1,
    LRPEpsilon,
    LRPEpsilonGammaBox,
    LRPGamma,
    LRPHeo2019,
    LRPTEpsilon,
    LRPZPlus,
)
from benchmark.interpreters.occlusion import FeatureAblation, KernelShap, Occlusion
from benchmark.interpreters.transformer_attribution import TransformerAttribution

INTERPRETERS: dict[str, type[Interpreter]] = {
    "lrp": LRP,
    "lrp_epsilon": LRPEpsilon,
    "lrp_z_plus": LRPZPlus,
    "lrp_gamma": LRPGamma,
    "lrp_alpha2_beta1": LRPAlpha2Beta1,
    "lrp_epsilon_gamma_box": LRPEpsilonGammaBox,
    "lrp_heo2019": LRPHeo2019,
    "attn_lrp": AttnLRP,
    "cp_lrp": CPLRP,
    "lrp_t": LRPT,
    "lrp_t_epsilon": LRPTEpsilon,
    "captum_lrp": CaptumLRP,
    "grad_cam": GradCAM,
    "grad_cam_plus_plus": GradCAMPlusPlus,
    "layer_cam": LayerCAM,
    "eigen_cam": EigenCAM,
    "attention_rollout": AttentionRollout,
    "generic_attention": GenericAttention,
    "transformer_attribution": TransformerAttribution,
    "attention_grad_cam": AttentionGradCAM,
    "simple_grad": SimpleGrad,
    "simple_grad_t": SimpleGradT,
    "input_x_gradient": InputXGradient,
    "guided_backprop": GuidedBackprop,
    "deconvolution": Deconvolution,
    "guided_grad_cam": GuidedGradCAM,
    "smooth_grad": SmoothGrad,
    "var_grad": VarGrad,
    "integrated_gradients": IntegratedGradients,
    "gradient_shap": GradientShap,
    "deep_lift": DeepLift,
    "occlusion": Occlusion,
    "feature_ablation": FeatureAblation,
    "kernel_shap": KernelShap,
    "adversarial_explanation": AdversarialExplanation,
    "aggregate": Aggregate,
    "lrp_contrast": LRPContrast,
    "lrp_t_contrast": LRPTContrast,
    "grad_cam_contrast": GradCAMContrast,
    "simple_grad_contrast": SimpleGradContrast,
    "occlusion_contrast": OcclusionContrast,
    "constant": Constant,
    "random": Random,
    "centre_prior": CentrePrior,
    "sobel": Sobel,
    "input_magnitude": InputMagnitude,
}
LEAST = {"samples": 1, "steps": 1, "cells": 2, "at_once": 1, "unrolled": 0, "seed": 0, "sigma": 0, "rho": 1e-12}
MOST = 2**31 - 1


def names() -> list[str]:
    """The names `create` accepts: the built-in ones, then those that installed packages register."""
    return [*INTERPRETERS, *(name for name in entry_points.names() if name not in INTERPRETERS)]


def kind(name: str) -> type[Interpreter]:
    """The class of that name. Raises `UserError` for an unknown name, or an entry point that cannot be used."""
    if name in INTERPRETERS:
        entry_points.refuse_clash(name)
        return INTERPRETERS[name]
    if name not in names():
        raise unknown("interpreter", name, names())
    return entry_points.load(name)


def create(name: str, **options: Any) -> Interpreter:
    """The interpreter of that name; `options` are the fields of its class. Unknown names are a `UserError`."""
    made = kind(name)
    allowed = [field.name for field in fields(made)]  # type: ignore[arg-type]
    for option in options:
        if option not in allowed:
            raise unknown(f"option of {name}", option, allowed)
    if name in INTERPRETERS:
        _check_range(name, options)
    return made(**options)


def _check_range(name: str, options: dict[str, Any]) -> None:
    """That no number is out of the range which the options of that name share; the rest is the classes' own."""
    for option, value in options.items():
        if option not in LEAST or not isinstance(value, (int, float)) or isinstance(value, bool):
            continue
        if not LEAST[option] <= value <= MOST:  # NaN, too
            allowed = f"{LEAST[option]}..{MOST}" if isinstance(value, int) else f"finite, at least {LEAST[option]}"
            raise UserError(f"{option} of {name} must be {allowed} (got {value})")


Aggregate.create = create
