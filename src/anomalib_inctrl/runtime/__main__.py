"""Command line of the runtime: ``anomalib-inctrl-runtime``, or ``python -m anomalib_inctrl.runtime``.

Only ``export`` needs torch.
"""

from __future__ import annotations

import csv
import io
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jsonargparse import auto_cli
from PIL import Image

from anomalib_inctrl.files import write_atomically
from anomalib_inctrl.runtime.detector import InContextDetector, Prediction
from anomalib_inctrl.runtime.graphs import Engine
from anomalib_inctrl.runtime.images import image_files

if TYPE_CHECKING:
    from anomalib_inctrl.runtime.bank import Bank

_AT_ONCE = 32  # images whose maps are held before they are written


def add(
    folder: Path,
    category: str,
    images: list[Path],
    class_name: str | None = None,
    banks: Path | None = None,
    engine: Engine | None = None,
    threads: int | None = None,
) -> str:
    """Add images of normal objects to a category, or open it, and take its threshold from its references.

    Args:
        folder: Export directory.
        category: Name of the category.
        images: Image files and folders of them.
        class_name: What the images show, of the classes exported; by default the category or else "object".
        banks: Directory of the banks; by default that of the export.
        engine: ``onnx`` or ``openvino``; by default what was exported.
        threads: Threads of the engine; by default one for every core.
    """
    detector = InContextDetector(folder, banks, engine, threads)
    return _summary(category, detector.add_references(category, list(image_files(images)), class_name))


def remove(
    folder: Path,
    category: str,
    names: list[str] | None = None,
    banks: Path | None = None,
    engine: Engine | None = None,
    threads: int | None = None,
) -> str:
    """Remove references of a category, or all of it.

    Args:
        folder: Export directory.
        category: Name of the category.
        names: References, as ``list`` shows them; none for the whole category.
        banks: Directory of the banks; by default that of the export.
        engine: ``onnx`` or ``openvino``; by default what was exported.
        threads: Threads of the engine; by default one for every core.
    """
    detector = InContextDetector(folder, banks, engine, threads)
    if names:
        return _summary(category, detector.remove_references(category, names))
    detector.remove_category(category)
    return f"{category}: removed"


def list_references(folder: Path, banks: Path | None = None, engine: Engine | None = None) -> str:
    """List categories, their references and thresholds.

    Args:
        folder: Export directory.
        banks: Directory of the banks; by default that of the export.
        engine: ``onnx`` or ``openvino``; by default what was exported.
    """
    detector = InContextDetector(folder, banks, engine)
    lines = []
    for category in detector.categories:
        bank = detector.bank(category)
        lines += [_summary(category, bank), *(f"  {name}" for name in bank.names)]
    return "\n".join(lines) or f"{detector.banks_folder} holds no bank."


def calibrate(
    folder: Path,
    category: str,
    banks: Path | None = None,
    engine: Engine | None = None,
    threads: int | None = None,
) -> str:
    """Take the threshold of a category from its references, whatever gave it before.

    Args:
        folder: Export directory.
        category: Name of the category.
        banks: Directory of the banks; by default that of the export.
        engine: ``onnx`` or ``openvino``; by default what was exported.
        threads: Threads of the engine; by default one for every core.
    """
    return _summary(category, InContextDetector(folder, banks, engine, threads).calibrate(category))


def reduce(
    folder: Path,
    category: str,
    share: float = 1.0,
    half_precision: bool = False,
    banks: Path | None = None,
    engine: Engine | None = None,
    threads: int | None = None,
) -> str:
    """Make a bank smaller and faster to compare with, at some loss.

    Args:
        folder: Export directory.
        category: Name of the category.
        share: Share of the reference patches to keep, above 0 up to 1.
        half_precision: Keep them in float16.
        banks: Directory of the banks; by default that of the export.
        engine: ``onnx`` or ``openvino``; by default what was exported.
        threads: Threads of the engine; by default one for every core.
    """
    detector = InContextDetector(folder, banks, engine, threads)
    return _summary(category, detector.reduce_bank(category, share, half_precision=half_precision))


def predict(
    folder: Path,
    images: list[Path],
    category: str | None = None,
    output: Path | None = None,
    maps: Path | None = None,
    batch_size: int = 8,
    banks: Path | None = None,
    engine: Engine | None = None,
    threads: int | None = None,
) -> str | None:
    """Score images.

    Args:
        folder: Export directory.
        images: Image files and folders of them.
        category: What to compare them with; ``auto`` finds the nearest; may be left out if there is but one.
        output: ``.json`` or ``.csv`` file of scores; printed as JSON without it.
        maps: Directory for anomaly maps, 8-bit PNGs, white at 1; each is named by its image's number and name.
        batch_size: Images of one size that are encoded together.
        banks: Directory of the banks; by default that of the export.
        engine: ``onnx`` or ``openvino``; by default what was exported.
        threads: Threads of the engine; by default one for every core.
    """
    if output is not None and output.suffix not in {".json", ".csv"}:
        msg = f"output must end in .json or .csv, got {output}."
        raise ValueError(msg)
    detector = InContextDetector(folder, banks, engine, threads)
    files, rows = image_files(images), []
    for start in range(0, len(files), _AT_ONCE):
        found = detector.predict(list(files[start : start + _AT_ONCE]), category, batch_size)
        for number, prediction in enumerate(found, start):
            rows.append(_row(prediction))
            if maps is not None and prediction.anomaly_map is not None:
                _write_map(maps / f"{number:05}_{Path(prediction.name).stem}.png", prediction.anomaly_map)
    if output is None:
        return json.dumps(rows, indent=2)
    write_atomically(output, (_as_csv(rows) if output.suffix == ".csv" else json.dumps(rows, indent=2)).encode())
    return None


def _row(prediction: Prediction) -> dict[str, Any]:
    return {
        "image": prediction.name,
        "category": prediction.category,
        "pred_score": prediction.pred_score,
        "pred_label": prediction.pred_label,
    }


def _as_csv(rows: list[dict[str, Any]]) -> str:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, rows[0])
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _write_map(path: Path, anomaly_map: np.ndarray) -> None:
    picture = io.BytesIO()
    Image.fromarray((anomaly_map * 255).round().astype(np.uint8)).save(picture, format="PNG")
    write_atomically(path, picture.getvalue())


def _summary(category: str, bank: Bank) -> str:
    threshold = f"threshold {bank.statistics.image_threshold:.4f}" if bank.is_calibrated else "not calibrated"
    size = f"{bank.patches.shape[1]} patches in {bank.patches.dtype}"
    return f"{category}: {bank.count} references of class {bank.class_name!r}, {size}, {threshold}"


def main() -> int:
    """Run a command; what a user can put right ends in one line instead of a traceback."""
    commands: dict[str, Any] = {
        "add": add,
        "remove": remove,
        "list": list_references,
        "calibrate": calibrate,
        "reduce": reduce,
        "predict": predict,
    }
    if "export" in sys.argv[1:2]:
        from anomalib_inctrl.runtime_export import export_checkpoint

        commands["export"] = export_checkpoint
    try:
        result = auto_cli(commands, as_positional=False)
    except (FileNotFoundError, ModuleNotFoundError, RuntimeError, ValueError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    if result is not None:
        sys.stdout.write(f"{result}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
