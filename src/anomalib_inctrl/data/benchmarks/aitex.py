"""AITEX: strips of woven fabric with and without defects.

Silvestre-Blanes et al. (2019); grey strips of 4096 x 256 pixels with masks. InCTRL's protocol: strips are cut into
squares; those of strips without defects are normal, those of other strips anomalous if the mask marks something in them
and left out if not; a quarter of the normal squares tests. A strip's squares may lie on both sides of that split.

The archives hold 141 and 106 images where the description has 140 and 105. Two strips have two masks, which are joined;
one has none (``0100_025_08``) and another an empty one: neither gives a square. What lies past the end of the fabric is
white, also in normal squares, and stays so.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from anomalib_inctrl.data.benchmarks.datamodule import DefectData
from anomalib_inctrl.data.benchmarks.preparation import (
    Benchmark,
    Source,
    check_counts,
    folders_named,
    images_in,
    read_grey,
    split_normal,
)
from anomalib_inctrl.data.folders import save_image

logger = logging.getLogger(__name__)

DEFECTS = {
    "002": "broken_end",
    "006": "broken_yarn",
    "010": "broken_pick",
    "016": "weft_curling",
    "019": "fuzzyball",
    "022": "cut_selvage",
    "023": "crease",
    "025": "warp_ball",
    "027": "knots",
    "029": "contamination",
    "030": "nep",
    "036": "weft_crack",
}
"""Codes of the defects, the middle part of a file's name."""


class _Strips(NamedTuple):
    normal: list[Path]
    defective: list[Path]
    masks: dict[str, list[Path]]  # by the name of the defective strip


def _find(folders: Sequence[Path]) -> _Strips | None:
    """Strips and masks; the former without defects lie in a folder for every fabric."""
    places = [_innermost(folders, name) for name in ("NODefect_images", "Defect_images", "Mask_images")]
    found = [place for place in places if place is not None]
    if len(found) < len(places):
        return None
    good, bad, mask = found
    fabrics = sorted(path for path in good.iterdir() if path.is_dir() and not path.name.startswith("."))
    masks: dict[str, list[Path]] = {}
    for file in images_in(mask):
        masks.setdefault(file.stem.partition("_mask")[0], []).append(file)
    return _Strips([file for folder in (good, *fabrics) for file in images_in(folder)], images_in(bad), masks)


def _innermost(folders: Sequence[Path], name: str) -> Path | None:
    """Folder of a name; some archives put it into another of the same name."""
    found = folders_named(folders, name)
    if not found:
        return None
    folder = found[0]
    while (folder / folder.name).is_dir():
        folder = folder / folder.name
    return folder


def _squares(strip: np.ndarray) -> Iterator[np.ndarray]:
    """Cut a strip from left to right into squares as high as the strip; the last may be narrower."""
    side = strip.shape[0]
    for left in range(0, strip.shape[1], side):
        yield strip[:, left : left + side]


def _read_mask(strip: Path, files: Sequence[Path], size: tuple[int, ...]) -> np.ndarray:
    """Join the masks of a strip: boolean array of the strip's size.

    Raises:
        ValueError: If a mask has another size.
    """
    masks = [read_grey(file) > 0 for file in files]
    for file, mask in zip(files, masks, strict=True):
        if mask.shape != size:
            msg = f"The mask {file} is {mask.shape[::-1]}, its strip {strip} {tuple(size)[::-1]}. Download both again."
            raise ValueError(msg)
    return np.logical_or.reduce(masks)


def _write(source: Source, folder: Path) -> dict[str, Any] | None:
    strips = source.find(_find)
    if strips is None:
        return None
    without_mask = [file for file in strips.defective if file.stem not in strips.masks]
    found = {
        "strips without defects": len(strips.normal),
        "strips with defects": len(strips.defective),
        "masks": sum(len(files) for files in strips.masks.values()),
    }
    published = {"strips without defects": [140, 141], "strips with defects": [105, 106], "masks": [105, 106, 107]}
    check_counts("Aitex", found, published, strict=source.strict)
    if without_mask:
        logger.warning("Aitex: left out for want of a mask: %s.", ", ".join(file.name for file in without_mask))
    _write_normal(strips.normal, folder)
    for file in strips.defective:
        if file.stem in strips.masks:
            _write_defective(file, strips.masks[file.stem], folder)
    return {"found": found, "without_mask": [file.name for file in without_mask]}


def _write_normal(strips: Sequence[Path], folder: Path) -> None:
    names = [(f"{file.parent.name}_{file.stem}", file) for file in strips]
    squares = [(f"{name}_{i:02}", square) for name, file in names for i, square in enumerate(_squares(read_grey(file)))]
    for split, chosen in zip(("train", "test"), split_normal(sorted(squares, key=lambda s: s[0])), strict=True):
        for name, square in chosen:
            save_image(square, folder / split / "good" / f"{name}.png")


def _write_defective(file: Path, masks: Sequence[Path], folder: Path) -> None:
    code = file.stem.split("_")[1] if file.stem.count("_") == 2 else ""
    if code not in DEFECTS:
        msg = f"{file.name} is not named 'number_defect_fabric' with a defect among {', '.join(DEFECTS)}."
        raise ValueError(msg)
    strip = read_grey(file)
    mask = _read_mask(file, masks, strip.shape)
    for index, (square, marked) in enumerate(zip(_squares(strip), _squares(mask), strict=True)):
        if marked.any():
            name = f"{file.stem}_{index:02}"
            save_image(square, folder / "test" / DEFECTS[code] / f"{name}.png")
            save_image(marked, folder / "ground_truth" / DEFECTS[code] / f"{name}_mask.png")


BENCHMARK = Benchmark(
    name="Aitex",
    place="https://www.aitex.es/afid/",
    files="Defect_images.7z, NODefect_images.7z and Mask_images.7z, or folders of these names",
    licence="see there",
    write=_write,
    published={"train normal": 1692, "test normal": 564, "test anomalous": 183},
)


class Aitex(DefectData):
    """AITEX: squares of woven fabric, with masks of the defects.

    Args:
        root (Path | str | None): Folder of the prepared images. ``None`` stands for anomalib's own cache of data sets.
        class_name (str): What the text prompts call the objects.
        **kwargs (Any): ``source`` (the download), ``strict`` and what anomalib's data modules take.
    """

    benchmark: ClassVar[Benchmark] = BENCHMARK

    def __init__(self, root: Path | str | None = "./datasets/AITEX", class_name: str = "fabric", **kwargs: Any) -> None:
        super().__init__(root=root, class_name=class_name, **kwargs)
