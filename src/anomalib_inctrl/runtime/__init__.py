"""Exported models without torch: references are added, removed and switched where the model is deployed."""

from anomalib_inctrl.runtime.bank import Bank
from anomalib_inctrl.runtime.detector import InContextDetector, Prediction

__all__ = ["Bank", "InContextDetector", "Prediction"]
