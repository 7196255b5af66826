"""Digits and faces as data modules: which image is where, and with which pixels."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage.data import lfw_subset
from sklearn.datasets import load_digits

from anomalib_inctrl import DigitsAD, FacesAD


def prepared(datamodule):
    datamodule.prepare_data()
    datamodule.setup()
    return datamodule


def index_of(path: str) -> int:
    return int(Path(path).stem)


def test_digits(tmp_path):
    data = load_digits()
    tested = []
    for category in ("3", "7"):
        found = prepared(DigitsAD(root=tmp_path, category=category, queries_per_digit=4))
        train, test = found.train_data.samples, found.test_data.samples
        assert {data.target[index_of(path)] for path in train.image_path} == {int(category)}
        assert len(train) == (data.target == int(category)).sum() - 50
        assert Counter(data.target[index_of(path)] for path in test.image_path) == dict.fromkeys(range(10), 4)
        assert [data.target[index_of(p)] != int(category) for p in test.image_path] == list(test.label_index == 1)
        assert set(train.image_path.map(index_of)).isdisjoint(test.image_path.map(index_of))
        assert str(found.task) == "TaskType.CLASSIFICATION"
        tested.append(set(test.image_path.map(index_of)))
        for path in [*train.image_path[:2], *test.image_path[:2]]:
            expected = np.round(data.images[index_of(path)] * 255 / 16)
            assert np.array_equal(np.asarray(Image.open(path)), np.repeat(expected[..., None], 3, -1))
    assert tested[0] == tested[1]  # the same queries whichever digit is normal


def test_faces(tmp_path):
    found = prepared(FacesAD(root=tmp_path))
    train, test = found.train_data.samples, found.test_data.samples
    assert (len(train), Counter(test.label_index)) == (50, {0: 50, 1: 100})
    normal = set(train.image_path.map(index_of)) | set(test.image_path[test.label_index == 0].map(index_of))
    assert normal == set(range(100))
    assert set(test.image_path[test.label_index == 1].map(index_of)) == set(range(100, 200))
    path = train.image_path[0]
    assert np.array_equal(np.asarray(Image.open(path))[..., 1], np.round(lfw_subset()[index_of(path)] * 255))
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.png")}
    prepared(FacesAD(root=tmp_path))
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.png")} == before  # written once


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: DigitsAD(root=root, category="ten"), "Unknown category 'ten'. Available categories: 0, 1, 2"),
        (lambda root: DigitsAD(root=root, queries_per_digit=51), "queries_per_digit must be 1 to 50, got 51"),
        (lambda root: FacesAD(root=root, category="dogs"), "Unknown category 'dogs'. Available categories: faces"),
    ],
)
def test_wrong_arguments(tmp_path, make, message):
    with pytest.raises(ValueError, match=message):
        make(tmp_path)
