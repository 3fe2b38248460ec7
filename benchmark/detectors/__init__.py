"""Detectors by name: was this model manipulated? `DETECTORS["logit_sum"]()(model, images, targets)` -> a score, higher
where it is more suspicious. One a file; a foreign one is a file as well (`benchmark.submissions.detecting`)."""

from benchmark.detectors.against_occlusion import AgainstOcclusion
from benchmark.detectors.aopc_drop import AOPCDrop
from benchmark.detectors.base import Detector
from benchmark.detectors.changed_maps import ChangedMaps
from benchmark.detectors.contrast_distance import ContrastDistance
from benchmark.detectors.disagreement import Disagreement
from benchmark.detectors.logit_sum import LogitSum
from benchmark.detectors.off_data import OffData

DETECTORS: dict[str, type[Detector]] = {
    "disagreement": Disagreement,
    "against_occlusion": AgainstOcclusion,
    "logit_sum": LogitSum,
    "off_data": OffData,
    "aopc_drop": AOPCDrop,
    "contrast_distance": ContrastDistance,
    "changed_maps": ChangedMaps,
}


def names() -> list[str]:
    """The built-in detectors."""
    return list(DETECTORS)
