"""Pictures drawn by rule: the same for the same seed, anomalous exactly where the mask says, written once."""

import json
from dataclasses import fields

import numpy as np
import pytest
from anomalib.data import get_datamodule
from PIL import Image

from anomalib_inctrl import AuxiliaryData, ProceduralAD
from anomalib_inctrl.data import generated
from anomalib_inctrl.data.procedural import FAMILIES, GLOBAL_KINDS, LOCAL_KINDS, OTHER, Category, name_colour
from anomalib_inctrl.data.procedural.damage import apply_damage, changed_mask
from anomalib_inctrl.data.procedural.glyphs import Handwriting, Letter
from anomalib_inctrl.data.procedural.objects.manufactured import Gear

SIDE = 64
SMALL = {"image_size": SIDE, "train_count": 3, "normal_count": 2, "anomalous_count": 4}


def draw(family, seed=0):
    """A category of a family and a generator, both from a seed."""
    generator = np.random.default_rng(seed)
    return Category.sample(generator, family), generator


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)
def test_members_repeat_by_seed_and_differ_among_themselves(family):
    category, generator = draw(family)
    images = category.draw_normal(generator, 3, SIDE)
    again, generator = draw(family)
    assert images.shape == (3, SIDE, SIDE, 3)
    assert images.dtype == np.uint8
    assert np.array_equal(images, again.draw_normal(generator, 3, SIDE))
    assert not np.array_equal(images[0], images[1])


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)
def test_a_fault_leaves_the_rest_of_the_scene_alone(family):
    category, _ = draw(family)
    for fault in category.family.FAULTS:
        clean, faulty = (category.family.render(np.random.default_rng(5), 2, SIDE, f).image for f in (None, fault))
        mask = changed_mask(clean, faulty, threshold=0.03, smallest=1)
        assert np.abs(clean - faulty).max(axis=-1)[~mask].max(initial=0) < 0.2
        assert mask.mean() < 0.75


@pytest.mark.parametrize("kind", LOCAL_KINDS)
def test_local_damage_is_where_its_mask_is(kind):
    generator = np.random.default_rng(3)
    category, donor = (Category.sample(generator) for _ in range(2))
    scene = category.family.render(generator, 4, SIDE)
    foreign = donor.family.render(generator, 4, SIDE).image
    damaged, mask = apply_damage(generator, kind, scene.image, scene.inside, foreign)
    change = np.abs(damaged - scene.image).max(axis=-1)
    for picture in range(4):
        assert 0.001 <= mask[picture].mean() <= 0.3
        assert change[picture][mask[picture]].mean() > 3 * change[picture][~mask[picture]].mean()


def test_all_kinds_of_anomaly_get_a_mask_and_change_the_picture():
    generator = np.random.default_rng(1)
    category = Category.sample(generator, generated.FAMILY_BY_NAME["gear"])
    kinds = (*category.family.FAULTS, *LOCAL_KINDS[:3], OTHER)
    pictures = category.draw_anomalous(generator, kinds, SIDE)
    assert pictures.kinds[-1] == OTHER
    assert pictures.masks.any(axis=(1, 2)).all()
    assert pictures.images.shape == (len(kinds), SIDE, SIDE, 3)


def test_another_glyph_is_written_by_the_same_hand_on_the_same_ground():
    generator = np.random.default_rng(5)
    glyph = Letter.sample(generator)
    sibling = glyph.sibling(generator)
    assert sibling.word is not glyph.word
    assert all(getattr(sibling, f.name) is getattr(glyph, f.name) for f in fields(glyph) if f.name != "word")


def test_handwriting_fills_its_box_and_leaves_rare_strokes_out():
    generator = np.random.default_rng(2)
    while len((written := Handwriting.sample(generator)).ways) < 2 or written.ways[1].common == 1:
        pass
    first, second = (stroke.points for stroke in written._written(generator, 400)[0][:2])
    every = np.concatenate([stroke.points for stroke in written._written(generator, 400)[0]], axis=1)
    sides = every.max(axis=1) - every.min(axis=1)
    assert np.allclose(sides.max(axis=1), 2 * 0.85)
    assert np.allclose(every.max(axis=1) + every.min(axis=1), 0)
    absent = (second == first[:, :1]).all(axis=(1, 2))
    assert absent.mean() == pytest.approx(1 - written.ways[1].common, abs=0.08)


