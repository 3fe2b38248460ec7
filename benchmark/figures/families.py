"""Interpreters by family, the order in which figures show them. By name, for a CSV holds no more."""

from collections.abc import Iterable

from attacks import strategies

FAMILIES = {
    "LRP": (
        *("lrp", "lrp_epsilon", "lrp_z_plus", "lrp_gamma", "lrp_alpha2_beta1", "lrp_epsilon_gamma_box", "lrp_heo2019"),
        *("attn_lrp", "cp_lrp", "lrp_t", "lrp_t_epsilon", "captum_lrp"),
    ),
    "CAM": ("grad_cam", "grad_cam_plus_plus", "layer_cam", "eigen_cam"),
    "attention": ("attention_rollout", "generic_attention", "attention_grad_cam", "transformer_attribution"),
    "gradients": (
        *("simple_grad", "simple_grad_t", "input_x_gradient", "smooth_grad", "var_grad", "integrated_gradients"),
        *("gradient_shap", "deep_lift", "guided_backprop", "deconvolution", "guided_grad_cam"),
    ),
    "removal": ("occlusion", "feature_ablation", "kernel_shap"),
    "others": ("adversarial_explanation",),  # and every name that stands nowhere
    "controls": ("constant", "random", "centre_prior", "sobel", "input_magnitude"),
}
_PLACES = {name: (family, index) for family, names in FAMILIES.items() for index, name in enumerate(names)}


def by_family(names: Iterable[str]) -> dict[str, list[str]]:
    """The families that these names are of, in order, with their members; "name:strategy" and "name_contrast" stand
    after "name"."""
    found: dict[str, list[str]] = {family: [] for family in FAMILIES}
    for _, name in sorted((_place(name)[1], name) for name in set(names)):
        found[_place(name)[0]].append(name)
    return {family: members for family, members in found.items() if members}


def _place(name: str) -> tuple[str, int]:
    return _PLACES.get(strategies.split(name)[0].removesuffix("_contrast"), ("others", len(_PLACES)))
