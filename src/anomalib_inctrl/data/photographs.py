"""Photographs that lie inside the scikit-image wheel, and how they are cut into disjoint regions.

Nothing here touches the network: the files are opened from the installed package's own folder, never through
``skimage.data``, whose functions may download what they miss.

==========  ======================  =============================================================================
Category    File                    What it is, and its licence as scikit-image documents it
==========  ======================  =============================================================================
brick       brick.png               Brick wall (CC0Textures Bricks25); CC0
coins       coins.png               Greek coins from Pompeii (Brooklyn Museum); no known copyright restrictions
grass       grass.png               Grass (linolafett, DeviantArt); CC0
gravel      gravel.png              Gravel (CC0Textures Gravel04); CC0
moon        moon.png                Surface of the moon; distributed with scikit-image, which states no restriction
retina      retina.jpg              Fundus of a healthy left eye (Mikael Häggström); CC0
tissue      ihc.png                 Colonic glands, immunohistochemistry (CMMI); no known copyright restrictions
(donors)    chelsea.png             A cat (Stefan van der Walt); CC0
(donors)    coffee.png              A cup of coffee on wood (Rachel Michetti); CC0
==========  ======================  =============================================================================

The donors are no category: they only lend the foreign patches of the ``cutpaste`` defect, so that no category shows
up inside another one.

Each photograph is divided like a checkerboard: one colour trains, the other tests. So the two roles never share a
pixel, and still see the same lighting, perspective and kinds of texture.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
from PIL import Image

Box: TypeAlias = tuple[int, int, int, int]
"""Left, top, right and bottom of a rectangle in photograph pixels; right and bottom are excluded."""

Role: TypeAlias = Literal["train", "test"]
"""What a crop is for: training, or testing both as it is and damaged."""

ROLES: tuple[Role, ...] = ("train", "test")

MIRROR = (0, 4)
ALL_TURNS = tuple(range(8))

DONORS = ("chelsea.png", "coffee.png")


@dataclass(frozen=True)
class Photograph:
    """A photograph and its partition into regions that no two roles share.

    Args:
        file: File name inside scikit-image's ``data`` folder.
        regions: Boxes per role. Crops of a role lie inside that role's boxes.
        crop: Side of a crop in photograph pixels; ``None`` takes a whole region as one crop (single objects).
        turns: Symmetries that leave the look natural: ``turn % 4`` quarter turns, after a left-right flip from 4 on.
        counts: Number of crops per role.
        inside: Diameter of the centred disc that holds the object, relative to the crop; above ``sqrt(2)`` it is all.
        opacity: Opacity of the defects; lower where the surface is so plain that each would be found.
    """

    file: str
    regions: dict[Role, tuple[Box, ...]]
    crop: int | None
    turns: tuple[int, ...]
    counts: dict[Role, int] = field(default_factory=lambda: {"train": 16, "test": 24})
    inside: float = 2.0
    opacity: float = 1.0


@dataclass(frozen=True)
class Crop:
    """One square crop: where it lies in its photograph and how it is turned.

    Args:
        box: Rectangle in photograph pixels.
        turn: Symmetry applied after cutting, from 0 (as photographed) to 7.
    """

    box: Box
    turn: int


def _checkerboard(*boards: tuple[Box, int, int]) -> dict[Role, tuple[Box, ...]]:
    """Divide boxes into equal blocks and deal these out by turns along rows and columns.

    Args:
        boards: Box, number of columns and number of rows of every board. Its top left block trains.
    """
    blocks: dict[Role, list[Box]] = {role: [] for role in ROLES}
    for (left, top, right, bottom), columns, rows in boards:
        w, h = (right - left) // columns, (bottom - top) // rows
        for y, x in np.ndindex(rows, columns):
            corner = (left + w * x, top + h * y)
            blocks[ROLES[(x + y) % 2]].append((*corner, corner[0] + w, corner[1] + h))
    return {role: tuple(dealt) for role, dealt in blocks.items()}


def _coin_boxes(coins: tuple[Box, ...], width: int, height: int) -> tuple[Box, ...]:
    """Return a square box around the outline of every coin, shifted into the photograph where it sticks out."""
    boxes = []
    for left, top, right, bottom in coins:
        side = round(COIN_MARGIN * max(right - left, bottom - top))
        x = min((left + right - side) // 2, width - side)
        y = min((top + bottom - side) // 2, height - side)
        boxes.append((x, y, x + side, y + side))
    return tuple(boxes)


COIN_MARGIN = 1.12
"""Side of a coin's crop relative to the coin; neighbouring crops would overlap if it were larger."""

# Four rows of six coins from left to right.
_COIN_BOXES = _coin_boxes(
    (
        *((22, 35, 67, 74), (81, 39, 120, 74), (132, 28, 179, 74)),
        *((192, 30, 240, 73), (255, 34, 297, 72), (305, 16, 365, 72)),
        *((25, 104, 67, 145), (84, 108, 122, 145), (134, 110, 173, 145)),
        *((186, 105, 226, 144), (245, 95, 296, 144), (317, 106, 356, 145)),
        *((26, 179, 63, 217), (80, 175, 124, 217), (135, 179, 174, 217)),
        *((189, 170, 237, 217), (251, 172, 297, 217), (315, 156, 380, 218)),
        *((18, 233, 75, 288), (93, 245, 136, 287), (144, 236, 201, 288)),
        *((220, 240, 269, 288), (276, 239, 326, 289), (336, 245, 382, 289)),
    ),
    width=384,
    height=303,
)
# The twelve coins that look most like the others test, so that the training coins cover their look.
_TESTED_COINS = (0, 1, 2, 3, 7, 8, 9, 12, 14, 19, 21, 22)

