"""The models that are looked into with the same adversarial images: clean, fooled, and the control of the foolings."""

from dataclasses import dataclass

from attacks.pixels import OnPixels
from benchmark.cells import Manipulation
from benchmark.dissection import attacked
from benchmark.dissection.attacked import on_pixels
from benchmark.entries import manipulations
from benchmark.entries.kind import Entry
from benchmark.entries.manipulations import MANIPULATIONS
from benchmark.entries.trained import TRAINED, clean_model, stored_model
from benchmark.run import Run

FINE_TUNING = "fine-tuning"  # the control, where a table names the fooling
CODE = (*manipulations.CODE, *attacked.CODE, "benchmark.dissection.victims")


@dataclass(frozen=True)
class Victim:
    """A clean model, or what a manipulation made of it; `control`: one without a fooling loss, of a run of its own."""

    model: str
    manipulation: Manipulation | None = None
    control: bool = False

    def __str__(self) -> str:
        return "/".join(part for part in self.columns().values() if part)

    def columns(self) -> dict[str, str]:
        """Where it stands in a table."""
        fooling, attacked = "", ""
        if self.manipulation is not None:
            made = self.manipulation
            fooling, attacked = (FINE_TUNING, "") if self.control else (made.fooling, made.attacked)
        return {"model": self.model, "fooling": fooling, "attacked": attacked}


def victim_needs(victim: Victim) -> dict[str, Entry]:
    model = {"model": Entry(TRAINED, victim.model)}
    made = victim.manipulation
    return model if made is None else model | {"manipulation": Entry(MANIPULATIONS, made)}


def victim_on_pixels(run: Run, victim: Victim) -> OnPixels:
    if victim.manipulation is None:
        return on_pixels(run, clean_model(run, victim.model))
    path = Entry(MANIPULATIONS, victim.manipulation).get(run)
    return on_pixels(run, stored_model(run, victim.model, path))
