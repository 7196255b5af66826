"""Pooling, hold-out, the episodes' plan, and what is said of data that can't be used."""

from __future__ import annotations

from collections import Counter
from shutil import copytree, ignore_patterns

import numpy as np
import pytest
from anomalib.data import Folder

from anomalib_inctrl import AuxiliaryData
from anomalib_inctrl.data.episodes import EpisodeSampler, LabelledImage, Pool

TILE = "MVTecAD/tile"


def pool_of(categories: int, normal: int = 12, anomalous: int = 7, references: int = 9) -> Pool:
    images, positions = [], {}
    for number in range(categories):
        name = f"c{number}"
        positions[name] = list(range(len(images), len(images) + references))
        images += [LabelledImage(f"{name}/n{i}", None, False, name, name) for i in range(normal)]
        images += [LabelledImage(f"{name}/a{i}", f"{name}/m{i}", True, name, name) for i in range(anomalous)]
    return Pool(images, positions)


def plan(pool: Pool, epoch: int = 0, **options) -> list:
    defaults = {"steps": 30, "batch_size": 12, "k_shots": (1, 2, 4), "normal_batch_size": 6}
    sampler = EpisodeSampler(pool, **defaults | options)
    sampler.set_epoch(epoch)
    return [step for (step,) in sampler]


@pytest.mark.parametrize("categories", [1, 2, 3, 4, 5, 7, 11])
def test_batches_are_balanced(categories):
    """Half normal, half anomalous; per label, categories differ by one query at most, in a step and over all steps."""
    pool = pool_of(categories)
    totals = Counter()
    for step in plan(pool):
        labels = [pool.images[episode.query].anomalous for episode in step.mixed]
        assert sum(labels) == 6
        assert len(labels) == 12
        for group in (step.mixed[:6], step.mixed[6:], step.normal):
            counts = Counter(pool.images[episode.query].category for episode in group)
            assert max(counts.values()) - min(counts[name] for name in pool.categories) <= 1
        assert not any(pool.images[episode.query].anomalous for episode in step.normal)
        totals += Counter(pool.images[e.query].category for e in step.mixed if pool.images[e.query].anomalous)
    assert max(totals.values()) - min(totals[name] for name in pool.categories) <= 1


def test_references_are_normal_others_of_the_category():
    pool = pool_of(3)
    for step in plan(pool):
        for query, references in step.mixed + step.normal:
            assert query not in references
            assert len(set(references)) == len(references)
            assert set(references) <= set(pool.references[pool.images[query].category])
            assert not any(pool.images[position].anomalous for position in references)


def test_every_image_serves_before_one_serves_twice():
    pool = pool_of(2)
    seen = Counter(episode.query for step in plan(pool, steps=7, batch_size=4) for episode in step.mixed[:2])
    assert set(seen.values()) == {1}
    assert len(seen) == 14


def test_k_varies_from_step_to_step_alone():
    steps = plan(pool_of(3))
    assert {len(step.mixed[0].references) for step in steps} == {1, 2, 4}
    assert all(len({len(episode.references) for episode in step.mixed + step.normal}) == 1 for step in steps)


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_share_the_plan_of_one(processes):
    pool = pool_of(3)
    whole = plan(pool, epoch=3)
    shares = [plan(pool, epoch=3, rank=rank, world_size=processes) for rank in range(processes)]
    for step, *parts in zip(whole, *shares, strict=True):
        assert sorted(step.mixed) == sorted(episode for part in parts for episode in part.mixed)
        assert sorted(step.normal) == sorted(episode for part in parts for episode in part.normal)
        for part in parts:
            assert sum(pool.images[episode.query].anomalous for episode in part.mixed) == len(part.mixed) / 2


def test_the_plan_depends_on_seed_and_epoch_alone():
    pool = pool_of(3)
    first = plan(pool, epoch=1, seed=5)
    np.random.default_rng().random(3)
    assert first == plan(pool, epoch=1, seed=5)
    assert first != plan(pool, epoch=2, seed=5)
    assert first != plan(pool, epoch=1, seed=6)


