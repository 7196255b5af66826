"""Thresholds and normalised scores, also from normal references alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
from anomalib.post_processing import PostProcessor
from torch import Tensor

from anomalib_inctrl.calibration import UNKNOWN, Statistics, statistics_of_normals

if TYPE_CHECKING:
    from lightning import LightningModule, Trainer

Calibration = Literal["validation", "references"]

_STATISTICS = ("_image_threshold", "_pixel_threshold", "image_min", "image_max", "pixel_min", "pixel_max")
_LITTLE = 1e-5  # of the range of scores
_LINEAR = 0.45  # distance from the threshold, in normalised scores, up to which normalising is linear


class InContextPostProcessor(PostProcessor):
    """anomalib's post-processor without loss of ranking, and with thresholds that need no defects.

    Normalised scores put the threshold at 0.5 like anomalib's. Where those are clamped to 0 and 1, so that metrics
    computed on them lose every difference beyond, the models' raw range [0, 1] is kept in flatter ends, and with it the
    order of all scores.

    Args:
        calibration (str): ``"validation"`` takes threshold and range from the validation split, with the F1-best
            threshold if it holds anomalies. ``"references"`` takes them from the normal references, each compared
            with the others, whatever the validation split holds.
        image_sensitivity (float): 0 to 1; higher calls more images anomalous.
        pixel_sensitivity (float): 0 to 1; higher calls more pixels anomalous.
    """

    def __init__(
        self,
        calibration: Calibration = "validation",
        image_sensitivity: float = 0.5,
        pixel_sensitivity: float = 0.5,
    ) -> None:
        super().__init__(image_sensitivity=image_sensitivity, pixel_sensitivity=pixel_sensitivity)
        if calibration not in {"validation", "references"}:
            msg = f"calibration must be 'validation' or 'references', got {calibration!r}."
            raise ValueError(msg)
        self.calibration = calibration
        self._saw_anomalies = False

    @property
    def _checkpoint_config_keys(self) -> tuple[str, ...]:
        return (*super()._checkpoint_config_keys, "calibration")

    @property
    def is_calibrated(self) -> bool:
        """Whether there is a range to normalise by."""
        return not bool(torch.isnan(self.image_min))

    def reset(self) -> None:
        """Forget threshold and range."""
        self.statistics = UNKNOWN

    @property
    def statistics(self) -> Statistics:
        """Threshold and range as they are."""
        return Statistics(*(float(getattr(self, name)) for name in _STATISTICS))

    @statistics.setter
    def statistics(self, statistics: Statistics) -> None:
        for name, value in zip(_STATISTICS, statistics, strict=True):
            getattr(self, name).fill_(value)

    @torch.no_grad()
    def calibrate(self, normal_scores: Tensor, normal_maps: Tensor) -> None:
        """Set threshold and range from the scores of normal images, see :func:`statistics_of_normals`.

        Normalised scores reach from 0.05 or below at the mean of the normals to 0.5 at the threshold.

        Args:
            normal_scores (Tensor): ``(n,)``.
            normal_maps (Tensor): ``(n, 1, H, W)``.
        """
        scores, maps = (values.float().cpu().numpy() for values in (normal_scores, normal_maps))
        self.statistics = statistics_of_normals(scores, maps)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *args: Any, **kwargs: Any
    ) -> None:
        """Update the statistics with a batch."""
        super().on_validation_batch_end(trainer, pl_module, outputs, *args, **kwargs)
        self._saw_anomalies |= outputs.gt_label is not None and bool(outputs.gt_label.any())

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take statistics from the validation split, unless the references are to give them."""
        if self.calibration == "validation":
            super().on_validation_epoch_end(trainer, pl_module)
            if self._saw_anomalies:
                # The best threshold is the score of an anomalous sample, but labels take what lies above it.
                self._image_threshold.sub_(_LITTLE * (self.image_max - self.image_min).nan_to_num())
                self._pixel_threshold.sub_(_LITTLE * (self.pixel_max - self.pixel_min).nan_to_num())
            self._saw_anomalies = False
            return
        for metric in (
            self._image_threshold_metric,
            self._pixel_threshold_metric,
            self._image_min_max_metric,
            self._pixel_min_max_metric,
        ):
            metric.reset()

    @staticmethod
    def _normalize(
        preds: Tensor | None,
        norm_min: Tensor,
        norm_max: Tensor,
        threshold: Tensor,
    ) -> Tensor | None:
        """Map [0, 1] to [0, 1] piecewise linearly, the threshold to 0.5, every piece rising."""
        if preds is None:
            return None
        threshold = torch.where(torch.isnan(threshold), (norm_max + norm_min) / 2, threshold)
        value_range = (norm_max - norm_min).clamp(min=1e-6)
        low = (threshold - _LINEAR * value_range).clamp(min=0)
        high = (threshold + _LINEAR * value_range).clamp(max=1)
        middle = 0.5 + (torch.minimum(torch.maximum(preds, low), high) - threshold) / value_range
        # What is left below and above the linear part, as rounding has it: 0.05, but not exactly for a tiny range.
        bottom, top = (0.5 + (end - threshold) / value_range for end in (low, high))
        below = (preds - low).clamp(max=0) * (bottom / low.clamp(min=1e-6))
        above = (preds - high).clamp(min=0) * ((1 - top) / (1 - high).clamp(min=1e-6))
        return torch.where(torch.isnan(value_range), preds, (middle + below + above).clamp(0, 1))
