"""The metrics few-shot papers report, computed by anomalib and torchmetrics."""

from __future__ import annotations

from anomalib.metrics import AUPR, AUPRO, AUROC, Evaluator, F1Max


def few_shot_evaluator() -> Evaluator:
    """Build the evaluator of test runs.

    Image AUROC, AUPR (average precision) and F1max; pixel AUROC, AUPRO (to a false positive rate of 0.3), AUPR and
    F1max where there are masks.
    """
    image = [metric(fields=["pred_score", "gt_label"], prefix="image_") for metric in (AUROC, AUPR, F1Max)]
    pixel = [
        metric(fields=["anomaly_map", "gt_mask"], prefix="pixel_", strict=False)
        for metric in (AUROC, AUPRO, AUPR, F1Max)
    ]
    return Evaluator(test_metrics=[*image, *pixel])
