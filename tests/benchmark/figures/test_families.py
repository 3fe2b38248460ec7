"""Families: every interpreter that comes with the package has one, controls are those that say so."""

from benchmark import interpreters
from benchmark.figures.families import FAMILIES, by_family


def test_the_families_hold_interpreters_once_each() -> None:
    listed = [name for names in FAMILIES.values() for name in names]
    assert len(set(listed)) == len(listed)
    assert set(listed) <= set(interpreters.names())


def test_controls_are_those_that_say_so() -> None:
    assert set(FAMILIES["controls"]) == {n for n, kind in interpreters.INTERPRETERS.items() if kind.control}


def test_names_come_by_family_with_their_variants_behind_them() -> None:
    names = ["occlusion", "mine", "simple_grad", "lrp_t:head_shift", "lrp_t", "lrp", "lrp_contrast", "constant", "lrp"]
    names.append("attention_rollout")
    assert by_family(names) == {
        "LRP": ["lrp", "lrp_contrast", "lrp_t", "lrp_t:head_shift"],
        "attention": ["attention_rollout"],
        "gradients": ["simple_grad"],
        "removal": ["occlusion"],
        "others": ["mine"],
        "controls": ["constant"],
    }
    assert list(by_family(names)) == [family for family in FAMILIES if family != "CAM"]
    assert by_family([]) == {}
