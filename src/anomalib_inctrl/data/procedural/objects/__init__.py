"""Families of objects: manufactured, natural, printed and invented things before a backdrop."""

from __future__ import annotations

from typing import TYPE_CHECKING

from anomalib_inctrl.data.procedural.objects.invented import Creature, Dial, Label, Mask, Sign
from anomalib_inctrl.data.procedural.objects.manufactured import (
    Board,
    Bottle,
    Cables,
    Connector,
    Gasket,
    Gear,
    Medal,
    Nut,
    Pill,
    Plate,
    Screw,
    Tray,
    Washer,
)
from anomalib_inctrl.data.procedural.objects.natural import Cookie, Dish, Flower, Fruit, Leaf

if TYPE_CHECKING:
    from anomalib_inctrl.data.procedural.objects.thing import Thing

OBJECTS: tuple[type[Thing], ...] = (
    Washer,
    Gear,
    Bottle,
    Board,
    Pill,
    Screw,
    Nut,
    Plate,
    Connector,
    Cables,
    Medal,
    Gasket,
    Tray,
    Fruit,
    Cookie,
    Leaf,
    Flower,
    Dish,
    Creature,
    Mask,
    Dial,
    Label,
    Sign,
)
"""The families of objects."""
