"""Whether a fooling loss still falls: an attack ends where it does not."""

import math

PROGRESS = 0.01  # of the first loss, or of all that it has fallen by: less while it waits is none
ENOUGH = 0.01  # of the extent, above the least loss there is: nothing is left to gain
MEMORY = 0.9  # of the running mean of the loss
SLACK = 0.3  # of the divergence: below it, it is not used up
ALLOWED = 1.5  # times the divergence, within which progress counts


class Progress:
    """Whether the running mean of the loss, in units of its extent, has fallen in the last `patience` steps.

    Where a divergence is to be kept, steps count, and progress, only while it is within ALLOWED: above it λ falls, and
    the loss says nothing. `least`: the loss that cannot be beaten.
    """

    def __init__(self, patience: int, least: float = -math.inf) -> None:
        self.patience, self.least = patience, least
        self.mean = self.first = self.best = math.nan
        self.waited, self.stalled, self.gained = 0.0, False, False

    def ended(self, loss: float, excess: float = 1.0) -> bool:
        """Take a step's loss, and its divergence as a share of the allowed one; whether this is the step at which it
        has waited long enough: four times as long while the divergence is not used up, for λ still grows."""
        self.mean = loss if math.isnan(self.mean) else MEMORY * self.mean + (1 - MEMORY) * loss
        if math.isnan(self.first):
            self.first = self.best = self.mean
        if excess <= ALLOWED:
            self.waited += 0.25 if excess < SLACK else 1
        self.gained = excess <= ALLOWED and self.best - self.mean > PROGRESS * max(
            self.first - self.best, abs(self.first)
        )
        if self.gained:
            self.best, self.waited = self.mean, 0.0
        done = excess <= 1 and self.mean - self.least < ENOUGH
        if self.stalled or not (done or self.exhausted):
            return False
        self.stalled = True
        return True

    @property
    def exhausted(self) -> bool:
        """Whether it has waited as long as it may."""
        return self.waited >= self.patience

    def again(self) -> None:
        """On, with all of the patience: something has changed."""
        self.waited, self.stalled = 0.0, False

    def back(self, kept: float) -> None:
        """As `again`, from where the loss was `kept`."""
        self.mean = min(self.mean, kept)
        self.again()

    def lost(self, kept: float) -> bool:
        """Whether a tenth of what had been gained when the loss was `kept` has been lost again."""
        return self.mean - kept > 0.1 * (self.first - kept)
