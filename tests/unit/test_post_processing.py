"""Thresholds and normalised scores."""

from __future__ import annotations

import math

import pytest
import torch
from anomalib.data import ImageBatch, InferenceBatch
from anomalib.post_processing import PostProcessor
from sklearn.metrics import roc_auc_score

from anomalib_inctrl.post_processing import InContextPostProcessor

NAN = float("nan")
# (minimum, maximum, threshold) of raw scores
RANGES = [
    (0.4, 0.5, 0.45),
    (0.0, 1.0, 0.5),
    (0.2, 0.9, 0.3),
    (0.0, 0.02, 0.001),
    (0.98, 1.0, 0.9995),
    (0.3, 0.4, 0.6),  # above every validation score
    (0.5, 0.500001, 0.5),
    (0.3, 0.3, 0.3),
    (0.1, 0.2, NAN),
    (0.0, 0.1, 0.0),
    (0.9, 1.0, 1.0),
]


def calibrated(
    minimum: float, maximum: float, threshold: float, kind: type[PostProcessor] = InContextPostProcessor
) -> PostProcessor:
    post_processor = kind()
    for name, value in (("min", minimum), ("max", maximum)):
        getattr(post_processor, f"image_{name}").fill_(value)
        getattr(post_processor, f"pixel_{name}").fill_(value)
    post_processor._image_threshold.fill_(threshold)
    post_processor._pixel_threshold.fill_(threshold)
    return post_processor


def normalise(post_processor: PostProcessor, scores: torch.Tensor) -> torch.Tensor:
    return post_processor(InferenceBatch(pred_score=scores, anomaly_map=scores[:, None, None, None])).pred_score


@pytest.mark.parametrize("statistics", RANGES, ids=str)
def test_normalising_rises_strictly_within_the_unit_interval(statistics: tuple[float, float, float]):
    normalised = normalise(calibrated(*statistics), torch.linspace(0, 1, 5001))
    assert (normalised.diff() > 0).all()
    assert normalised[0] >= 0
    assert normalised[-1] <= 1


@pytest.mark.parametrize("statistics", RANGES, ids=str)
def test_the_threshold_becomes_one_half(statistics: tuple[float, float, float]):
    minimum, maximum, threshold = statistics
    threshold = (minimum + maximum) / 2 if math.isnan(threshold) else threshold
    torch.testing.assert_close(
        normalise(calibrated(*statistics), torch.tensor([threshold])), torch.tensor([0.5]), rtol=0, atol=1e-6
    )


def test_normalising_by_hand():
    # Linear with slope 1 / 0.1 from 0.405 (0.05) to 0.495 (0.95), flatter from there to the ends of the raw range.
    scores = torch.tensor([0.0, 0.2025, 0.405, 0.43, 0.45, 0.47, 0.495, 0.7475, 1.0])
    expected = torch.tensor([0.0, 0.025, 0.05, 0.3, 0.5, 0.7, 0.95, 0.975, 1.0])
    torch.testing.assert_close(normalise(calibrated(0.4, 0.5, 0.45), scores), expected)


def test_within_the_linear_part_it_is_anomalibs():
    scores = torch.linspace(0.41, 0.49, 50)
    ours, theirs = calibrated(0.4, 0.5, 0.45), calibrated(0.4, 0.5, 0.45, PostProcessor)
    torch.testing.assert_close(normalise(ours, scores), normalise(theirs, scores))


def test_labels_and_masks_are_those_of_the_raw_threshold():
    scores = torch.linspace(0, 1, 101)
    post_processor = calibrated(0.4, 0.5, 0.455)
    result = post_processor(InferenceBatch(pred_score=scores, anomaly_map=scores[:, None, None, None]))
    assert torch.equal(result.pred_label, scores > 0.455)
    assert torch.equal(result.pred_mask.flatten(), scores > 0.455)


def test_normalising_keeps_an_auroc_that_anomalibs_clamp_loses():
    normal, anomalous = torch.linspace(0.52, 0.72, 21), torch.linspace(0.60, 0.90, 21)
    scores, labels = torch.cat([normal, anomalous]), torch.tensor([0] * 21 + [1] * 21)
    raw = roc_auc_score(labels, scores)
    ours = roc_auc_score(labels, normalise(calibrated(0.4, 0.5, 0.45), scores))
    theirs = roc_auc_score(labels, normalise(calibrated(0.4, 0.5, 0.45, PostProcessor), scores))
    assert ours == pytest.approx(raw, abs=1e-6)
    assert raw == pytest.approx(382.5 / 441)  # pairs in order, of 21 x 21: 0.867
    assert theirs == 0.5  # every score is clamped to 1


@pytest.mark.parametrize("statistics", RANGES, ids=str)
def test_normalising_keeps_the_auroc(statistics: tuple[float, float, float]):
    labels = torch.randint(2, (400,))
    scores = torch.rand(400) * 0.8 + 0.1 * labels
    raw = roc_auc_score(labels, scores)
    assert roc_auc_score(labels, normalise(calibrated(*statistics), scores)) == pytest.approx(raw, abs=1e-6)


@pytest.mark.parametrize("statistics", [(NAN, NAN, NAN), (NAN, NAN, 0.4)], ids=str)
def test_without_statistics_scores_pass_raw(statistics: tuple[float, float, float]):
    scores = torch.linspace(0, 1, 11)
    post_processor = calibrated(*statistics)
    assert not post_processor.is_calibrated
    assert torch.equal(normalise(post_processor, scores), scores)


