"""From a download, as its makers distribute it, to a folder in MVTec AD's layout: once, complete or not at all."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image
from sklearn.model_selection import train_test_split

from anomalib_inctrl.data.benchmarks.archives import is_archive, unpack
from anomalib_inctrl.data.folders import ensure_folder, temporary_beside
from anomalib_inctrl.reference_images import require_eight_bits

logger = logging.getLogger(__name__)

METADATA = "prepared.json"
VERSION = 1
"""Raised whenever the same download gives another folder, so that folders of older versions are not reused."""

TEST_SHARE = 0.25  # of the normal images
SPLIT_SEED = 42

_Found = TypeVar("_Found")


@dataclass(frozen=True)
class Source:
    """Where images are read from: a folder, or the archives in it once they are unpacked.

    Attributes:
        path (Path): Folder or archive that the user named.
        temporary (Path): Folder that may be filled; it goes when the preparation ends.
        strict (bool): Whether counts have to be the published ones.
    """

    path: Path
    temporary: Path
    strict: bool = True

    def find(self, look: Callable[[Sequence[Path]], _Found | None]) -> _Found | None:
        """Look for what is needed in the folder, then also in its archives.

        Args:
            look (Callable): Takes the folders to search and returns what it found, or ``None``.
        """
        folders = [self.path] if self.path.is_dir() else []
        found = look(folders) if folders else None
        if found is not None:
            return found
        archives = [self.path] if self.path.is_file() else sorted(p for p in self.path.iterdir() if is_archive(p))
        for index, archive in enumerate(archives):
            logger.info("Unpacking %s ...", archive)
            unpack(archive, self.temporary / f"{index}_{archive.name.partition('.')[0]}")
        return look([*folders, self.temporary]) if archives else None


@dataclass(frozen=True)
class Benchmark:
    """A data set that has to be downloaded by hand.

    Attributes:
        name (str): Class of its data module.
        place (str): Where its makers distribute it.
        files (str): What the download consists of.
        licence (str): Terms as stated there.
        write (Callable): Writes the images of a source into a folder and returns what to record, or ``None`` if the
            source does not hold them.
        published (Mapping[str, int]): Counts of the paper's protocol that the folder is expected to show.
    """

    name: str
    place: str
    files: str
    licence: str
    write: Callable[[Source, Path], dict[str, Any] | None]
    published: Mapping[str, int] = field(default_factory=dict)

    def prepare(self, source: Path | str | None, root: Path | str, *, strict: bool = True) -> bool:
        """Write the folder unless it is there.

        Args:
            source (Path | str | None): The download: a folder or an archive. Needed if the folder is not there.
            root (Path | str): Folder to write; those above it are created if needed.
            strict (bool): Whether to refuse a download whose counts are not the published ones.

        Returns:
            bool: Whether this call wrote the folder.

        Raises:
            FileNotFoundError: If the download is missing, with the place to get it from.
            ValueError: If the counts are others, a file can't be read, or the folder is there but not complete.
        """
        root = Path(root)
        settings = {"generator": f"anomalib_inctrl.data.{self.name}", "version": VERSION, "strict": strict}
        if not root.exists() and source is None:
            raise FileNotFoundError(self._missing(f"{root} does not exist and no source is given."))
        path = root if source is None else Path(source).expanduser()
        if not root.exists() and not (path.is_dir() or is_archive(path)):
            raise FileNotFoundError(self._missing(f"{path} is neither a folder nor an archive."))

        def write(folder: Path) -> dict[str, Any]:
            with temporary_beside(root) as temporary:
                record = self.write(Source(path, temporary, strict), folder)
            if record is None:
                raise FileNotFoundError(self._missing(f"{path} does not hold what is needed."))
            return {"source": str(path), "licence": self.licence, "counts": self._count(folder)} | record

        return ensure_folder(root, settings, write, METADATA)

    def _count(self, folder: Path) -> dict[str, int]:
        """Count normal and anomalous images per split, and say where the protocol's published counts differ."""
        counts = count_images(folder) if self.published else {}
        differing = {k: (counts.get(k, 0), v) for k, v in self.published.items() if counts.get(k, 0) != v}
        for name, (found, published) in differing.items():
            logger.warning("%s: %d images in %s, where the paper's protocol has %d.", self.name, found, name, published)
        return counts

    def _missing(self, reason: str) -> str:
        return (
            f"{self.name}: {reason} Download it from {self.place} (licence: {self.licence}). Expected: {self.files}. "
            f"Then run: python -m anomalib_inctrl.data.benchmarks prepare {self.name} --source DOWNLOAD --root ROOT"
        )


