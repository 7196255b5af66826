"""Categories of generated pictures: normal members, anomalous ones with exact masks, and the name of their colour."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from anomalib_inctrl.data.procedural.camera import Camera
from anomalib_inctrl.data.procedural.damage import DAMAGES, GLOBAL_DAMAGES, apply_damage, changed_mask
from anomalib_inctrl.data.procedural.glyphs import GLYPHS
from anomalib_inctrl.data.procedural.objects import OBJECTS
from anomalib_inctrl.data.procedural.surfaces import SURFACES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anomalib_inctrl.data.procedural.family import Family

FAMILIES: tuple[type[Family], ...] = (*SURFACES, *OBJECTS, *GLYPHS)
"""All families of surfaces and objects."""

LOCAL_KINDS: tuple[str, ...] = tuple(DAMAGES)
"""Kinds of damage to a part of the picture, which every category can have."""

GLOBAL_KINDS: tuple[str, ...] = tuple(GLOBAL_DAMAGES)
"""Kinds of change to the whole surface or object."""

OTHER = "other_object"
"""Kind of anomaly: a member of another category of the same family, in the same place and light."""

KINDS = (0.5, 0.32, 0.18)
"""Shares of surfaces, objects and glyphs among categories drawn at random."""

_ATTEMPTS = 4  # at drawing a fault that shows
_KINDS_TRIED = 8
_LEAST_FAULT = 1e-3  # share of the picture that a fault must change


class Pictures(NamedTuple):
    """A batch of pictures.

    Attributes:
        images (np.ndarray): ``(n, side, side, 3)``, ``uint8``.
        masks (np.ndarray): ``(n, side, side)``, ``bool``; where the picture is anomalous.
        kinds (tuple[str, ...]): Kind of anomaly of every picture.
    """

    images: np.ndarray
    masks: np.ndarray
    kinds: tuple[str, ...]


@dataclass(frozen=True)
class Category:
    """One kind of surface or object under one kind of camera.

    Args:
        family: The family with the category's own parameters.
        camera: Light, colours, sharpness and noise of the category's pictures.
    """

    family: Family
    camera: Camera

    @classmethod
    def sample(
        cls,
        generator: np.random.Generator,
        family: type[Family] | None = None,
        kinds: tuple[float, float, float] = KINDS,
    ) -> Category:
        """Draw a category, of the given family or of any.

        Kinds of things are drawn first and families second, so that surfaces, objects and glyphs keep their shares.

        Args:
            generator (np.random.Generator): Source of everything random.
            family (type[Family] | None): One of :data:`FAMILIES`; drawn if not given.
            kinds (tuple[float, float, float]): Shares of surfaces, objects and glyphs, which sum to 1.
        """
        if family is None:
            kind = (SURFACES, OBJECTS, GLYPHS)[generator.choice(3, p=kinds)]
            family = kind[generator.integers(len(kind))]
        return cls(family.sample(generator), Camera.sample(generator))

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of anomalies that the category can have."""
        return (*self.family.FAULTS, *LOCAL_KINDS, *GLOBAL_KINDS, *(() if self.is_surface else (OTHER,)))

    @property
    def is_surface(self) -> bool:
        """Whether the picture shows a surface from edge to edge."""
        return isinstance(self.family, SURFACES)

    def draw_kind(self, generator: np.random.Generator) -> str:
        """Draw a kind of anomaly: mostly local damage, sometimes a structural fault or a change of the whole.

        Of a glyph, whose meaning is its shape, the most common anomaly is another glyph.
        """
        pools = (LOCAL_KINDS, self.family.FAULTS or LOCAL_KINDS, GLOBAL_KINDS if self.is_surface else (OTHER,))
        pool = pools[generator.choice(3, p=(0.3, 0.2, 0.5) if isinstance(self.family, GLYPHS) else (0.6, 0.2, 0.2))]
        return pool[generator.integers(len(pool))]

    def draw_normal(self, generator: np.random.Generator, count: int, side: int) -> np.ndarray:
        """Draw normal members: ``uint8`` of shape ``(count, side, side, 3)``."""
        return self.camera.take(generator, self.family.render(generator, count, side).image)

    def draw_anomalous(
        self,
        generator: np.random.Generator,
        kinds: Sequence[str],
        side: int,
        donor: Category | None = None,
    ) -> Pictures:
        """Draw anomalous members, one for each kind.

        A kind that does not show on a member, such as loss of detail where there is none, gives way to local damage.

        Args:
            generator (np.random.Generator): Source of everything random.
            kinds (Sequence[str]): Kinds out of :attr:`kinds`.
            side (int): Height and width in pixels.
            donor (Category | None): Category that lends foreign bodies; drawn if not given.

        Returns:
            Pictures: Images, masks, and the kinds that were drawn, in the order of ``kinds``.

        Raises:
            ValueError: If the category can't have one of the kinds.
            RuntimeError: If an anomaly stays invisible however often it is drawn.
        """
        donor = donor or Category.sample(generator)
        images, masks, drawn = zip(*(self._draw_visible(generator, k, side, donor) for k in kinds), strict=True)
        return Pictures(self.camera.take(generator, np.concatenate(images)), np.concatenate(masks), drawn)

    def _draw_visible(
        self,
        generator: np.random.Generator,
        kind: str,
        side: int,
        donor: Category,
    ) -> tuple[np.ndarray, np.ndarray, str]:
        for attempt in range(_KINDS_TRIED):
            if attempt:
                kind = LOCAL_KINDS[generator.integers(len(LOCAL_KINDS))]
            try:
                return *self._draw_kind(generator, kind, side, donor), kind
            except RuntimeError:
                continue
        msg = f"No damage shows on a {self.family.NOUNS[0]}; {_KINDS_TRIED} kinds were tried."
        raise RuntimeError(msg)

    def _draw_kind(
        self,
        generator: np.random.Generator,
        kind: str,
        side: int,
        donor: Category,
    ) -> tuple[np.ndarray, np.ndarray]:
        if kind in self.family.FAULTS:
            return self._draw_fault(generator, kind, side)
        if kind == OTHER and not self.is_surface:
            other = self.family.sibling(generator).render(generator, 1, side)
            return other.image, (other.inside > 0.5) | (other.inside.max() < 0.5)
        if kind not in self.kinds:
            msg = f"A {self.family.NOUNS[0]} has no anomaly of kind {kind!r}; there are {', '.join(self.kinds)}."
            raise ValueError(msg)
        clean = self.family.render(generator, 1, side)
        foreign = donor.family.render(generator, 1, side).image
        return apply_damage(generator, kind, clean.image, clean.inside, foreign)

    def _draw_fault(self, generator: np.random.Generator, fault: str, side: int) -> tuple[np.ndarray, np.ndarray]:
        """Draw a member twice, with and without the fault; what differs is its mask."""
        for _ in range(_ATTEMPTS):
            seed = int(generator.integers(2**63))
            clean, faulty = (self.family.render(np.random.default_rng(seed), 1, side, f).image for f in (None, fault))
            mask = changed_mask(clean, faulty)
            if mask.mean() >= _LEAST_FAULT:
                return faulty, mask
        msg = f"No visible {fault!r} on a {self.family.NOUNS[0]} in {_ATTEMPTS} attempts."
        raise RuntimeError(msg)


