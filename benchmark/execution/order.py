"""The order of units of work: which may start, and whose error is another's as well."""

import heapq
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

Names = Mapping[str, Iterable[str]]  # the units that each one waits for


class Order:
    """Units by number, in the order given. One may start when all that it `needs` and all that it comes `after` have
    ended; an error of what it needs is its own. Names that are not among the units are there already."""

    def __init__(self, names: Sequence[str], needs: Names, after: Names) -> None:
        self._names, self._needs, place = names, needs, {name: i for i, name in enumerate(names)}
        self._waits, self._followers = [0] * len(names), defaultdict[int, list[int]](list)
        for i, name in enumerate(names):
            for other in {*needs.get(name, ()), *after.get(name, ())} & place.keys():
                self._waits[i] += 1
                self._followers[place[other]].append(i)
        self._ready = [i for i in range(len(names)) if not self._waits[i]]  # in order, so a heap
        self._inherited: dict[int, str] = {}
        self.unfinished = len(names)

    def ready(self) -> bool:
        return bool(self._ready)

    def next(self) -> int:
        """The first of those that may start."""
        return heapq.heappop(self._ready)

    def again(self, unit: int) -> None:
        """It may start once more."""
        heapq.heappush(self._ready, unit)

    def ended(self, unit: int, error: str) -> Iterator[tuple[int, str]]:
        """What ends with it: itself, and those that have its error and wait for nothing else, each with the error."""
        ends = [(unit, error)]
        while ends:
            unit, error = ends.pop()
            self.unfinished -= 1
            yield unit, error
            for follower in self._followers.pop(unit, ()):
                self._waits[follower] -= 1
                if error and self._names[unit] in self._needs.get(self._names[follower], ()):
                    self._inherited[follower] = error
                if not self._waits[follower] and follower in self._inherited:
                    ends.append((follower, self._inherited.pop(follower)))
                elif not self._waits[follower]:
                    self.again(follower)
