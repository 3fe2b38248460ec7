"""Stability, ranks and differences on cells small enough to do by hand, and each reason not to be ranked."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from benchmark.intervals import bootstrap_mean
from benchmark.leaderboards import ranking
from benchmark.leaderboards.ranking import FILLS, Attack


def attack(fooling: str, attacked: str, seed: int, fsr: list[int], clean: list[int], null: list[int]) -> Attack:
    return Attack("net", fooling, attacked, seed, bootstrap_mean(np.column_stack([fsr, clean, null]).astype(float)))


def test_the_worst_attack_counts_seeds_are_averaged_and_chance_is_taken_off():
    none, quarter = [0, 0, 0, 0], [1, 0, 0, 0]
    attacks = [
        attack("location", "own", 0, [1, 1, 1, 0], none, quarter),
        attack("location", "own", 1, [1, 1, 0, 0], none, quarter),
        attack("location", "other", 0, [1, 1, 1, 1], none, quarter),
        attack("location", "other", 1, [0, 0, 0, 0], none, quarter),
        attack("center_mass", "own", 0, [0, 0, 0, 0], quarter, none),  # below chance: to do nothing is worse
        attack("top_k", "own", 0, [1, 1, 1, 1], [1, 1, 1, 1], none),  # met by the clean map: says nothing
    ]
    worst, silent = ranking.worst_attacks(attacks)
    assert silent == 1
    assert {place[1]: value for place, (value, _) in worst.items()} == {
        "location": pytest.approx((0.625 - 0.25) / 0.75),
        "center_mass": 0.0,
    }
    value, replicates = ranking.stability(worst)
    assert value == pytest.approx(1 - 0.5 / 2)
    assert replicates.max() <= 1


@pytest.mark.parametrize("order", [1, -1])
def test_chance_is_each_attacks_own(order):
    """Of a backdoor an unrelated map counts only where the prediction was switched, which attacks do unlike."""
    none, half, all_ = [0] * 4, [1, 1, 0, 0], [1] * 4
    attacks = [attack("red_herring", "a", 0, none, none, none), attack("red_herring", "b", 0, [1, 1, 1, 0], none, half)]
    ((value, _),) = ranking.worst_attacks(attacks[::order])[0].values()
    assert value == pytest.approx((0.75 - 0.5) / 0.5)
    told = ranking.worst_attacks([attacks[0], attack("red_herring", "b", 0, all_, none, all_)][::order])
    assert (told[0]["net", "red_herring"][0], told[1]) == (0.0, 0)  # the other says nothing


def test_replicates_draw_seeds_as_well_as_images():
    all_or_nothing = [attack("location", "own", seed, [seed] * 8, [0] * 8, [0] * 8) for seed in (0, 1)]
    worst, _ = ranking.worst_attacks(all_or_nothing)
    ((value, replicates),) = worst.values()
    assert value == 0.5
    assert set(np.unique(replicates)) == {0.0, 0.5, 1.0}  # both seeds 0, one of each, both 1
    assert abs((replicates == 0.5).mean() - 0.5) < 0.06


def test_difference_is_paired_over_images():
    half = [1, 0] * 20
    a, _ = ranking.worst_attacks([attack("location", "own", 0, half, [0] * 40, [0] * 40)])
    b, _ = ranking.worst_attacks([attack("location", "own", 0, [0, *half[1:]], [0] * 40, [0] * 40)])
    same, other = ranking.difference(a, a), ranking.difference(b, a)
    assert (same["difference"], same["difference_low"], same["difference_high"], same["p"]) == (0, 0, 0, 1)
    assert other["difference"] == pytest.approx(1 / 40)
    assert 0 <= other["difference_low"] < other["difference_high"] < 0.1  # unpaired, it would reach below -0.1
    deviation = np.sqrt(1 / 40 * 39 / 40 / 40)  # of the mean of 40 draws of a 1 among 40
    assert other["p"] == pytest.approx(2 * norm.sf(1 / 40 / deviation), rel=0.1)
    nothing = ranking.difference(a, {})
    assert nothing["places"] == 0
    assert np.isnan(nothing["difference"])


def test_holm_by_hand():
    assert ranking.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert ranking.holm([]) == []
    assert ranking.holm([0.9, 0.8]) == [1.0, 1.0]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_never_falls_below_p_nor_turns_the_order(p):
    adjusted = ranking.holm(p)
    assert all(a >= b for a, b in zip(adjusted, p, strict=True))
    order = np.argsort(p, kind="stable")
    assert (np.diff(np.array(adjusted)[order]) >= 0).all()


def test_ranks_share_ties_and_their_intervals_follow_the_resamples():
    n = 60
    cells = {"best": [0] * n, "same": [0] * n, "near": [1] + [0] * (n - 1), "last": [1] * n}
    worst = {
        name: ranking.worst_attacks([attack("location", "own", 0, fsr, [0] * n, [0] * n)])[0]
        for name, fsr in cells.items()
    }
    ranks = ranking.ranks(worst)
    assert ranks["best"] == ranks["same"] == (1, 1, 1)
    assert ranks["near"] == (3, 1, 3)  # the one image is not drawn in a third of the resamples
    assert ranks["last"] == (4, 4, 4)
    pairs = ranking.differences(worst)
    assert len(pairs) == 6
    assert {row["other"] for row in pairs if row["interpreter"] == "best"} == {"same", "near", "last"}
    assert all(row["difference"] >= 0 for row in pairs)
    assert next(row for row in pairs if row["other"] == "last")["p_holm"] < 0.05


GOOD = {"randomised": [0.1, 0.2], "other_class": [0.3, 0.2], "unrelated": [0.1, 0.1]}


def card(control: bool = False, aopc: float = 1.0, **changed: object) -> dict:
    shown = GOOD | {f"aopc_{fill}": [aopc, aopc + 0.1] for fill in FILLS} | changed
    return {"control": control, "gate": {"net": shown}}


@pytest.mark.parametrize(
    ("candidate", "reason"),
    [
        (card(), ""),
        (card(control=True), "control"),
        ({"gate": {}}, "no gate on net"),
        (card(randomised=[0.9, 0.9]), "hardly depends on the parameters (0.89, allowed below 0.5)"),
        (card(other_class=[1.0, 1.0]), "hardly depends on the class (1.00, allowed below 0.9)"),
        (card(unrelated=[1.0, 1.0]), "hardly depends on the parameters (1.00, allowed below 0.5)"),
        (card(aopc=0.0), "AOPC beats every control with 0 of 3 fills (2 needed)"),
        (card(aopc_noise=[0.0, 0.0], aopc_blur=[0.0, 0.0]), "AOPC beats every control with 1 of 3 fills (2 needed)"),
        (card(aopc_noise=[0.0, 0.0]), ""),
    ],
)
def test_the_gate_says_why(candidate, reason):
    cards = {"new": candidate, "weak": card(control=True, aopc=0.2), "weaker": card(control=True, aopc=0.1)}
    eligible, why = ranking.eligibility("new", cards, ["net"], errors=[])
    assert eligible == (not reason)
    assert why.startswith(reason)
    assert (why == "") == (reason == "")


def with_contrast(made: dict, aopc: float) -> dict:
    shown = made["gate"]["net"] | {f"aopc_{fill}_contrast": [aopc, aopc + 0.1] for fill in FILLS}
    return made | {"gate": {"net": shown}}


@pytest.mark.parametrize(("logit", "contrast", "eligible"), [(0.0, 1.0, True), (1.0, 0.0, False)])
def test_the_gate_reads_the_contrast_whatever_the_logits_say(logit, contrast, eligible):
    cards = {"new": with_contrast(card(aopc=logit), contrast), "weak": with_contrast(card(control=True, aopc=0.5), 0.5)}
    assert ranking.gate_score(cards) == "contrast"
    assert ranking.eligibility("new", cards, ["net"], errors=[])[0] == eligible


def test_one_card_from_before_the_contrast_and_all_are_held_to_the_logit():
    old = card(control=True, aopc=0.5)
    for new, eligible in ((with_contrast(card(aopc=0.0), 1.0), False), (with_contrast(card(aopc=1.0), 0.0), True)):
        cards = {"new": new, "old": old}
        assert ranking.gate_score(cards) == "logit"
        assert ranking.eligibility("new", cards, ["net"], errors=[])[0] == eligible


def test_a_failed_cell_is_a_reason():
    found = ranking.eligibility("new", {"new": card()}, ["net"], errors=["no rule", "no rule"])
    assert found == (False, "2 cells failed, first: no rule")


SAME = {"gate_twin": {"net": {"correlation": [1.0, 0.999]}}}
TOLD = "another map where only the order of the classes is another (correlation"


def twins(least: float, again: float = 1.0, **more: object) -> dict:
    shown = {"correlation": {"least": least, "where": "net/location/lrp/0"}, "again": {"least": again, "where": "net"}}
    return {"twins": {"asked": 2, **shown, **more}}


@pytest.mark.parametrize(
    ("shown", "least", "reason"),
    [
        ({}, None, ""),  # results from before
        ({"gate_twin": {"net": {"unchecked": "no head"}}, "twins": {"asked": 1, "unchecked": ["no head"]}}, None, ""),
        (SAME | twins(0.995), 0.995, ""),
        (
            {"gate_twin": {"net": {"correlation": [1.0, 0.0]}}} | twins(1.0),
            0.5,
            f"PERMUTED_TWIN: {TOLD} 0.50 on net at the gate, needed 0.99)",
        ),
        (SAME | twins(0.25), 0.25, f"PERMUTED_TWIN: {TOLD} 0.25 on net/location/lrp/0, needed 0.99)"),
        (
            SAME | twins(1.0, 0.5),
            0.9995,
            "ASKED_AGAIN: another map than was scored (correlation 0.50 on net, needed 0.99)",
        ),
        (SAME | twins(1.0, errors=["net: gone"]), 0.9995, "1 permuted twins failed, first: net: gone"),
    ],
)
def test_who_has_another_map_of_the_twin_is_not_ranked(shown, least, reason):
    cards = {"new": card() | shown, "weak": card(control=True, aopc=0.2)}
    assert ranking.eligibility("new", cards, ["net"], errors=[]) == (not reason, reason)
    found = ranking.least_twin(cards["new"])
    assert (found and found[0]) == (least and pytest.approx(least))


PLACES = {("net", "location"), ("net", "top_k")}


@pytest.mark.parametrize(
    ("aimed", "flags", "reason"),
    [
        ([], [], "nothing was aimed at it"),  # it says that it cannot be differentiated: no rank for a hidden gradient
        ([(("net", "location"), False)], [], "not attacked by its own gradient"),
        (
            [(("net", "location"), True)],  # where the attack cost too much and never ended: no rank for that either
            [],
            "not attacked by its own gradient in 1 of 2 places, first net/top_k",
        ),
        ([(place, True) for place in PLACES], ["ZERO_SECOND_ORDER"], "its gradient by the weights is zero or wrong"),
        ([(place, True) for place in PLACES], ["LOGIT_SHIFT"], ""),
    ],
)
def test_what_was_not_attacked_as_hard_as_we_can_is_not_ranked(aimed, flags, reason):
    found = ranking.unattacked(aimed, PLACES, flags)
    assert found == reason
    cards = {"new": card(), "weak": card(control=True, aopc=0.2)}
    assert ranking.eligibility("new", cards, ["net"], [], found) == (not reason, reason)


def test_a_level_counts_whole_attacks_within_it_and_never_falls_as_it_grows():
    none = [0] * 4
    attacks = [
        attack("location", "free", 0, [1, 0, 0, 0], none, none)._replace(drop=0.0, changed=0.0),
        attack("location", "cheap", 0, [1, 1, 1, 0], none, none)._replace(drop=0.0, changed=0.01),  # one each way
        attack("location", "cheap", 1, [1, 0, 0, 0], none, none)._replace(drop=0.8, changed=0.02),
        attack("location", "dear", 0, [1, 1, 1, 1], none, none)._replace(drop=5.0, changed=0.1),
        attack("location", "unknown", 0, [1, 1, 1, 0], none, none),
    ]
    levels = {level: ranking.worst_attacks(attacks, level)[0]["net", "location"][0] for level in (0, 0.3, 0.5, 2, 5)}
    assert levels == {0: 0.25, 0.3: 0.25, 0.5: 0.5, 2: 0.5, 5: 1.0}
    assert ranking.worst_attacks(attacks)[0]["net", "location"][0] == 1.0
    nothing = ranking.worst_attacks(attacks[-1:], 2)[0]["net", "location"]  # the model as it is costs nothing
    assert (nothing[0], nothing[1].max()) == (0.0, 0.0)
