"""Few-shot generalist anomaly detection for anomalib: InCTRL, InCTRLv2 and DevPrompt.

The package imports nothing heavy by itself; its names are loaded on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from anomalib_inctrl.data import AuxiliaryData, DemoAD, DigitsAD, FacesAD, FewShot, ProceduralAD
    from anomalib_inctrl.models import CorrectedWinClip, DevPrompt, InCTRL, InCTRLv2

__version__ = "0.1.0.dev0"

__all__ = [
    "AuxiliaryData",
    "CorrectedWinClip",
    "DemoAD",
    "DevPrompt",
    "DigitsAD",
    "FacesAD",
    "FewShot",
    "InCTRL",
    "InCTRLv2",
    "ProceduralAD",
    "__version__",
]

_HOME = {
    "AuxiliaryData": "anomalib_inctrl.data",
    "CorrectedWinClip": "anomalib_inctrl.models",
    "DemoAD": "anomalib_inctrl.data",
    "DevPrompt": "anomalib_inctrl.models",
    "DigitsAD": "anomalib_inctrl.data",
    "FacesAD": "anomalib_inctrl.data",
    "FewShot": "anomalib_inctrl.data",
    "InCTRL": "anomalib_inctrl.models",
    "InCTRLv2": "anomalib_inctrl.models",
    "ProceduralAD": "anomalib_inctrl.data",
}


def __getattr__(name: str) -> object:
    """Load a public name from the module that defines it (PEP 562)."""
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)


def __dir__() -> list[str]:
    return sorted(__all__)