@pytest.mark.parametrize(("batch_size", "processes"), [(12, 4), (10, 2), (7, 1), (0, 1)])
def test_batches_that_cannot_be_shared(batch_size, processes):
    with pytest.raises(ValueError, match=rf"batch of {batch_size} can't be .*multiple of {2 * processes}"):
        plan(pool_of(3), batch_size=batch_size, world_size=processes)


# ---------------------------------------------------------------------------------------------------------- data module
def test_pools_all_images_of_the_parts(kit):
    data = kit.data()
    data.setup()
    assert data.train_pool.categories == ["MVTecAD/bolt", "MVTecAD/leaf"]
    assert data.val_pool.categories == [TILE]
    for pool, categories in ((data.train_pool, 2), (data.val_pool, 1)):
        assert Counter(image.anomalous for image in pool.images) == {False: 12 * categories, True: 4 * categories}
        assert all((image.mask_path is not None) == image.anomalous for image in pool.images)
    assert not {i.path for i in data.train_pool.images} & {i.path for i in data.val_pool.images}


def test_pools_are_parts_spelt_out(kit):
    options = {"root": str(kit.root), "num_workers": 0}
    parts = [
        {"class_path": "MVTecAD", "init_args": {**options, "category": category}}
        for category in ("bolt", "leaf", "tile")
    ]
    pool = {"class_path": "MVTecAD", "init_args": options, "categories": ["leaf", "tile"]}
    spelt, pooled = (AuxiliaryData(**given) for given in ({"parts": parts}, {"parts": parts[:1], "pools": [pool]}))
    assert [p.category for p in pooled.parts] == [p.category for p in spelt.parts] == ["bolt", "leaf", "tile"]
    assert {str(p.root) for p in pooled.parts} == {str(kit.root)}
    for wrong in ({"class_path": "MVTecAD"}, {"categories": ["leaf"]}, {**pool, "category": "leaf"}):
        with pytest.raises(ValueError, match="A pool has class_path, categories"):
            AuxiliaryData(pools=[wrong])


def test_a_pool_takes_what_the_command_line_takes():
    """Whole numbers stay whole (anomalib's own loader makes a pair of ``image_size``), and what is wrong is named."""
    pool = {"class_path": "ProceduralAD", "init_args": {"image_size": 64}, "categories": ["glyph-0", "wood_grain-2"]}
    parts = AuxiliaryData(pools=[pool], validation_share=0.5).parts
    assert [(part.category, part.image_size) for part in parts] == [("glyph-0", 64), ("wood_grain-2", 64)]
    with pytest.raises(Exception, match="imagesize"):
        AuxiliaryData(pools=[pool | {"init_args": {"imagesize": 64}}])


def test_parts_by_class_path_are_the_same(kit):
    parts = [
        {"class_path": "anomalib.data.MVTecAD", "init_args": {"root": str(kit.root), "category": category}}
        for category in kit.categories
    ]
    objects, mappings = kit.data(), kit.data(parts=parts)
    objects.setup()
    mappings.setup()
    assert objects.train_pool == mappings.train_pool


@pytest.mark.parametrize(("share", "count"), [(0, 0), (0.2, 1), (0.5, 2)])
def test_share_held_out(kit, share, count):
    data, again = (kit.data(validation_categories=None, validation_share=share) for _ in range(2))
    data.setup()
    again.setup()
    assert len(data.val_pool.categories) == count
    assert data.val_pool.categories == again.val_pool.categories
    assert not set(data.val_pool.categories) & set(data.train_pool.categories)
    assert len(data.val_pool.categories + data.train_pool.categories) == 3