def check_counts(name: str, found: Mapping[str, int], published: Mapping[str, Sequence[int]], *, strict: bool) -> None:
    """Compare what a download holds with what its makers say.

    Args:
        name (str): The data set, for the message.
        found (Mapping[str, int]): Counts by what is counted.
        published (Mapping[str, Sequence[int]]): The counts that are right.
        strict (bool): Whether other counts are an error; else they are a warning.

    Raises:
        ValueError: If the counts are others and ``strict``, or if nothing was found of something.
    """
    differing = [
        f"{found[what]} {what} instead of {' or '.join(map(str, right))}"
        for what, right in published.items()
        if found[what] not in right
    ]
    empty = [what for what in published if not found[what]]
    if not differing:
        return
    msg = f"{name}: the download holds {', '.join(differing)}: it is incomplete or another version."
    if strict or empty:
        msg += " Download it again" + ("." if empty else ", or use a partial copy on purpose by strict=False.")
        raise ValueError(msg)
    logger.warning(msg)


def split_normal(items: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """Split normal images into training and test as InCTRL's published scripts do: a quarter at random for testing.

    They split in the order in which the file system lists the images, which nobody can repeat; here the order is the
    one given, so hand them over sorted. Numbers are the same, the images are not.

    Raises:
        ValueError: If there are fewer than two.
    """
    if len(items) < 2:
        msg = f"Splitting normal images into training and test takes at least two, got {len(items)}."
        raise ValueError(msg)
    train, test = train_test_split(list(items), test_size=TEST_SHARE, random_state=SPLIT_SEED)
    return train, test


def write_normal(items: Sequence[Path], folder: Path) -> None:
    """Split normal image files and copy them to ``train/good`` and ``test/good``."""
    for split, files in zip(("train", "test"), split_normal(items), strict=True):
        for file in files:
            copy_image(file, folder / split / "good")


def copy_image(file: Path, folder: Path) -> Path:
    """Copy an image to a folder as PNG, pixel for pixel; names of other formats get the suffix behind their own.

    Raises:
        ValueError: If the file is no image, has more than eight bits a channel, or its name is taken.
    """
    require_eight_bits(file)
    target = folder / (file.name if file.suffix == ".png" else f"{file.name}.png")
    if target.exists():
        msg = f"Two images would be written to {target.name} in {folder.name}: {file} is the second."
        raise ValueError(msg)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with Image.open(file) as image:
            image.load()
            if image.format == "PNG":
                shutil.copyfile(file, target)
            else:
                (image if image.mode in {"L", "RGB"} else image.convert("RGB")).save(target)
    except (OSError, SyntaxError) as error:
        msg = f"{file} can't be read as an image: {error}. Download it again."
        raise ValueError(msg) from error
    return target


def read_grey(file: Path) -> np.ndarray:
    """Read an image as one grey channel: ``uint8`` ``(height, width)``.

    Raises:
        ValueError: If the file is no image, or has more than eight bits a channel.
    """
    require_eight_bits(file)
    try:
        with Image.open(file) as image:
            return np.asarray(image.convert("L"))
    except (OSError, SyntaxError) as error:
        msg = f"{file} can't be read as an image: {error}. Download it again."
        raise ValueError(msg) from error


def count_images(folder: Path) -> dict[str, int]:
    """Count the images of a folder in MVTec AD's layout by split and label."""
    counts: dict[str, int] = {}
    for split in ("train", "test"):
        for label in sorted(p for p in (folder / split).glob("*") if p.is_dir()):
            key = f"{split} {'normal' if label.name == 'good' else 'anomalous'}"
            counts[key] = counts.get(key, 0) + sum(1 for _ in label.glob("*.png"))
    return counts


def files_named(folders: Sequence[Path], pattern: str) -> list[Path]:
    """Find files by a pattern, those nearest to the top first, without hidden ones and what macOS adds to archives."""
    return sorted((p for p in _visible(folders, pattern) if p.is_file()), key=lambda p: (len(p.parts), p))


def folders_named(folders: Sequence[Path], name: str) -> list[Path]:
    """Find folders by name in any case, those nearest to the top first."""
    matches = (p for p in _visible(folders, "*") if p.is_dir() and p.name.casefold() == name.casefold())
    return sorted(matches, key=lambda p: (len(p.parts), p))


def images_in(folder: Path) -> list[Path]:
    """Image files directly in a folder, by name."""
    suffixes = {".png", ".jpg", ".jpeg", ".bmp"}
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in suffixes and not p.name.startswith("."))


def _visible(folders: Sequence[Path], pattern: str) -> Iterator[Path]:
    for folder in folders:
        for path in folder.rglob(pattern):
            inner = path.relative_to(folder).parts
            if not any(part.startswith(".") or part == "__MACOSX" for part in inner):
                yield path