_COLOURS = {
    "black": (0.08, 0.08, 0.08), "dark grey": (0.27, 0.27, 0.27), "grey": (0.5, 0.5, 0.5),
    "light grey": (0.74, 0.74, 0.74), "white": (0.94, 0.94, 0.94), "red": (0.75, 0.15, 0.15),
    "dark red": (0.4, 0.1, 0.1), "pink": (0.9, 0.6, 0.65), "orange": (0.9, 0.5, 0.15), "brown": (0.42, 0.28, 0.17),
    "beige": (0.82, 0.72, 0.58), "yellow": (0.9, 0.82, 0.25), "green": (0.25, 0.6, 0.25),
    "dark green": (0.1, 0.3, 0.14), "olive": (0.45, 0.45, 0.2), "turquoise": (0.25, 0.7, 0.7),
    "blue": (0.2, 0.35, 0.75), "dark blue": (0.1, 0.14, 0.4), "light blue": (0.6, 0.75, 0.9),
    "purple": (0.5, 0.25, 0.6),
}  # fmt: skip


def name_colour(images: np.ndarray) -> str:
    """Name the mean colour of pictures ``(n, side, side, 3)`` in ``uint8`` by a common word."""
    mean = images.reshape(-1, 3).mean(axis=0) / 255
    names, colours = zip(*_COLOURS.items(), strict=True)
    return names[int(np.linalg.norm(np.array(colours) - mean, axis=1).argmin())]
