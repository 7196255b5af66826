"""Families of surfaces: cloth, wood, stone, metal, tissue, prints and others, as seen from straight above."""

from __future__ import annotations

from typing import TYPE_CHECKING

from anomalib_inctrl.data.procedural.surfaces.cloth import Carpet, Fibres, Knit, Leather, WovenCloth
from anomalib_inctrl.data.procedural.surfaces.metal import BrushedMetal, CastMetal, Corrugation, WireMesh
from anomalib_inctrl.data.procedural.surfaces.mineral import (
    Crackle,
    Granite,
    Granules,
    Masonry,
    Terrain,
    VeinedStone,
    WoodGrain,
)
from anomalib_inctrl.data.procedural.surfaces.patterns import Foam, Plain, Print, RandomField, Stripes
from anomalib_inctrl.data.procedural.surfaces.tissue import CellTissue, Vessels

if TYPE_CHECKING:
    from anomalib_inctrl.data.procedural.family import Family

SURFACES: tuple[type[Family], ...] = (
    WovenCloth,
    Knit,
    WoodGrain,
    VeinedStone,
    Granite,
    BrushedMetal,
    CastMetal,
    Leather,
    WireMesh,
    Masonry,
    Foam,
    Print,
    Stripes,
    RandomField,
    Fibres,
    Granules,
    CellTissue,
    Vessels,
    Terrain,
    Carpet,
    Corrugation,
    Crackle,
    Plain,
)
"""All families of surfaces."""
