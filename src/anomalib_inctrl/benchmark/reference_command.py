"""``anomalib check_references``: do these normal images look representative, and which one is odd?"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

from anomalib.data import AnomalibDataModule
from anomalib.data.utils import get_image_filenames
from jsonargparse import ArgumentParser, Namespace

from anomalib_inctrl.clip import EMBEDDED_BACKBONE, ClipBackbone
from anomalib_inctrl.data.few_shot import FewShot
from anomalib_inctrl.files import write_atomically
from anomalib_inctrl.reference_choice import ReferenceCheck, check_references


class CheckReferences:
    """Tell whether reference images look representative, and which one is odd."""

    @staticmethod
    def get_parser(parser: ArgumentParser | None = None) -> ArgumentParser:
        """Add the arguments of the command to a parser."""
        parser = parser or ArgumentParser()
        parser.add_argument("--references", type=Path, default=None, help="Folder of the reference images.")
        parser.add_argument("--pool", type=Path, default=None, help="Folder of other normal images, if there are any.")
        parser.add_subclass_arguments(
            AnomalibDataModule,
            "data",
            required=False,
            help="FewShot, whose references are checked against the rest of the training split, instead of folders.",
        )
        parser.add_argument("--backbone", type=str, default=EMBEDDED_BACKBONE, help="open_clip model that compares.")
        parser.add_argument("--pretrained", type=str | None, default=None, help="Its weights: tag or local file.")
        parser.add_argument("--output", type=Path, default=None, help="JSON file to write the result to as well.")
        return parser

    def run(self, args: Namespace | None = None) -> None:
        """Check and print.

        Args:
            args (Namespace | None): Parsed arguments; ``None`` reads the command line.

        Raises:
            ValueError: If there are neither ``references`` nor ``data``, or both, or ``data`` is no few-shot view.
        """
        parser = self.get_parser()
        args = args if args is not None else parser.parse_args()
        references, pool = _images(parser.instantiate_classes(args))
        found = check_references(references, pool, ClipBackbone(args.backbone, args.pretrained))
        sys.stdout.write(as_text(found))
        if args.output is not None:
            write_atomically(Path(args.output), (json.dumps(as_plain(found), indent=2) + "\n").encode())


def as_text(found: ReferenceCheck) -> str:
    """Write a check as lines for people, the largest residual first."""
    order = sorted(range(len(found.names)), key=lambda i: -_or_zero(float(found.residuals[i])))
    lines = ["residual to the others   reference"]
    lines += [f"{found.residuals[i]:>10.3f}   {'odd' if found.odd[i] else '':9}{found.names[i]}" for i in order]
    if len(found.pool_residuals):
        lines.append(
            f"{len(found.pool_residuals)} other normal images: median residual {found.pool_residuals.quantile(0.5):.3f}"
            + ("" if math.isnan(found.uncovered) else f", {found.uncovered:.0%} above the largest of the references")
        )
    return "\n".join([*lines, found.verdict, ""])


def as_plain(found: ReferenceCheck) -> dict[str, Any]:
    """Turn a check into plain data; what is not known is ``None``."""
    return {
        "references": [
            {"file": name, "residual": _or_none(float(residual)), "odd": odd}
            for name, residual, odd in zip(found.names, found.residuals, found.odd, strict=True)
        ],
        "pool_residuals": found.pool_residuals.tolist(),
        "uncovered": _or_none(found.uncovered),
        "verdict": found.verdict,
    }


def _images(args: Namespace) -> tuple[list[str], list[str]]:
    if (args.references is None) == (args.data is None):
        msg = "Give the references by --references FOLDER, or a data module by --data FewShot, and not both."
        raise ValueError(msg)
    if args.references is not None:
        found = [args.references, args.pool] if args.pool is not None else [args.references]
        images = [[str(path) for path in get_image_filenames(folder)] for folder in found]
        return images[0], images[1] if len(images) > 1 else []
    if not isinstance(args.data, FewShot):
        msg = f"--data {type(args.data).__name__} has no references: wrap it, --data FewShot --data.data ..."
        raise ValueError(msg)
    args.data.prepare_data()
    args.data.setup()
    return args.data.references, args.data.pool


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value


def _or_zero(value: float) -> float:
    return _or_none(value) or 0.0
