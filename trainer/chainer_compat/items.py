"""One thing that Chainer 7.8.1 lacks: its name, whether it is missing, how to supply it."""

import dataclasses
from collections.abc import Callable


@dataclasses.dataclass(frozen=True)
class Item:
    """One thing that Chainer lacks.

    Attributes:
        name: Full name of what is supplied or repaired.
        why: Since when it is missing, and what needs it.
        missing: Returns whether it is missing here.
        supply: Supplies it.
    """

    name: str
    why: str
    missing: Callable[[], bool]
    supply: Callable[[], None]


class Items(list):
    """Items, in the order in which they are supplied."""

    def add(
        self, name: str, why: str, missing: Callable[[], bool]
    ) -> Callable[[Callable[[], None]], Callable[[], None]]:
        """Decorate the function that supplies ``name``."""

        def decorate(supply):
            self.append(Item(name, why, missing, supply))
            return supply

        return decorate
