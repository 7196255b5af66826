"""BrainMRI: slices of magnetic resonance images of the head, with or without a tumour.

Chakrabarty's collection on Kaggle; 98 normal and 155 anomalous images of many sizes. A quarter of the normal
ones tests.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from anomalib_inctrl.data.benchmarks.datamodule import DefectData
from anomalib_inctrl.data.benchmarks.preparation import (
    Benchmark,
    Source,
    check_counts,
    copy_image,
    folders_named,
    images_in,
    write_normal,
)


def _find(folders: Sequence[Path]) -> tuple[list[Path], list[Path]] | None:
    """Images of the outermost folders ``no`` and ``yes`` side by side; the archive holds all of them twice."""
    for no in folders_named(folders, "no"):
        for yes in folders_named([no.parent], "yes"):
            if yes.parent == no.parent:
                return images_in(no), images_in(yes)
    return None


def _write(source: Source, folder: Path) -> dict[str, Any] | None:
    images = source.find(_find)
    if images is None:
        return None
    normal, tumorous = images
    found = {"images without tumour": len(normal), "images with tumour": len(tumorous)}
    published = {"images without tumour": [98], "images with tumour": [155]}
    check_counts("BrainMRI", found, published, strict=source.strict)
    write_normal(normal, folder)
    for file in tumorous:
        copy_image(file, folder / "test" / "tumour")
    return {"found": found}


BENCHMARK = Benchmark(
    name="BrainMRI",
    place="https://www.kaggle.com/datasets/navoneel/brain-mri-images-for-brain-tumor-detection",
    files="the archive, or its folders no (98 images) and yes (155 images)",
    licence="see there",
    write=_write,
    published={"train normal": 73, "test normal": 25, "test anomalous": 155},
)


class BrainMRI(DefectData):
    """BrainMRI: slices of the head with or without a tumour; images without masks.

    Not the data of the same organ in anomalib's ``BMAD``.

    Args:
        root (Path | str | None): Folder of the prepared images. ``None`` stands for anomalib's own cache of data sets.
        class_name (str): What the text prompts call the objects.
        **kwargs (Any): ``source`` (the download), ``strict`` and what anomalib's data modules take.
    """

    benchmark: ClassVar[Benchmark] = BENCHMARK

    def __init__(
        self, root: Path | str | None = "./datasets/BrainMRI", class_name: str = "brain", **kwargs: Any
    ) -> None:
        super().__init__(root=root, class_name=class_name, **kwargs)
