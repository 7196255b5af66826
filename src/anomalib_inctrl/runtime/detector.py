"""The detector of a deployed model: banks by name, references in and out, predictions. Needs numpy and an engine."""

from __future__ import annotations

import json
import logging
import re
from dataclasses import replace
from itertools import count, groupby
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from anomalib_inctrl.calibration import MIRRORS, UNKNOWN, statistics_of_normals, upper_limit
from anomalib_inctrl.reference_views import ReferenceViews, count_views, further_views
from anomalib_inctrl.runtime.bank import SUFFIX, Bank, nearest_distances
from anomalib_inctrl.runtime.graphs import Engine, open_graph
from anomalib_inctrl.runtime.images import as_input

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

logger = logging.getLogger(__name__)

Image = str | Path | np.ndarray

MODEL_FILE = "model.json"
PROTOTYPES_FILE = "prototypes.safetensors"
BANKS_FOLDER = "banks"
AUTO = "auto"
FORMAT = 1

_PRODUCT_BYTES = 64 * 2**20  # bounds the similarities of query and reference patches that are held at once


class Features(NamedTuple):
    """What the encoder says of a batch.

    Attributes:
        patches (np.ndarray): Patch tokens of all layers, ``(B, L, N, W)``.
        pooled (np.ndarray): Image embeddings, ``(B, D)``.
    """

    patches: np.ndarray
    pooled: np.ndarray


class Prediction(NamedTuple):
    """What is said of an image.

    Attributes:
        name (str): File of the image, or its number.
        category (str | None): Bank it was compared with; ``None`` for an unknown product, then the rest is ``None``.
        pred_score (float | None): 0 to 1, 0.5 at the threshold.
        pred_label (bool | None): Whether the image is anomalous.
        anomaly_map (np.ndarray | None): Pixel scores 0 to 1, float32, of the size the model sees.
        pred_mask (np.ndarray | None): Anomalous pixels, bool, same size.
    """

    name: str
    category: str | None
    pred_score: float | None = None
    pred_label: bool | None = None
    anomaly_map: np.ndarray | None = None
    pred_mask: np.ndarray | None = None


