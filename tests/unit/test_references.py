"""The bank of reference features."""

from types import SimpleNamespace

import pytest
import torch

from anomalib_inctrl.clip import ImageFeatures
from anomalib_inctrl.references import ReferenceBank

BLOCKS, PATCHES, WIDTH, DIM = 2, 4, 3, 5


def new_bank() -> ReferenceBank:
    return ReferenceBank(
        SimpleNamespace(layers=("first", "last"), num_patches=PATCHES, width=WIDTH, embed_dim=DIM, image_size=(8, 6))
    )


def entry(count: int) -> tuple[ImageFeatures, torch.Tensor, torch.Tensor]:
    """Features, prototypes and pictures of ``count`` references."""
    features = ImageFeatures(torch.randn(count, BLOCKS, PATCHES, WIDTH), torch.randn(count, DIM))
    return features, torch.randn(2, DIM), torch.randint(256, (count, 3, 8, 6), dtype=torch.uint8)


def fill(bank: ReferenceBank, name: str, count: int) -> ImageFeatures:
    features, prototypes, pictures = entry(count)
    bank.extend(name, features, prototypes, pictures)
    return features


def test_classes_keep_their_order_and_their_rows_when_they_grow():
    bank = new_bank()
    parts = [("nut", fill(bank, "nut", 2)), ("cat", fill(bank, "cat", 3)), ("nut", fill(bank, "nut", 1))]
    assert bank.class_names == ["nut", "cat"]
    assert bank.counts.tolist() == [3, 3]
    assert (bank.count("nut"), bank.count("cat"), bank.count()) == (3, 3, 3)
    for name in ("nut", "cat"):
        pooled = torch.cat([features.pooled for n, features in parts if n == name])
        assert torch.equal(bank.context(name).pooled, pooled)
        patches = torch.nn.functional.normalize(
            torch.cat([features.patches for n, features in parts if n == name]), dim=-1
        )
        torch.testing.assert_close(bank.features(name).patches, patches)
        torch.testing.assert_close(bank.context(name).patches, patches.transpose(0, 1).flatten(1, 2))


def test_pictures_and_prototypes_stay_with_their_class():
    bank = new_bank()
    first, second, third = entry(1), entry(2), entry(1)
    bank.extend("nut", *first)
    bank.extend("cat", *second)
    bank.extend("nut", *third)
    assert torch.equal(bank.pictures_of("nut"), torch.cat([first[2], third[2]]))
    assert torch.equal(bank.pictures_of("cat"), second[2])
    assert torch.equal(bank.context("nut").prototypes, first[1])  # those of the class, not of the last call
    assert torch.equal(bank.context("cat").prototypes, second[1])


def test_the_first_class_is_meant_when_none_is_named():
    bank = new_bank()
    fill(bank, "nut", 1)
    fill(bank, "cat", 2)
    assert bank.resolve(None) == "nut"
    assert bank.context().pooled.shape == (1, DIM)


def test_a_context_is_a_view():
    bank = new_bank()
    fill(bank, "nut", 2)
    fill(bank, "cat", 2)
    context = bank.context("cat")
    for name, whole in (("patches", bank.patches), ("pooled", bank.pooled), ("prototypes", bank.prototypes)):
        assert getattr(context, name).untyped_storage().data_ptr() == whole.untyped_storage().data_ptr(), name
    bank.pooled[2] = 7.0
    assert context.pooled[0].tolist() == [7.0] * DIM


def test_a_state_dict_restores_other_counts_and_classes():
    bank = new_bank()
    for name, count in (("nut", 2), ("Glühbirne", 3), ("text only", 0)):
        fill(bank, name, count)
    state = bank.state_dict()
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    other = new_bank()
    fill(other, "cat", 1)  # to be overwritten
    other.load_state_dict(state)
    assert other.class_names == ["nut", "Glühbirne", "text only"]
    assert other.counts.tolist() == [2, 3, 0]
    for name in bank.class_names:
        for ours, theirs in zip(bank.context(name), other.context(name), strict=True):
            assert ours is theirs is None or torch.equal(ours, theirs)
        assert torch.equal(bank.pictures_of(name), other.pictures_of(name))
    fill(other, "Glühbirne", 1)
    assert other.counts.tolist() == [2, 4, 0]


def test_an_empty_state_dict_empties():
    bank = new_bank()
    fill(bank, "nut", 2)
    bank.load_state_dict(new_bank().state_dict())
    assert bank.class_names == []
    assert bank.count() == 0
    assert bank.patches.shape == (BLOCKS, 0, PATCHES, WIDTH)


def test_clearing_forgets_everything():
    bank = new_bank()
    fill(bank, "nut", 2)
    bank.clear()
    assert bank.class_names == []
    assert bank.prototypes.shape == (0, 2, DIM)
    fill(bank, "cat", 1)
    assert bank.counts.tolist() == [1]


def test_a_class_without_images_has_text_alone():
    bank = new_bank()
    fill(bank, "nut", 0)
    context = bank.context("nut")
    assert not context.has_references
    assert context.patches.shape == (BLOCKS, 0, WIDTH)
    assert context.prototypes.shape == (2, DIM)


def test_an_empty_bank_says_what_to_call():
    with pytest.raises(RuntimeError, match=r"call set_references\(images, class_name\)"):
        new_bank().context()


def test_an_unknown_class_is_named_with_those_there_are():
    bank = new_bank()
    fill(bank, "nut", 1)
    with pytest.raises(KeyError, match=r"'cat', only of \['nut'\]: call add_references"):
        bank.context("cat")
