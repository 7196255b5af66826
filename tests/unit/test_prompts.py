"""The sentences, word by word."""

import pytest

from anomalib_inctrl.prompts import NATURAL_OBJECTS, prompt_ensemble, spell_class_name

# WinCLIP's 22 templates as InCTRL uses them, written out.
TEMPLATES = [
    "a cropped photo of the {}.",
    "a cropped photo of a {}.",
    "a close-up photo of a {}.",
    "a close-up photo of the {}.",
    "a bright photo of a {}.",
    "a bright photo of the {}.",
    "a dark photo of the {}.",
    "a dark photo of a {}.",
    "a jpeg corrupted photo of a {}.",
    "a jpeg corrupted photo of the {}.",
    "a blurry photo of the {}.",
    "a blurry photo of a {}.",
    "a photo of a {}.",
    "a photo of the {}.",
    "a photo of a small {}.",
    "a photo of the small {}.",
    "a photo of a large {}.",
    "a photo of the large {}.",
    "a photo of the {} for visual inspection.",
    "a photo of a {} for visual inspection.",
    "a photo of the {} for anomaly detection.",
    "a photo of a {} for anomaly detection.",
]
NORMAL = [
    "metal nut",
    "flawless metal nut",
    "perfect metal nut",
    "unblemished metal nut",
    "metal nut without flaw",
    "metal nut without defect",
    "metal nut without damage",
]
ANOMALOUS = ["damaged metal nut", "metal nut with flaw", "metal nut with defect", "metal nut with damage"]


def test_the_ensemble_is_every_state_in_every_template():
    normal, anomalous = prompt_ensemble("metal_nut")
    assert (len(normal), len(anomalous)) == (154, 88)
    assert sorted(normal) == sorted(t.format(state) for t in TEMPLATES for state in NORMAL)
    assert sorted(anomalous) == sorted(t.format(state) for t in TEMPLATES for state in ANOMALOUS)


def test_single_sentences_exactly():
    normal, anomalous = prompt_ensemble("printed_circuit_board")
    assert normal[0] == "a cropped photo of a printed circuit board."
    assert "a photo of the small unblemished printed circuit board." in normal
    assert "a jpeg corrupted photo of a printed circuit board without damage." in normal
    assert anomalous[-1] == "a photo of the printed circuit board with damage for anomaly detection."
    assert not any("_" in sentence for sentence in normal + anomalous)


@pytest.mark.parametrize("name", sorted(NATURAL_OBJECTS))
def test_natural_objects_take_one_pair(name: str):
    expected = [f"a photo of {name} for anomaly detection."], [f"a photo without {name} for anomaly detection."]
    assert prompt_ensemble(name) == expected


def test_the_natural_objects_are_those_of_the_published_code():
    assert {
        "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck", "animal",
    } == NATURAL_OBJECTS  # fmt: skip


def test_a_name_that_only_contains_a_natural_object_takes_the_ensemble():
    assert len(prompt_ensemble("cat_food")[0]) == 154


@pytest.mark.parametrize("name", ["", "   ", "_", "_ _"])
def test_an_empty_name_is_refused(name: str):
    with pytest.raises(ValueError, match=r"class_name must name an object, got '.*'; leave it out to say 'object'"):
        prompt_ensemble(name)


def test_a_name_of_several_lines_is_refused():
    with pytest.raises(ValueError, match=r"class_name must .*line, got 'metal\\nnut'"):
        prompt_ensemble("metal\nnut")


def test_underscores_are_spoken_as_spaces():
    assert spell_class_name("_metal_nut ") == "metal nut"
