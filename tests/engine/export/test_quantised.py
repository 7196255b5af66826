"""INT8 through the framework's own export: references pass through the quantised encoder, images come one by one."""

from __future__ import annotations

import numpy as np
import openvino
import pytest
import torch
from anomalib.deploy import CompressionType

from anomalib_inctrl.quantisation import LazyImages

shared_code = pytest.mark.parametrize("name", ["InCTRL"], indirect=True)  # both models share it


@pytest.mark.slow
@shared_code
def test_int8_tells_defects_as_well(trained, root, kit, tmp_path):
    """Damaged images stay above normal ones, and a weight of the tower takes about a byte."""
    datamodule = kit.data(root)
    model = trained.model.eval()
    path = model.to_openvino(tmp_path, compression_type=CompressionType.INT8_PTQ, datamodule=datamodule)
    network = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    assert [port.any_name for port in network.inputs] == ["input"]
    datamodule.setup()
    items = list(datamodule.test_data)
    labels = torch.tensor([bool(item.gt_label) for item in items])
    found = network(torch.stack([item.image for item in items]).numpy())
    assert found["anomaly_map"].shape == (len(items), 1, kit.side, kit.side)
    assert found["pred_mask"].shape == found["anomaly_map"].shape
    scores = torch.from_numpy(found["pred_score"])
    assert scores[labels].min() > scores[~labels].max()
    towers = sum(p.numel() for p in model.model.backbone.visual.parameters())
    references = model.model.references
    rest = 4 * (
        references.patches.numel()
        + sum(p.numel() for p in model.model.parameters())
        - sum(p.numel() for p in model.model.backbone.parameters())
    )
    assert path.with_suffix(".bin").stat().st_size < 1.4 * towers + rest


@shared_code
def test_without_data_there_is_nothing_to_learn_ranges_from(trained, tmp_path):
    with pytest.raises(ValueError, match="INT8_PTQ takes a data module"):
        trained.model.to_openvino(tmp_path, compression_type=CompressionType.INT8_PTQ)


def test_images_are_read_when_asked_for_and_bounded():
    read = []
    images = LazyImages(1000, lambda row: read.append(row) or np.full((3, 2, 2), row))
    assert len(images) == 300
    assert read == []
    values = [image[0, 0, 0] for image in images]
    assert values == read
    assert (values[0], values[-1]) == (0, 999)
    assert max(np.diff(values)) - min(np.diff(values)) <= 1
