"""Data modules of the plugin: sets that need no download, the papers' benchmarks, pooled categories, few-shot views."""

import anomalib.data

from anomalib_inctrl.data.auxiliary import AuxiliaryData
from anomalib_inctrl.data.benchmarks import Aitex, BrainMRI, Cifar10, Elpv, HeadCT, KolektorSDD, Mnist
from anomalib_inctrl.data.demo import DemoAD
from anomalib_inctrl.data.few_shot import FewShot
from anomalib_inctrl.data.generated import ProceduralAD
from anomalib_inctrl.data.small_images import DigitsAD, FacesAD

__all__ = [
    "Aitex",
    "AuxiliaryData",
    "BrainMRI",
    "Cifar10",
    "DemoAD",
    "DigitsAD",
    "Elpv",
    "FacesAD",
    "FewShot",
    "HeadCT",
    "KolektorSDD",
    "Mnist",
    "ProceduralAD",
]


def _register() -> None:
    """Make the data modules known to anomalib's configuration files and command line under their plain names."""
    for name in __all__:
        if not hasattr(anomalib.data, name):
            setattr(anomalib.data, name, globals()[name])


# Registered here, at the end of the import, so that any order works: anomalib first (the start-up hook then imports
# this package as soon as `anomalib.data` is complete) or this package first (its import completes `anomalib.data`).
_register()
