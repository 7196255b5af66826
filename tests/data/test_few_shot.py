"""The few-shot view, the choice of references, and the check of them."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from anomalib.data import MVTecAD, get_datamodule
from PIL import Image

from anomalib_inctrl import FewShot
from anomalib_inctrl.reference_choice import check_references, k_centre, k_medoids, odd_ones, select
from anomalib_inctrl.reference_images import draw


def write(path: Path, seed: int, square: bool = False) -> None:
    pixels = np.random.default_rng(seed).normal(110, 12, (40, 40, 3)).clip(0, 255).astype(np.uint8)
    if square:
        pixels[12:28, 12:28] = (255, 30, 30)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A category of 6 normal images to train; 2 normal and 2 damaged ones to test."""
    root = tmp_path_factory.mktemp("data")
    for i in range(6):
        write(root / f"bolt/train/good/{i:03}.png", i)
    for i in range(2):
        write(root / f"bolt/test/good/{i:03}.png", 10 + i)
        write(root / f"bolt/test/square/{i:03}.png", 20 + i, square=True)
        mask = np.zeros((40, 40), dtype=np.uint8)
        mask[12:28, 12:28] = 255
        (root / "bolt/ground_truth/square").mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(root / f"bolt/ground_truth/square/{i:03}_mask.png")
    return root


def data(root: Path) -> MVTecAD:
    return MVTecAD(root=root, category="bolt", num_workers=0)


def view(root: Path, **options) -> FewShot:
    found = FewShot(data(root), **options)
    found.prepare_data()
    found.setup()
    return found


def names(paths) -> list[str]:
    return [Path(path).name for path in paths]


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("k_shot", [1, 3, 6])
def test_training_split_is_the_draw_and_the_rest_is_unchanged(root, k_shot, seed):
    whole = data(root)
    whole.setup()
    few = view(root, k_shot=k_shot, seed=seed)
    assert list(few.train_data.samples.image_path) == draw(list(whole.train_data.samples.image_path), k_shot, seed)
    assert list(few.train_data.samples.image_path) == few.references
    assert few.train_data.task == whole.train_data.task
    for subset in ("val_data", "test_data"):
        assert getattr(few, subset).samples.equals(getattr(whole, subset).samples)
    assert (few.name, few.category, few.class_name) == ("MVTecAD", "bolt", "bolt")


def test_fewer_references_are_among_more_of_the_same_seed(root):
    assert set(view(root, k_shot=2, seed=3).references) < set(view(root, k_shot=4, seed=3).references)


def test_named_files(root):
    assert names(view(root, files=["004.png", "good/001.png"]).references) == ["001.png", "004.png"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"files": ["009.png"]},
            "files names '009.png', which is none of the 6 normal training images of MVTecAD",
        ),
        ({"files": ["001.png", "good/001.png"]}, "files names an image twice"),
        ({"files": []}, "files is empty"),
        ({"k_shot": 7}, "k_shot=7 references were asked for, but there are only 6 normal images"),
        ({"k_shot": 0}, "k_shot must be at least 1, got 0; without references use the data module itself"),
        ({"selection": "best"}, "selection must be one of random, k_centre, medoid, got 'best'"),
    ],
)
def test_wrong_options_say_what_to_do(root, options, message):
    with pytest.raises(ValueError, match=message):
        view(root, **options)


def test_views_do_not_nest_and_references_need_a_setup(root):
    with pytest.raises(ValueError, match="FewShot itself"):
        FewShot(FewShot(data(root)))
    with pytest.raises(RuntimeError, match="has not been called"):
        _ = FewShot(data(root)).references


def test_from_a_configuration(root):
    inner = {"class_path": "MVTecAD", "init_args": {"root": str(root), "category": "bolt", "num_workers": 0}}
    few = get_datamodule({"class_path": "FewShot", "init_args": {"data": inner, "k_shot": 2, "seed": 1}})
    few.setup()
    assert few.references == view(root, k_shot=2, seed=1).references


def test_loader_hands_out_the_references_and_notes_it(root):
    few = view(root, k_shot=3)
    assert few.handed_out == set()
    paths = [path for batch in few.train_dataloader() for path in batch.image_path]
    assert sorted(paths) == few.references
    assert few.handed_out == set(few.references)


# ---------------------------------------------------------------------------------------------------------- selection
def points(seed: int) -> torch.Tensor:
    found = torch.randn(8, 2, generator=torch.Generator().manual_seed(seed))
    return torch.cdist(found, found)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("k", [1, 2, 3, 8])