def test_maps_are_normalised_by_the_statistics_of_pixels():
    post_processor = calibrated(0.4, 0.5, 0.45)
    post_processor.pixel_min.fill_(0.1)
    post_processor.pixel_max.fill_(0.3)
    post_processor._pixel_threshold.fill_(0.2)
    scores = torch.tensor([0.25])
    result = post_processor(InferenceBatch(pred_score=scores, anomaly_map=scores[:, None, None, None]))
    torch.testing.assert_close(result.anomaly_map, torch.full((1, 1, 1, 1), 0.75))
    torch.testing.assert_close(result.pred_score, torch.tensor([0.05 * 0.25 / 0.405]))


def test_calibrating_by_hand():
    post_processor = InContextPostProcessor("references")
    maps = torch.tensor([[0.0, 0.1], [0.0, 0.2], [0.0, 0.3]])[:, None, None]  # highest pixels 0.1, 0.2, 0.3
    post_processor.calibrate(torch.tensor([0.1, 0.2, 0.3]), maps)
    # Mean 0.2 and deviation 0.1, so the threshold is 0.5, beyond the highest normal; the range reaches as far above.
    expected = {"_image_threshold": 0.5, "image_min": 0.2, "image_max": 0.8}
    expected |= {"_pixel_threshold": 0.5, "pixel_min": 0.1, "pixel_max": 0.9}
    for name, value in expected.items():
        assert getattr(post_processor, name).item() == pytest.approx(value, abs=1e-6), name
    assert post_processor.is_calibrated
    normalised = normalise(post_processor, torch.tensor([0.2, 0.5]))
    torch.testing.assert_close(normalised, torch.tensor([0.2 / 0.23 * 0.05, 0.5]))


def test_calibrating_takes_the_highest_normal_if_it_lies_beyond_three_deviations():
    scores = torch.tensor([0.1] * 99 + [0.9])
    post_processor = InContextPostProcessor()
    post_processor.calibrate(scores, scores[:, None, None, None])
    assert (scores.mean() + 3 * scores.std()).item() < 0.35
    assert post_processor._image_threshold.item() == pytest.approx(0.9)
    assert post_processor._pixel_threshold.item() == pytest.approx(0.9)


def test_calibrating_from_one_image():
    post_processor = InContextPostProcessor()
    post_processor.calibrate(torch.tensor([0.4]), torch.tensor([0.1, 0.3])[None, None, None])
    assert post_processor._image_threshold.item() == pytest.approx(0.4)
    assert post_processor._pixel_threshold.item() == pytest.approx(0.3)
    assert (post_processor.pixel_min.item(), post_processor.pixel_max.item()) == pytest.approx((0.2, 0.4))
    normalised = normalise(post_processor, torch.tensor([0.0, 0.2, 0.4, 0.6, 1.0]))
    assert (normalised.diff() > 0).all()
    torch.testing.assert_close(normalised[[0, 2, 4]], torch.tensor([0.0, 0.5, 1.0]))


def test_resetting_forgets():
    post_processor = calibrated(0.4, 0.5, 0.45)
    assert post_processor.is_calibrated
    post_processor.reset()
    assert not post_processor.is_calibrated
    assert normalise(post_processor, torch.tensor([0.3])).item() == pytest.approx(0.3)
    assert math.isnan(post_processor.image_threshold.item())


def validate(post_processor: PostProcessor) -> None:
    """Run a validation epoch over two normal and two anomalous images."""
    scores, labels = torch.tensor([0.1, 0.2, 0.7, 0.8]), torch.tensor([0, 0, 1, 1])
    batch = ImageBatch(
        image=torch.zeros(4, 3, 2, 2),
        gt_label=labels,
        gt_mask=labels[:, None, None].expand(4, 2, 2).bool(),
        pred_score=scores,
        anomaly_map=scores[:, None, None, None].expand(4, 1, 2, 2),
    )
    post_processor.on_validation_batch_end(None, None, batch)
    post_processor.on_validation_epoch_end(None, None)


def test_validation_data_give_the_statistics_by_default():
    post_processor = InContextPostProcessor()
    validate(post_processor)
    assert (post_processor.image_min.item(), post_processor.image_max.item()) == pytest.approx((0.1, 0.8))
    # A hair below the best threshold, which is the score of an anomalous image, so that this one is called anomalous.
    assert post_processor.image_threshold.item() == pytest.approx(0.7 - 1e-5 * 0.7, abs=1e-7)


def test_validation_data_do_not_touch_statistics_from_references():
    post_processor = InContextPostProcessor("references")
    post_processor.calibrate(torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.1, 0.2, 0.3])[:, None, None, None])
    before = {name: value.clone() for name, value in post_processor.named_buffers()}
    validate(post_processor)
    assert {"_image_threshold", "image_min", "pixel_max"} <= before.keys()
    for name, value in post_processor.named_buffers():
        assert torch.equal(value, before[name]), name
    assert not post_processor._image_threshold_metric.update_called  # nothing is left for a later epoch


def test_a_checkpoint_keeps_calibration_and_sensitivity():
    saved = InContextPostProcessor("references", image_sensitivity=0.7, pixel_sensitivity=0.2)
    fresh = InContextPostProcessor()
    fresh.load_checkpoint_config(saved.checkpoint_config())
    assert (fresh.calibration, fresh.image_sensitivity, fresh.pixel_sensitivity) == ("references", 0.7, 0.2)


def test_an_unknown_calibration_is_refused():
    with pytest.raises(ValueError, match="calibration must be 'validation' or 'references', got 'test'"):
        InContextPostProcessor("test")
