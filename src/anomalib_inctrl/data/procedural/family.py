"""What a family of surfaces or objects is: the frame in which all of them are drawn."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from typing_extensions import Self


class Rendering(NamedTuple):
    """A batch of pictures of one category, as the scene is before a camera takes it.

    Attributes:
        image (np.ndarray): ``(n, side, side, 3)``, ``float32`` in ``[0, 1]``.
        inside (np.ndarray): ``(n, side, side)``, ``float32`` in ``[0, 1]``: 1 on the object, 0 on the background; all
            ones for a surface.
    """

    image: np.ndarray
    inside: np.ndarray


class Family(ABC):
    """A category, drawn from a family by fixing the parameters that all its members share.

    What differs between two normal pictures of the category (phase, position, turn, random detail) is drawn anew for
    each of them by :meth:`render`.
    """

    NOUNS: ClassVar[tuple[str, ...]]
    """What a caption may call the thing."""

    FAULTS: ClassVar[tuple[str, ...]] = ()
    """Structural faults that :meth:`render` can draw, such as a missing or a doubled part."""

    @classmethod
    @abstractmethod
    def sample(cls, generator: np.random.Generator) -> Self:
        """Draw the parameters of a new category."""

    def sibling(self, generator: np.random.Generator) -> Self:
        """Draw another category of the family, as like this one in everything beside the thing itself as can be."""
        return self.sample(generator)

    @abstractmethod
    def render(
        self,
        generator: np.random.Generator,
        count: int,
        side: int,
        fault: str | None = None,
    ) -> Rendering:
        """Draw members of the category.

        With generators in equal states, a rendering with a fault equals the one without wherever the fault is not:
        that is how the exact mask of a fault is found.

        Args:
            generator (np.random.Generator): Source of the normal variation, and of the fault's place.
            count (int): Number of pictures ``n``.
            side (int): Height and width in pixels.
            fault (str | None): One of :attr:`FAULTS`, drawn into every picture.

        Returns:
            Rendering: Pictures and where the object is.
        """
