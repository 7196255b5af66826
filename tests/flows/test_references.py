"""Which images serve as references, in every flow."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pandas as pd
import pytest
import torch
from anomalib.data import ImageBatch, ImageItem, MVTecAD
from anomalib.data.datasets.image.mvtecad import MVTecADDataset
from anomalib.engine import Engine
from torchvision.transforms.v2 import RandomInvert

# What both models share is tested with one of them.
shared_code = pytest.mark.parametrize("name", ["InCTRLv2"], indirect=True)


def collect(kit, root, tmp_path, **options):
    """Files and pictures of the references a run takes."""
    datamodule = kit.data(root, **options.pop("data", {}))
    model = kit.build("InCTRL", k_shot=options.pop("k_shot", 3), **options)
    Engine(default_root_dir=tmp_path, **kit.quiet).validate(model=model, datamodule=datamodule)
    (files,) = model.reference_record["files"].values()
    return files, model.model.references.pictures


def test_seed_decides_and_augmentation_does_not(kit, root, normals, tmp_path):
    files, pictures = collect(kit, root, tmp_path)
    assert len(set(files)) == 3
    assert {Path(file).parent for file in files} == {normals}  # hence none of the test images
    again, augmented = collect(kit, root, tmp_path, data={"train_augmentations": RandomInvert(p=1.0)})
    assert again == files
    assert torch.equal(augmented, pictures)
    others = [collect(kit, root, tmp_path, reference_seed=seed)[0] for seed in (1, 2)]
    assert all(other != files for other in others)


def test_pictures_are_the_files(kit, root, tmp_path):
    from anomalib.data.utils import read_image

    files, pictures = collect(kit, root, tmp_path, k_shot=2)
    model = kit.build("InCTRL")
    images = torch.stack([model.pre_processor.transform(read_image(file, as_tensor=True)) for file in files])
    assert torch.equal(model.model.backbone.to_pictures(images), pictures)


@shared_code
def test_order_of_references_does_not_matter(trained, kit):
    model = kit.build(type(trained.model).__name__, weights="random").eval()
    pictures = trained.model.model.references.pictures
    images = model.model.backbone.from_pictures(pictures)
    query = model.model.backbone.from_pictures(pictures.flip(-1))
    results = []
    for order in ([0, 1], [1, 0]):
        model.model.set_references(images[order], "bolt")
        with torch.no_grad():
            results.append(model.model(query))
    torch.testing.assert_close(results[0].pred_score, results[1].pred_score, atol=1e-6, rtol=0)
    torch.testing.assert_close(results[0].anomaly_map, results[1].anomaly_map, atol=1e-6, rtol=0)


@shared_code
def test_same_object_on_another_category_starts_anew(name, root, kit, tmp_path):
    model = kit.build(name)
    kit.train(model, kit.data(root), tmp_path / "first")
    threshold = float(model.post_processor.image_threshold)
    again = kit.train(model, kit.data(root, "leaf"), tmp_path / "second")
    fresh = kit.train(kit.build(name), kit.data(root, "leaf"), tmp_path / "third")
    assert again.metrics == fresh.metrics
    assert again.metrics["image_AUROC"] > 0.9
    assert model.model.references.class_names == ["leaf"]
    assert all(Path(file).parts[-4] == "leaf" for file in model.reference_record["files"]["leaf"])
    assert float(model.post_processor.image_threshold) != threshold


@shared_code
def test_few_shot_source_replaces_the_references_of_a_checkpoint(trained, name, root, kit, engine, caplog):
    model = kit.build(name, few_shot_source=root / "leaf/train/good")
    found = kit.predictions(
        engine.predict(model=model, data_path=root / "leaf/test", ckpt_path=trained.checkpoint)
    )  # fmt: skip
    assert all("leaf" in Path(file).parts for files in model.reference_record["files"].values() for file in files)
    assert "threshold and score range of the previous data are discarded" in caplog.text
    assert found.labels == {path: path.startswith("square") for path in found.labels}


def test_zero_shot_takes_no_reference(name, root, kit, tmp_path):
    run = kit.train(kit.build(name, k_shot=0), kit.data(root), tmp_path / "made")
    assert run.metrics.keys() >= {"image_AUROC", "pixel_AUPRO"}
    assert run.model.model.references.count() == 0
    assert run.model.learning_type.value == "zero_shot"
    engine = Engine(default_root_dir=tmp_path / "again", **kit.quiet)
    fresh = kit.build(name, k_shot=0)
    assert engine.test(model=fresh, datamodule=kit.data(root), ckpt_path=run.checkpoint)[0] == run.metrics
    folder = kit.predictions(engine.predict(model=kit.build(name, k_shot=0), data_path=root / "bolt/test"))
    assert len(folder.scores) == 8
    assert all(m.min() == m.max() for m in folder.maps.values())  # text scores the whole image


@dataclass
class _Item(ImageItem):
    category: str | None = None


@dataclass
class _Batch(ImageBatch):
    item_class: ClassVar = _Item
    category: list[str] | None = None


class _PooledDataset(MVTecADDataset):
    def __init__(self, root, split, categories):
        super().__init__(root=root, category=categories[0], split=split)
        parts = [MVTecADDataset(root=root, category=c, split=split).samples.assign(category=c) for c in categories]
        self.samples = pd.concat(parts, ignore_index=True)
        self.samples.attrs = parts[0].attrs

    def __getitem__(self, index):
        item = super().__getitem__(index)
        fields = {key: getattr(item, key) for key in ("image", "gt_mask", "gt_label", "image_path", "mask_path")}
        return _Item(**fields, category=self.samples.iloc[index].category)

    @property
    def collate_fn(self):
        return _Batch.collate


class Pooled(MVTecAD):
    """Two categories in one data module, every image with the name of its category."""

    def _setup(self, _stage=None):
        self.train_data = _PooledDataset(self.root, "train", ["bolt", "leaf"])
        self.test_data = _PooledDataset(self.root, "test", ["bolt", "leaf"])


@shared_code
def test_pooled_data_has_one_bank_for_each_category(name, root, kit, engine, tmp_path):
    pooled = Pooled(root=root, category="bolt", num_workers=0, eval_batch_size=5)
    model = kit.build(name)
    batches = engine.predict(model=model, datamodule=pooled)
    bank = model.model.references
    assert bank.class_names == ["bolt", "leaf"]
    assert (bank.count("bolt"), bank.count("leaf")) == (2, 2)
    for category, files in model.reference_record["files"].items():
        assert {Path(file).parts[-4] for file in files} == {category}
    # Every image is scored against its own category, as by a model of that category alone.
    items = [item for batch in batches for item in batch]
    assert len(items) == 16
    alone = {}
    for category in ("bolt", "leaf"):
        single = kit.build(name)
        Engine(default_root_dir=tmp_path / category, **kit.quiet).validate(
            model=single, datamodule=kit.data(root, category)
        )
        alone[category] = single.model
    with torch.no_grad():
        for item in items:
            raw = alone[item.category](item.image[None])
            pooled_raw = model.model(item.image[None], [item.category])
            assert float(pooled_raw.pred_score) == pytest.approx(float(raw.pred_score), abs=1e-6)
    expected = [float(model.model(i.image[None], [i.category]).pred_score.detach()) for i in items]
    order = sorted(range(16), key=lambda i: expected[i])
    assert [float(items[i].pred_score) for i in order] == sorted(float(i.pred_score) for i in items)


def test_pooled_data_whose_images_do_not_say_their_category(root, kit, engine):
    """Scoring every image against the first category would be wrong without a word."""

    class Mute(Pooled):
        def _setup(self, _stage=None):
            super()._setup()
            self.test_data = MVTecADDataset(root=self.root, category="leaf", split="test")

    pooled = Mute(root=root, category="bolt", num_workers=0, eval_batch_size=5)
    with pytest.raises(ValueError, match="category"):
        engine.test(model=kit.build("InCTRL"), datamodule=pooled)