def test_the_same_people_write_another_character_sometimes_by_a_stroke():
    generator = np.random.default_rng(3)
    written = Handwriting.sample(generator)
    kept = {"writers", "hand", "ink", "backdrop", "size"}
    shared = []
    for sibling in (written.sibling(generator) for _ in range(300)):
        assert all(getattr(sibling, name) is getattr(written, name) for name in kept)
        assert len(sibling.ways) == len(sibling.word[0])
        shared.append(sum(any(stroke is own for own in written.word[0]) for stroke in sibling.word[0]))
    assert set(shared) == {0, len(written.word[0]) - 1}
    assert np.mean(np.array(shared) > 0) == pytest.approx(0.4, abs=0.1)


def test_writers_differ_more_than_the_freest_hand():
    generator = np.random.default_rng(4)
    spreads = []
    for _ in range(20):
        (strokes,) = Handwriting.sample(generator)._written(generator, 100)
        spreads += [stroke.points.std(axis=0).mean() for stroke in strokes]
    assert np.mean(spreads) > 1.5 * 0.09  # the most that Hand moves a point


def test_another_object_stands_in_the_same_place():
    generator = np.random.default_rng(6)
    thing = Gear.sample(generator)
    sibling = thing.sibling(generator)
    assert sibling.stage is thing.stage
    assert sibling.teeth != thing.teeth or sibling.bore != thing.bore


def test_a_surface_has_no_other_object_and_says_what_it_has():
    category, generator = draw(generated.FAMILY_BY_NAME["granite"])
    assert OTHER not in category.kinds
    assert set(GLOBAL_KINDS) <= set(category.kinds)
    with pytest.raises(ValueError, match=r"has no anomaly of kind 'other_object'; there are .*scratch"):
        category.draw_anomalous(generator, [OTHER], SIDE)


@pytest.mark.parametrize(
    ("colour", "name"), [((255, 255, 255), "white"), ((128, 128, 128), "grey"), ((51, 89, 191), "blue")]
)
def test_colours_have_their_names(colour, name):
    assert name_colour(np.full((2, 4, 4, 3), colour, dtype=np.uint8)) == name


def test_data_module_writes_a_category_once_and_reads_it(tmp_path):
    data = ProceduralAD(root=tmp_path, category="knit-2", **SMALL)
    data.setup()
    samples = data.test_data.samples
    assert (len(data.train_data), len(samples), int(samples.label_index.sum())) == (3, 6, 4)
    for row in samples[samples.label_index == 1].itertuples():
        assert np.asarray(Image.open(row.mask_path)).any()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")}
    ProceduralAD(root=tmp_path, category="knit-2", **SMALL).setup()
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")}
    assert json.loads((tmp_path / "knit-2" / "procedural.json").read_text())["files"] == len(before)
    with pytest.raises(ValueError, match=r"other settings: image_size 64 instead of 80"):
        ProceduralAD(root=tmp_path, category="knit-2", **SMALL | {"image_size": 80}).setup()


def test_category_is_a_family_and_a_member_and_prompts_name_the_family():
    data = ProceduralAD(category="woven_cloth-3")
    assert (data.category, data.member) == ("woven_cloth-3", 3)
    assert data.class_name == generated.FAMILY_BY_NAME["woven_cloth"].NOUNS[0]
    assert ProceduralAD(category="gear").category == "gear-0"
    assert get_datamodule({"class_path": "anomalib_inctrl.ProceduralAD", "init_args": {"category": "nut"}}).member == 0


@pytest.mark.parametrize("category", ["", "spaceship", "gear-x", "gear-1-2", "gear--1"])
def test_unknown_categories_are_refused_with_a_list(category):
    with pytest.raises(ValueError, match=r"Unknown category .*Available.*board.*woven_cloth"):
        ProceduralAD(category=category)


@pytest.mark.parametrize("wrong", [{"image_size": 63}, {"train_count": 0}, {"anomalous_count": -1}])
def test_numbers_too_small_are_refused(wrong):
    with pytest.raises(ValueError, match="image_size must be at least 64 and every count at least 1"):
        ProceduralAD(**wrong)


def test_members_of_a_family_pool_as_categories_that_share_a_class_name(tmp_path):
    parts = [ProceduralAD(root=tmp_path, category=f"letter-{i}", **SMALL) for i in range(3)]
    pool = AuxiliaryData(parts, batch_size=4, k_shots=[2], validation_share=0)
    pool.setup()
    images = pool.train_pool.images
    assert {image.category for image in images} == {f"ProceduralAD/letter-{i}" for i in range(3)}
    assert {image.class_name for image in images} == {parts[0].class_name}
