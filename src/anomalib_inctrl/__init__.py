"""Few-shot generalist anomaly detection for anomalib: InCTRL, InCTRLv2 and DevPrompt.

The package imports nothing heavy by itself; its names are loaded on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from anomalib_inctrl.data import (
        Aitex,
        AuxiliaryData,
        BrainMRI,
        Cifar10,
        DemoAD,
        DigitsAD,
        Elpv,
        FacesAD,
        FewShot,
        HeadCT,
        KolektorSDD,
        Mnist,
        ProceduralAD,
    )
    from anomalib_inctrl.models import ClipZeroShot, CoOp, CorrectedWinClip, DevPrompt, InCTRL, InCTRLv2, Spade

__version__ = "0.1.0.dev0"

__all__ = [
    "Aitex",
    "AuxiliaryData",
    "BrainMRI",
    "Cifar10",
    "ClipZeroShot",
    "CoOp",
    "CorrectedWinClip",
    "DemoAD",
    "DevPrompt",
    "DigitsAD",
    "Elpv",
    "FacesAD",
    "FewShot",
    "HeadCT",
    "InCTRL",
    "InCTRLv2",
    "KolektorSDD",
    "Mnist",
    "ProceduralAD",
    "Spade",
    "__version__",
]

_HOME = {
    "Aitex": "anomalib_inctrl.data",
    "AuxiliaryData": "anomalib_inctrl.data",
    "BrainMRI": "anomalib_inctrl.data",
    "Cifar10": "anomalib_inctrl.data",
    "ClipZeroShot": "anomalib_inctrl.models",
    "CoOp": "anomalib_inctrl.models",
    "CorrectedWinClip": "anomalib_inctrl.models",
    "DemoAD": "anomalib_inctrl.data",
    "DevPrompt": "anomalib_inctrl.models",
    "DigitsAD": "anomalib_inctrl.data",
    "Elpv": "anomalib_inctrl.data",
    "FacesAD": "anomalib_inctrl.data",
    "FewShot": "anomalib_inctrl.data",
    "HeadCT": "anomalib_inctrl.data",
    "InCTRL": "anomalib_inctrl.models",
    "InCTRLv2": "anomalib_inctrl.models",
    "KolektorSDD": "anomalib_inctrl.data",
    "Mnist": "anomalib_inctrl.data",
    "ProceduralAD": "anomalib_inctrl.data",
    "Spade": "anomalib_inctrl.models",
}


def __getattr__(name: str) -> object:
    """Load a public name from the module that defines it (PEP 562)."""
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)


def __dir__() -> list[str]:
    return sorted(__all__)