def test_k_centre_covers_at_most_twice_as_badly_as_the_best_choice(seed, k):
    distances = points(seed)
    chosen = k_centre(distances, k)
    best = min(float(distances[list(c)].amin(0).max()) for c in itertools.combinations(range(8), k))
    assert len(set(chosen)) == k
    assert float(distances[chosen].amin(0).max()) <= 2 * best + 1e-6


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("k", [1, 2, 3, 8])
def test_k_medoids_has_no_better_swap(seed, k):
    distances = points(seed)
    chosen = k_medoids(distances, k)
    assert len(set(chosen)) == k
    cost = float(distances[chosen].amin(0).sum())
    for out, into in itertools.product(range(k), range(8)):
        swapped = [*chosen[:out], into, *chosen[out + 1 :]]
        assert float(distances[swapped].amin(0).sum()) >= cost - 1e-5
    if k == 1:
        assert chosen == [int(distances.sum(0).argmin())]


@pytest.mark.parametrize("strategy", ["k_centre", "medoid"])
def test_strategies_look_at_the_images(tmp_path, tiny_backbone, strategy):
    """Of five equal images and one other, two centres are one of each kind, whatever the weights and the order."""
    for i in range(6):
        write(tmp_path / f"{i}.png", seed=0, square=i == 4)
    paths = [str(path) for path in tmp_path.glob("*.png")]
    chosen = select(paths, 2, strategy=strategy, backbone=tiny_backbone)
    assert chosen == select(paths[::-1], 2, seed=9, strategy=strategy, backbone=tiny_backbone)
    assert "4.png" in names(chosen)
    assert len(chosen) == 2
    assert names(select(paths, 1, strategy="medoid", backbone=tiny_backbone)) != ["4.png"]


# --------------------------------------------------------------------------------------------------------- diagnostic
def test_odd_reference_stands_out(tmp_path, tiny_backbone):
    for i in range(5):
        write(tmp_path / f"{i}.png", seed=i, square=i == 3)
    found = check_references(sorted(tmp_path.glob("*.png")), backbone=tiny_backbone)
    assert int(found.residuals.argmax()) == 3
    alike = check_references([tmp_path / "0.png"] * 4, backbone=tiny_backbone)
    assert alike.residuals.abs().max() < 1e-6
    assert alike.odd == [False] * 4
    assert alike.verdict == "The references look alike, none stands out."


def test_residuals_are_those_of_a_naive_loop(tmp_path, tiny_backbone):
    from anomalib_inctrl.reference_choice import encode

    for i in range(4):
        write(tmp_path / f"{i}.png", seed=i)
    paths = [str(tmp_path / f"{i}.png") for i in range(4)]
    found = check_references(paths[:3], pool=paths, backbone=tiny_backbone)
    patches = torch.nn.functional.normalize(encode(paths, tiny_backbone).patches, dim=-1)

    def residual(query: int, references: list[int]) -> float:
        largest = 0.0
        for n in range(patches.shape[2]):
            cosines = torch.stack([(patches[r] * patches[query, :, n, None]).sum(-1) for r in references])
            nearest = cosines.amax(dim=(0, 2))  # per block over references and their patches
            largest = max(largest, float(0.5 * (1 - nearest.mean())))
        return largest

    expected = [residual(0, [1, 2]), residual(1, [0, 2]), residual(2, [0, 1])]
    assert found.residuals.tolist() == pytest.approx(expected, abs=1e-5)
    assert found.pool_residuals.tolist() == pytest.approx([residual(3, [0, 1, 2])], abs=1e-5)


def test_what_few_references_can_tell(tmp_path, tiny_backbone):
    for i in range(2):
        write(tmp_path / f"{i}.png", seed=i)
    one = check_references([tmp_path / "0.png"], backbone=tiny_backbone)
    assert one.residuals.isnan().all()
    assert "can't be compared" in one.verdict
    two = check_references([tmp_path / "0.png", tmp_path / "1.png"], backbone=tiny_backbone)
    assert two.odd == [False, False]
    assert "a third one would" in two.verdict
    with pytest.raises(ValueError, match="no references to check"):
        check_references([])


def test_limits_of_odd_ones():
    # Median 0.12, median deviation 0.02: the limit is 0.12 + 3 * 1.4826 * 0.02 = 0.209.
    assert odd_ones(torch.tensor([0.10, 0.11, 0.12, 0.14, 0.20])) == [False] * 5
    assert odd_ones(torch.tensor([0.10, 0.11, 0.12, 0.14, 0.22])) == [False, False, False, False, True]
    # Hardly any spread: what counts is a quarter above the median.
    assert odd_ones(torch.tensor([0.100, 0.100, 0.100, 0.124])) == [False] * 4
    assert odd_ones(torch.tensor([0.100, 0.100, 0.100, 0.126])) == [False, False, False, True]
    assert odd_ones(torch.tensor([0.1, 0.9])) == [False, False]
