"""How one thing that Chainer 7.8.1 misses is named, judged and supplied."""

import dataclasses
from collections.abc import Callable


@dataclasses.dataclass(frozen=True)
class Item:
    """One thing that Chainer misses.

    Attributes:
        name: What is supplied or mended, under its full name.
        why: Since when it is missing, and what asks for it.
        missing: Whether it is missing here; nothing is supplied where it is not.
        supply: Supplies it.
    """

    name: str
    why: str
    missing: Callable[[], bool]
    supply: Callable[[], None]


class Items(list):
    """Items in the order in which they are supplied."""

    def add(
        self, name: str, why: str, missing: Callable[[], bool]
    ) -> Callable[[Callable[[], None]], Callable[[], None]]:
        """Decorate the function that supplies ``name``."""

        def decorate(supply):
            self.append(Item(name, why, missing, supply))
            return supply

        return decorate