def test_references_do_not_depend_on_the_other_parts(kit):
    def references(data):
        data.setup()
        pool = data.train_pool
        return [pool.images[position].path for position in pool.references["MVTecAD/leaf"]]

    few = {"max_references": 5}
    alone = kit.data(parts=[kit.part("leaf")], validation_categories=[], **few)
    assert references(alone) == references(kit.data(**few))
    assert len(references(alone)) == 5


def folder(kit, tmp_path, category: str, drop: str = ""):
    """A category without some of its folders."""
    copytree(kit.root / category, tmp_path / category, ignore=ignore_patterns(drop))
    root = tmp_path / category
    masks = root / "ground_truth/square"
    return Folder(
        name=category, root=root, normal_dir="train/good", normal_test_dir="test/good", abnormal_dir="test/square",
        mask_dir=masks if masks.exists() else None, num_workers=0,
    )  # fmt: skip


def test_data_that_cannot_be_used(kit, tmp_path):
    cases = {
        "different categories": lambda: kit.data(parts=[kit.part("bolt"), kit.part("bolt")]),
        "at least one": lambda: AuxiliaryData([]),
        "positive numbers of references": lambda: kit.data(k_shots=[0, 2]),
        "even": lambda: kit.data(batch_size=7),
        "are not among the parts": lambda: kit.data(validation_categories=["MVTecAD/screw"]).setup(),
        "nothing is left to train on": lambda: kit.data(validation_categories=None, validation_share=1).setup(),
        "held out for validation": lambda: kit.data(
            validation_categories=[f"MVTecAD/{name}" for name in kit.categories]
        ).setup(),
        "12 normal images .* fewer than K=12: lower k_shots": lambda: kit.data(k_shots=[1, 12]).setup(),
        "raise max_references": lambda: kit.data(k_shots=[1, 4], max_references=4).setup(),
    }
    for message, make in cases.items():
        with pytest.raises(ValueError, match=message):
            make()


def test_as_many_references_as_there_can_be(kit):
    data = kit.data(k_shots=[11])
    data.setup()
    assert min(len(references) for references in data.train_pool.references.values()) == 12


def test_category_without_anomalies(kit):
    part = Folder(name="good", root=kit.root / "leaf", normal_dir="train/good", normal_test_dir="test/good")
    with pytest.raises(ValueError, match="good has no anomalous images to train or validate on"):
        kit.data(parts=[kit.part("bolt"), part], validation_categories=[]).setup()


def test_pixel_losses_need_masks(kit, tmp_path):
    part = folder(kit, tmp_path, "leaf", drop="ground_truth")

    def data():
        return kit.data(parts=[kit.part("bolt"), part], validation_categories=[], steps_per_epoch=1)

    with pytest.raises(ValueError, match=r"pixel losses need masks, which \['leaf'\] lack"):
        kit.fit(kit.build("InCTRLv2"), tmp_path / "run", data())
    for options in ({"pixel_loss": False}, {"branches": ["image"]}):
        kit.fit(kit.build("InCTRLv2", **options), tmp_path / "run", data())


def test_phase_and_data_must_fit(kit, tmp_path):
    with pytest.raises(ValueError, match="AuxiliaryData is for training: set phase='train'"):
        kit.fit(kit.build("InCTRL", phase="few_shot"), tmp_path)
    with pytest.raises(ValueError, match=r"phase='train' takes AuxiliaryData .* got MVTecAD"):
        kit.fit(kit.build("InCTRL"), tmp_path, kit.part("bolt"))


def test_a_batch_that_cannot_be_shared_is_refused_before_features_are_computed(kit, tmp_path):
    data = kit.data(batch_size=6)
    data.setup()
    model = kit.build("InCTRL", feature_cache=None)
    data.trainer = type("Trainer", (), {"global_rank": 0, "world_size": 2})()
    with pytest.raises(ValueError, match="batch of 6 can't be shared by 2 processes"):
        data.attach(model.pre_processor.transform, (64, 64), None, normal_stream=False)
