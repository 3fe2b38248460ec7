"""Names that are read from the source are those that it has."""

from benchmark import interpreters, listing, models
from benchmark.interpreters import entry_points


def test_the_literal_is_the_dictionary():
    assert listing.literal() == list(interpreters.INTERPRETERS)
    assert listing.names() == interpreters.names()
    assert listing.GROUP == entry_points.GROUP


def test_class_names_are_known_of_torchvisions_weights():
    assert models.class_names("resnet50", "IMAGENET1K_V1")[207] == "golden retriever"
    assert models.class_names("resnet50", "model.pth") == models.class_names("resnet20", "model.pth") == []
