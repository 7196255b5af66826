"""The data sets of InCTRL's experiments that anomalib lacks, from their makers' downloads.

Each is prepared once, by ``python -m anomalib_inctrl.data.benchmarks prepare`` or on a data module's first use.
"""

from anomalib_inctrl.data.benchmarks.aitex import Aitex
from anomalib_inctrl.data.benchmarks.archives import UnsafeArchiveError
from anomalib_inctrl.data.benchmarks.brain_mri import BrainMRI
from anomalib_inctrl.data.benchmarks.cifar10 import Cifar10
from anomalib_inctrl.data.benchmarks.elpv import Elpv
from anomalib_inctrl.data.benchmarks.head_ct import HeadCT
from anomalib_inctrl.data.benchmarks.kolektor_sdd import KolektorSDD
from anomalib_inctrl.data.benchmarks.mnist import Mnist

DATA_MODULES = {module.__name__: module for module in (Aitex, BrainMRI, Cifar10, Elpv, HeadCT, KolektorSDD, Mnist)}

__all__ = [
    "DATA_MODULES",
    "Aitex",
    "BrainMRI",
    "Cifar10",
    "Elpv",
    "HeadCT",
    "KolektorSDD",
    "Mnist",
    "UnsafeArchiveError",
]