_COINS: dict[Role, tuple[Box, ...]] = {
    "train": tuple(box for index, box in enumerate(_COIN_BOXES) if index not in _TESTED_COINS),
    "test": tuple(_COIN_BOXES[index] for index in _TESTED_COINS),
}

# Plains left and right of the large crater, the bright streak and the dark cluster.
_MOON = _checkerboard(((0, 150, 180, 512), 2, 4), ((320, 180, 512, 512), 2, 3))

# Above and below the optic disc and the macula, inside the round field of view.
_RETINA = _checkerboard(((380, 180, 1130, 610), 4, 2), ((470, 790, 1130, 1150), 4, 2))

# Mostly the brown glands, without the pale tissue between them.
_TISSUE = _checkerboard(((0, 0, 432, 195), 6, 3), ((256, 312, 386, 490), 2, 2))

PHOTOGRAPHS: dict[str, Photograph] = {
    "brick": Photograph("brick.png", _checkerboard(((0, 0, 512, 512), 4, 4)), crop=116, turns=MIRROR, opacity=0.55),
    "coins": Photograph(
        "coins.png",
        _COINS,
        crop=None,
        turns=(0,),
        counts={"train": 12, "test": 12},
        inside=1 / COIN_MARGIN,
    ),
    "grass": Photograph("grass.png", _checkerboard(((0, 0, 512, 512), 7, 7)), crop=72, turns=ALL_TURNS),
    "gravel": Photograph("gravel.png", _checkerboard(((0, 0, 512, 512), 7, 7)), crop=72, turns=ALL_TURNS),
    "moon": Photograph("moon.png", _MOON, crop=84, turns=ALL_TURNS, opacity=0.65),
    "retina": Photograph("retina.jpg", _RETINA, crop=160, turns=ALL_TURNS, opacity=0.9),
    "tissue": Photograph("ihc.png", _TISSUE, crop=64, turns=ALL_TURNS),
}

CATEGORIES: tuple[str, ...] = tuple(sorted(PHOTOGRAPHS))
"""Names of the categories, sorted."""


def photograph_path(file: str) -> Path:
    """Return where scikit-image's wheel put a photograph.

    Args:
        file: File name inside scikit-image's ``data`` folder.

    Returns:
        Path of the existing file.

    Raises:
        FileNotFoundError: If the installed scikit-image does not carry the file, or is not installed.
    """
    spec = importlib.util.find_spec("skimage")
    path = Path(spec.origin).parent / "data" / file if spec and spec.origin else Path(file)
    if spec is None or not path.is_file():
        msg = (
            f"The photograph {file!r} is missing from the installed scikit-image ({path}). "
            "Reinstall it: pip install --force-reinstall scikit-image"
        )
        raise FileNotFoundError(msg)
    return path


@lru_cache(maxsize=len(PHOTOGRAPHS) + len(DONORS))
def read_photograph(file: str) -> np.ndarray:
    """Read a bundled photograph; grey ones get three equal channels.

    Args:
        file: File name inside scikit-image's ``data`` folder.

    Returns:
        Read-only ``uint8`` array of shape ``(height, width, 3)`` in ``[0, 255]``.

    Raises:
        FileNotFoundError: If the installed scikit-image does not carry the file.
    """
    with Image.open(photograph_path(file)) as image:
        pixels = np.array(image.convert("RGB"))
    pixels.flags.writeable = False
    return pixels


def plan_crops(category: str, role: Role, generator: np.random.Generator) -> list[Crop]:
    """Choose the crops of one role at random inside that role's regions.

    Args:
        category: One of :data:`CATEGORIES`.
        role: ``"train"`` or ``"test"``.
        generator: Source of the random order of the regions and of the offsets inside them.

    Returns:
        As many crops as the photograph's ``counts`` say, spread evenly over the regions. Crops of one role may
        overlap each other, but never the regions of the other role.
    """
    photograph = PHOTOGRAPHS[category]
    regions = [photograph.regions[role][index] for index in generator.permutation(len(photograph.regions[role]))]
    crops = []
    for index in range(photograph.counts[role]):
        turn = photograph.turns[index // len(regions) % len(photograph.turns)]
        crops.append(Crop(_place(regions[index % len(regions)], photograph.crop, generator), turn))
    return crops


def _place(region: Box, side: int | None, generator: np.random.Generator) -> Box:
    """Return a random square of the given side inside a region, or the region itself without a side."""
    if side is None:
        return region
    left, top, right, bottom = region
    x = int(generator.integers(left, right - side + 1))
    y = int(generator.integers(top, bottom - side + 1))
    return (x, y, x + side, y + side)


def cut(photograph: np.ndarray, crop: Crop) -> np.ndarray:
    """Cut a crop out of a photograph and turn it.

    Args:
        photograph: ``uint8`` array of shape ``(height, width, 3)``.
        crop: A square inside the photograph, and its turn.

    Returns:
        New ``uint8`` array of shape ``(side, side, 3)``.
    """
    left, top, right, bottom = crop.box
    pixels = photograph[top:bottom, left:right]
    pixels = pixels[:, ::-1] if crop.turn >= 4 else pixels
    return np.ascontiguousarray(np.rot90(pixels, crop.turn % 4))
