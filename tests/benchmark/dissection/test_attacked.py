"""Adversarial images of a clean model."""

import torch


def test_attacks_start_from_images_that_the_model_has_right_and_aim_elsewhere(done):
    found, model = done.found, done.clean
    assert 1 <= len(found["images"]) <= 10
    assert torch.equal(model(found["images"]).argmax(1), found["labels"])
    assert (found["labels"] != found["targets"]).all()
    assert (found["attacked"] - found["images"]).abs().max() <= 0.2 + 1e-6
    assert float(found["attacked"].min()) >= 0
    assert float(found["attacked"].max()) <= 1
