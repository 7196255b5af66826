"""Pictures drawn by rule: surfaces, objects and glyphs in endless variety, with defects and exact masks."""

from anomalib_inctrl.data.procedural.category import (
    FAMILIES,
    GLOBAL_KINDS,
    LOCAL_KINDS,
    OTHER,
    Category,
    Pictures,
    name_colour,
)

__all__ = ["FAMILIES", "GLOBAL_KINDS", "LOCAL_KINDS", "OTHER", "Category", "Pictures", "name_colour"]
