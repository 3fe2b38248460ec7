"""Each model of a run is given images as its weights want them."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from attacks.errors import UserError
from benchmark import models
from benchmark.cells import Cell, Manipulation, View
from benchmark.entries.kind import Entry, Kind
from benchmark.entries.trained import clean_model
from benchmark.execution.preflight import check
from benchmark.run import Run, data_spec, dataset, of_model, tell
from benchmark.sections import Suite

OWN = {"inception_v3": 299, "efficientnet_v2_l": 480}
SPLITS = ("train", "dev", "test")


@pytest.fixture
def run(tmp_path):
    for split in SPLITS:
        for c in "ab":
            (tmp_path / "data" / split / c).mkdir(parents=True)
            pixels = np.random.default_rng(SPLITS.index(split) * 2 + ord(c)).integers(0, 256, (40, 40, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / split / c / "0.png")
    return Run(suite(), str(tmp_path / "store"), str(tmp_path / "data"))


def suite(names=("resnet50", *OWN), **data):
    weights = {name: {"weights": "IMAGENET1K_V1"} for name in names}
    return Suite(
        name="mine", dataset={"name": "image_folder"} | data, models=weights | {"regnet_y_400mf": {}},
        foolings=["location"], attacked=["lrp_t"], evaluated=["lrp"],
        recipes=[{"learning_rate": 1e-4, "lambda": 1, "steps": 1, "batch_size": 1}],
    )  # fmt: skip


def test_a_model_has_its_own_images_and_the_others_those_of_the_run(run):
    for name in ("resnet50", "regnet_y_400mf"):
        assert of_model(run, name) is run
        assert "transforms" not in data_spec(run, "test")
    for name, side in OWN.items():
        own, preset = of_model(run, name), models.preprocessing(name, "IMAGENET1K_V1")
        data = dataset(own, "test")
        assert of_model(run, name) is own
        assert of_model(own, name) is own
        assert (data.input_size, data.mean, data.std) == (side, tuple(preset.mean), tuple(preset.std))
        said = {"transforms": f"{name}/IMAGENET1K_V1", "input_size": side}
        assert data_spec(own, "test") == data_spec(run, "test") | said
        own.memo.unit["x"] = 1
        run.memo.unit.clear()
        assert not own.memo.unit


def test_a_process_that_was_told_of_the_data_knows_the_same(run):
    tell(run)
    told = {name: data_spec(of_model(run, name), "dev") for name in OWN}
    untold = replace(run)
    assert told == {name: data_spec(of_model(untold, name), "dev") for name in OWN}
    assert json.dumps(told)


@pytest.mark.parametrize(
    ("given", "side"), [({"input_size": 64}, 64), ({"transforms": "vit_b_16/IMAGENET1K_SWAG_E2E_V1"}, 384)]
)
def test_what_the_suite_says_of_all_models_goes_before(run, given, side):
    run = replace(run, suite=suite(**given))
    for name in OWN:
        assert dataset(of_model(run, name), "test").input_size == side
    assert (of_model(run, "inception_v3") is run) == ("transforms" in given)


def test_an_entry_is_made_with_the_images_of_its_model(run):
    seen = []
    kind = Kind(
        name="seen", title="see", code=("benchmark.cells",),
        make=lambda run, place, inputs, folder: seen.append(dataset(run, "test").input_size),
        spec=lambda run, place: {"place": str(place), "side": dataset(run, "test").input_size},
    )  # fmt: skip
    manipulation = Manipulation("inception_v3", "location", "lrp_t", 0)
    places = [
        "resnet50",
        "efficientnet_v2_l",
        View("inception_v3", "lrp"),
        manipulation,
        Cell(manipulation, "lrp"),
        "test",
    ]
    for place in places:
        Entry(kind, place).get(run)
        assert Entry(kind, place).receipt(run) is not None
    assert seen == [224, 480, 299, 299, 299, 224]


def test_the_preflight_tries_each_model_on_its_own_images(run):
    check(replace(run, suite=suite(["inception_v3"])))
    small = replace(run, suite=suite(["inception_v3"], input_size=32))
    with pytest.raises(UserError, match=r"models\.inception_v3: inception_v3 takes no images of 32 × 32"):
        check(small)


def test_a_model_beside_images_that_are_not_its_own_is_refused(run):
    with pytest.raises(UserError, match=r"models\.inception_v3: its weights want images of their own"):
        clean_model(run, "inception_v3")


@pytest.mark.parametrize("transforms", ["inception_v4/IMAGENET1K_V1", "inception_v3/V1", "inception_v3"])
def test_unknown_transforms_are_named(run, transforms):
    with pytest.raises(UserError, match=r"unknown (architecture of|weights of inception_v3 in) transforms"):
        dataset(replace(run, suite=suite(transforms=transforms)), "test")
