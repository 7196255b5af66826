"""KolektorSDD cut into thirds, as InCTRL's experiments have it.

Tabernik et al. (2019); 399 grey images of electrical commutators with masks. anomalib's ``Kolektor`` takes them whole;
InCTRL's protocol cuts them into an upper, a middle and a lower third, of which those with a mark in the mask are
anomalous, and tests with a quarter of the others. Figures of one are not figures of the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from anomalib_inctrl.data.benchmarks.datamodule import DefectData
from anomalib_inctrl.data.benchmarks.preparation import (
    Benchmark,
    Source,
    check_counts,
    files_named,
    read_grey,
    split_normal,
)
from anomalib_inctrl.data.folders import save_image


class _Third(NamedTuple):
    name: str
    image: np.ndarray
    mask: np.ndarray


def _find(folders: Sequence[Path]) -> list[tuple[Path, Path]] | None:
    """Images with their masks, ``kosNN/PartM.jpg`` and ``kosNN/PartM_label.bmp``."""
    images = [file for file in files_named(folders, "Part*.jpg") if file.parent.name.startswith("kos")]
    pairs = [(file, file.with_name(f"{file.stem}_label.bmp")) for file in images]
    return [pair for pair in pairs if pair[1].is_file()] or None


def _thirds(file: Path, mask_file: Path) -> list[_Third]:
    """Cut an image and its mask.

    Raises:
        ValueError: If a file can't be read or the sizes differ.
    """
    pixels, mask = read_grey(file), read_grey(mask_file) > 0
    if pixels.shape != mask.shape:
        msg = f"The mask {mask_file} is {mask.shape[::-1]}, its image {pixels.shape[::-1]}. Download both again."
        raise ValueError(msg)
    edges = [pixels.shape[0] * i // 3 for i in range(4)]
    return [
        _Third(f"{file.parent.name}_{file.stem}_{i}", pixels[top:bottom], mask[top:bottom])
        for i, (top, bottom) in enumerate(pairwise(edges))
    ]


def _write(source: Source, folder: Path) -> dict[str, Any] | None:
    pairs = source.find(_find)
    if pairs is None:
        return None
    check_counts("KolektorSDD", {"images": len(pairs)}, {"images": [399]}, strict=source.strict)
    thirds = sorted((third for pair in pairs for third in _thirds(*pair)), key=lambda third: third.name)
    for split, chosen in zip(("train", "test"), split_normal([t for t in thirds if not t.mask.any()]), strict=True):
        for third in chosen:
            save_image(third.image, folder / split / "good" / f"{third.name}.png")
    for third in (t for t in thirds if t.mask.any()):
        save_image(third.image, folder / "test" / "defect" / f"{third.name}.png")
        save_image(third.mask, folder / "ground_truth" / "defect" / f"{third.name}_mask.png")
    return {"found": {"images": len(pairs)}}


BENCHMARK = Benchmark(
    name="KolektorSDD",
    place="https://www.vicos.si/resources/kolektorsdd/",
    files="KolektorSDD.zip, or its folders kos01 to kos50 (399 images PartM.jpg with masks PartM_label.bmp)",
    licence="CC BY-NC-SA 4.0",
    write=_write,
    published={"train normal": 857, "test normal": 286, "test anomalous": 54},
)


class KolektorSDD(DefectData):
    """KolektorSDD in thirds: surfaces of commutators, with masks of the defects.

    Args:
        root (Path | str | None): Folder of the prepared images. ``None`` stands for anomalib's own cache of data sets.
        class_name (str): What the text prompts call the objects.
        **kwargs (Any): ``source`` (the download), ``strict`` and what anomalib's data modules take.
    """

    benchmark: ClassVar[Benchmark] = BENCHMARK

    def __init__(
        self, root: Path | str | None = "./datasets/KolektorSDD", class_name: str = "commutator", **kwargs: Any
    ) -> None:
        super().__init__(root=root, class_name=class_name, **kwargs)