class InContextDetector:
    """An exported InCTRL or InCTRLv2 with references that can be swapped.

    Categories are banks of references, each a file. They are read on first use and kept, so that switching between them
    costs nothing. A change of references takes the threshold anew from the references, each compared with the others.

    Args:
        folder (str | Path): Export directory.
        banks (str | Path | None): Directory of the banks; ``None`` for that of the export.
        engine (str | None): ``"onnx"`` or ``"openvino"``; ``None`` for what was exported, ONNX first.
        threads (int | None): Threads of the engine; ``None`` for as many as there are cores.

    Raises:
        FileNotFoundError: If the directory is no export.
        ModuleNotFoundError: If the engine is not installed.
        ValueError: If a file of it can't be read.
    """

    def __init__(
        self,
        folder: str | Path,
        banks: str | Path | None = None,
        engine: Engine | None = None,
        threads: int | None = None,
    ) -> None:
        folder = Path(folder)
        self.model = read_model_file(folder)
        self.folder = folder
        self.banks_folder = folder / BANKS_FOLDER if banks is None else Path(banks)
        self._prototypes = _read_prototypes(folder / PROTOTYPES_FILE)
        self._encoder = open_graph(folder, "encoder", engine, threads)
        self._scorer = open_graph(folder, "scorer", engine, threads)
        self._banks: dict[str, Bank] = {}

    # --------------------------------------------------------------------------------------------------- references
    @property
    def categories(self) -> list[str]:
        """Categories there are banks of."""
        return sorted(path.stem for path in self.banks_folder.glob(f"*{SUFFIX}"))

    def bank(self, category: str) -> Bank:
        """Bank of a category.

        Raises:
            FileNotFoundError: If there is none.
            ValueError: If its file can't be read or is of another model.
        """
        if category not in self._banks:
            self._banks[category] = Bank.load(self._path_of(category), self.model["fingerprint"])
        return self._banks[category]

    def add_references(self, category: str, images: Sequence[Image], class_name: str | None = None) -> Bank:
        """Add images of normal objects to a category, or open it, and take its threshold anew.

        Args:
            category (str): Name of the bank, a file name without suffix.
            images (Sequence): Files, or RGB arrays ``(H, W, 3)``, uint8 or floats in ``[0, 1]``.
            class_name (str | None): What the images show, for the text prototypes, of those exported with the model.
                ``None`` for that of the bank, the category itself if it was exported, else ``"object"``.

        Returns:
            Bank: The bank as it is now.

        Raises:
            FileNotFoundError: If an image does not exist.
            ValueError: If there is no image, one can't be read, or the class was not exported.
        """
        if len(images) == 0:
            msg = f"Give at least one image of a normal {category!r}."
            raise ValueError(msg)
        inputs = [as_input(image) for image in images]
        there = self._path_of(category).is_file()
        bank = self.bank(category) if there else self._empty_bank(self._resolve_class(category, class_name))
        if there and class_name not in {None, bank.class_name}:
            msg = (
                f"The bank of {category!r} is of class {bank.class_name!r}, not {class_name!r}: take another category."
            )
            raise ValueError(msg)
        names = _new_names(images, bank.names)
        encoded = [self._encode_reference(image[None]) for image in inputs]
        patches, pooled, pictures = (np.concatenate(column) for column in zip(*encoded, strict=True))
        bank = bank.add(patches, pooled, pictures, names)
        return self._keep(category, self._calibrated(bank))

    def _encode_reference(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Patches ``(1, L, V * N, W)`` of all views of an image ``(1, 3, H, W)``, its embedding, and its picture."""
        outputs = self._encoder(images=image)
        pictures = outputs["pictures"]
        views = further_views(pictures, self._reference_views, self.model.get("patch_size", (0, 0)))
        further = [self.encode(view.astype(np.float32) / 255).patches for view in views]
        return np.concatenate([outputs["patches"], *further], axis=2), outputs["pooled"], pictures

    def remove_references(self, category: str, names: Iterable[str]) -> Bank:
        """Remove references by name (see :attr:`Bank.names`) and take the threshold anew.

        Raises:
            FileNotFoundError: If there is no such category.
            ValueError: If a name is unknown, or no reference would be left.
        """
        bank = self.bank(category)
        for name in names:
            if name not in bank.names:
                msg = f"{category!r} has no reference {name!r}, only {list(bank.names)}."
                raise ValueError(msg)
            bank = bank.without(bank.names.index(name))
        if bank.count == 0:
            msg = f"That would leave {category!r} empty: remove_category({category!r}) removes it altogether."
            raise ValueError(msg)
        return self._keep(category, self._calibrated(bank))

    def remove_category(self, category: str) -> None:
        """Delete the bank of a category.

        Raises:
            FileNotFoundError: If there is none.
        """
        path = self._path_of(category)
        if not path.is_file():
            msg = f"There is no category {category!r}, only {self.categories}."
            raise FileNotFoundError(msg)
        path.unlink()
        self._banks.pop(category, None)

    def calibrate(self, category: str) -> Bank:
        """Take threshold and range from the references, whatever gave them before.

        Every reference is scored against the others; a single one against its mirror images, which says little.

        Raises:
            FileNotFoundError: If there is no such category.
            ValueError: If its bank was reduced.
        """
        return self._keep(category, self._calibrated(self.bank(category)))

    def reduce_bank(self, category: str, share: float = 1.0, *, half_precision: bool = False) -> Bank:
        """Make a bank smaller and faster to compare with, at some loss.

        Args:
            category (str): Name of the bank.
            share (float): Share of the patches to keep: a k-centre coreset.
            half_precision (bool): Keep patches in float16, which halves the file.

        Raises:
            FileNotFoundError: If there is no such category.
            ValueError: If the share is not above 0 and at most 1, or the bank was reduced before.
        """
        bank = self.bank(category)
        if bank.reduced:
            msg = f"The bank of {category!r} was reduced already: add the references again to reduce it otherwise."
            raise ValueError(msg)
        reduced = bank.reduce(share)
        if half_precision:
            reduced = replace(reduced, patches=reduced.patches.astype(np.float16))
        return self._keep(category, self._calibrated(reduced, queries=bank))

    # --------------------------------------------------------------------------------------------------- prediction
    def predict(self, images: Sequence[Image], category: str | None = None, batch_size: int = 8) -> list[Prediction]:
        """Score images.

        Args:
            images (Sequence): Files, or RGB arrays ``(H, W, 3)``, uint8 or floats in ``[0, 1]``, of any sizes.
            category (str | None): What to compare them with; ``"auto"`` finds the nearest bank of every image; ``None``
                if there is one bank alone.
            batch_size (int): Images of one size that are encoded together.

        Returns:
            list[Prediction]: In the order of the images.

        Raises:
            FileNotFoundError: If an image or the category does not exist.
            RuntimeError: If there is no bank.
            ValueError: If an image can't be read, or the category must be named.
        """
        category = self._resolve_category(category)
        predictions: list[Prediction] = []
        named = zip(names_of(images), map(as_input, images), strict=True)
        for _, group in groupby(named, key=lambda item: item[1].shape):
            for names, batch in _batches(group, batch_size):
                features = self.encode(batch)
                if category == AUTO:
                    predictions += self._predict_routed(names, features)
                else:
                    predictions += self._predict(names, features, category)
        return predictions

    def encode(self, images: np.ndarray) -> Features:
        """Encode images ``(B, 3, H, W)``, float32 in ``[0, 1]``."""
        outputs = self._encoder(images=images)
        return Features(outputs["patches"], outputs["pooled"])

    def route(self, features: Features, slack: float = 1.5, floor: float = 0.05) -> list[str | None]:
        """Find the category of encoded images: that of the nearest reference, by image embedding.

        A rule of ours. On 25 generated categories with earlier weights of the embedded backbone, all normal images
        and 75 % of the anomalous ones (every kind, replaced objects included) are known, and 70 % of the images of a
        product without a bank are not.

        Args:
            features (Features): Of ``B`` images.
            slack (float): An image is of no category if it is farther from the references than this many times what
                they are from each other (highest, or mean plus three standard deviations).
            floor (float): Cosine distance up to which it is of the category in any case, 0 to 2.

        Raises:
            RuntimeError: If there is no bank.
        """
        nearest: dict[str, np.ndarray] = {}
        for category in self.categories:
            bank = self.bank(category)
            if np.isnan(bank.routing_limit):
                msg = f"The bank {category!r} has no limit to route by: call calibrate({category!r}) first."
                raise ValueError(msg)
            distances = nearest_distances(features.pooled, bank.pooled)
            nearest[category] = np.where(distances > max(floor, slack * bank.routing_limit), np.inf, distances)
        if not nearest:
            raise RuntimeError(self._no_bank())
        names = list(nearest)
        table = np.stack([nearest[name] for name in names])  # (categories, B)
        return [names[i] if np.isfinite(table[i, b]) else None for b, i in enumerate(table.argmin(axis=0))]

    def _predict_routed(self, names: Sequence[str], features: Features) -> list[Prediction]:
        predictions = []
        for i, category in enumerate(self.route(features)):
            one = Features(features.patches[i : i + 1], features.pooled[i : i + 1])
            predictions += (
                [Prediction(names[i], None)] if category is None else self._predict(names[i : i + 1], one, category)
            )
        return predictions

    def _predict(self, names: Sequence[str], features: Features, category: str) -> list[Prediction]:
        outputs = self._score(features, self.bank(category))
        columns = (outputs[name] for name in ("pred_score", "pred_label", "anomaly_map", "pred_mask"))
        return [
            Prediction(name, category, float(score), bool(label), anomaly_map, mask)
            for name, score, label, anomaly_map, mask in zip(names, *columns, strict=True)
        ]

    def _score(self, features: Features, bank: Bank) -> dict[str, np.ndarray]:
        """Compare encoded images with a bank, few enough at a time to bound the memory."""
        similarities = 4 * features.patches.shape[2] * max(1, bank.patches.shape[1])
        step = max(1, _PRODUCT_BYTES // similarities)
        references = {
            "bank_patches": bank.patches.astype(np.float32, copy=False),
            "bank_pooled": bank.pooled,
            "prototypes": bank.prototypes,
            "statistics": bank.statistics.as_input(),
        }
        parts = [
            self._scorer(patches=features.patches[i : i + step], pooled=features.pooled[i : i + step], **references)
            for i in range(0, len(features.pooled), step)
        ]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    # -------------------------------------------------------------------------------------------------- calibration
    def _calibrated(self, bank: Bank, queries: Bank | None = None) -> Bank:
        """The bank with threshold and range of its references; ``queries`` if its own patches are not all there."""
        queries = queries or bank
        if queries.reduced:
            msg = "A reduced bank lacks the patches to take a threshold from: add the references again."
            raise ValueError(msg)
        if bank.count == 1:
            logger.warning("Calibrated from mirror images of a single reference: take the threshold with care.")
            picture = bank.pictures.astype(np.float32) / 255
            turned = self.encode(np.concatenate([np.flip(picture, axes) for axes in MIRRORS]))
            pairs = iter([(turned, replace(bank, patches=bank.patches_of(0)))])  # views may be turned too
            distances = nearest_distances(turned.pooled, bank.pooled)
        else:
            pairs = (
                (Features(queries.patches_of(i)[None].astype(np.float32), bank.pooled[i : i + 1]), bank.without(i))
                for i in range(bank.count)
            )
            distances = bank.distances_left_out()
        outputs = [self._score(query, replace(others, statistics=UNKNOWN)) for query, others in pairs]
        scores, maps = (np.concatenate([output[name] for output in outputs]) for name in ("pred_score", "anomaly_map"))
        return replace(bank, statistics=statistics_of_normals(scores, maps), routing_limit=upper_limit(distances))

    # -------------------------------------------------------------------------------------------------------- names
    def _path_of(self, category: str) -> Path:
        if not re.fullmatch(r"\w[\w .+-]*", category) or category == AUTO:
            msg = f"A category is a file name of letters, digits, spaces and . _ + -, not {AUTO!r}; got {category!r}."
            raise ValueError(msg)
        return self.banks_folder / f"{category}{SUFFIX}"

    def _keep(self, category: str, bank: Bank) -> Bank:
        bank.save(self._path_of(category))
        self._banks[category] = bank
        return bank

    def _empty_bank(self, class_name: str) -> Bank:
        width, embed_dim = (self.model[key] for key in ("width", "embed_dim"))
        layers = self.model.get("layers", self.model["blocks"])  # exports of earlier versions have blocks alone
        return Bank(
            patches=np.zeros((len(layers), 0, width), dtype=np.float32),
            origins=np.zeros(0, dtype=np.int32),
            pooled=np.zeros((0, embed_dim), dtype=np.float32),
            pictures=np.zeros((0, 3, *self.model["image_size"]), dtype=np.uint8),
            prototypes=self._prototypes[class_name],
            fingerprint=self.model["fingerprint"],
            class_name=class_name,
            views=count_views(self._reference_views),
        )

    @property
    def _reference_views(self) -> ReferenceViews:
        return self.model.get("reference_views", "none")  # exports of earlier versions have none

    def _resolve_class(self, category: str, class_name: str | None) -> str:
        if class_name is None:
            class_name = category if category in self._prototypes else "object"
        if class_name not in self._prototypes:
            msg = (
                f"The model was exported for the classes {sorted(self._prototypes)}, not for {class_name!r}: take one "
                "of them, or export again with that class among class_names."
            )
            raise ValueError(msg)
        return class_name

    def _resolve_category(self, category: str | None) -> str:
        known = self.categories
        if not known:
            raise RuntimeError(self._no_bank())
        if category is None and len(known) > 1:
            msg = f"There are banks of {known}: name the category, or let category='auto' find the nearest."
            raise ValueError(msg)
        return category or known[0]

    def _no_bank(self) -> str:
        return f"{self.banks_folder} holds no bank: call add_references(category, images of normal objects) first."


def read_model_file(folder: Path) -> dict:
    """Read what an export directory says of its model.

    Raises:
        FileNotFoundError: If the directory is no export.
        ValueError: If the file can't be read or is of another version.
    """
    path = folder / MODEL_FILE
    if not path.is_file():
        msg = f"{folder} is no export directory, it holds no {MODEL_FILE}: anomalib-inctrl-runtime export makes one."
        raise FileNotFoundError(msg)
    try:
        model = json.loads(path.read_text(encoding="utf-8"))
        known = model["format"] == FORMAT
    except (ValueError, KeyError, TypeError) as error:
        msg = f"{path} can't be read ({error}): export the model again."
        raise ValueError(msg) from error
    if not known:
        msg = f"{path} has the format of another version of anomalib-inctrl: export the model again."
        raise ValueError(msg)
    return model


def names_of(images: Sequence[Image]) -> list[str]:
    """Names of images: their files, or their numbers."""
    return [f"image {i}" if isinstance(image, np.ndarray) else str(image) for i, image in enumerate(images)]


def _new_names(images: Sequence[Image], taken: Sequence[str]) -> list[str]:
    """Names of images that are not taken yet; a file may be added once."""
    free = (name for name in (f"image {i}" for i in count()) if name not in taken)
    names = [next(free) if isinstance(image, np.ndarray) else str(image) for image in images]
    again = sorted({name for i, name in enumerate(names) if name in taken or name in names[:i]})
    if again:
        msg = f"{again} would be references twice: leave them out, or remove them first."
        raise ValueError(msg)
    return names


def _read_prototypes(path: Path) -> dict[str, np.ndarray]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        msg = f"{path} can't be read ({error}): export the model again."
        raise ValueError(msg) from error


def _batches(items: Iterable[tuple[str, np.ndarray]], size: int) -> Iterable[tuple[list[str], np.ndarray]]:
    names: list[str] = []
    images: list[np.ndarray] = []
    for name, image in items:
        names.append(name)
        images.append(image)
        if len(names) == size:
            yield names, np.stack(images)
            names, images = [], []
    if names:
        yield names, np.stack(images)
