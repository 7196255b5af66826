"""Pictures that show what a score comes from: the image, its maps on one colour scale, and the references used."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from anomalib.utils.path import generate_output_filename
from anomalib.visualization import ImageVisualizer
from anomalib.visualization.image.functional import apply_colormap, overlay_image, visualize_mask
from PIL import Image, ImageDraw, ImageFont
from torch.nn import functional as F  # noqa: N812 - the customary name

from anomalib_inctrl.data.episodes import EpisodeBatch

if TYPE_CHECKING:
    from anomalib.data import ImageBatch, ImageItem
    from lightning.pytorch import Trainer
    from torch import Tensor

_MARGIN = 8
_LABEL = 18
_SCALE_BAR = 14
_INK = (25, 25, 25)
_FAINT = (120, 120, 120)
_PAPER = (255, 255, 255)

# Explanation field -> label and the branch without which it is a copy of the residual, in the order of the panels.
_MAPS = {
    "patch_residuals": ("patch residual M_x", None),
    "discriminative_map": ("discriminative M_p", "discriminative"),
    "one_class_map": ("one-class M_n", "one_class"),
    "patch_text_map": ("text probability of patches", None),
}
# Explanation field -> label and the value its own colour scale ends at, for maps in other units.
_OTHER_MAPS = {"text_map": ("text probability", 1.0), "deviation": ("deviation in sigma", 10.0)}


@dataclass(frozen=True)
class _Panel:
    label: str
    image: Image.Image


class InContextVisualizer(ImageVisualizer):
    """Draws the framework's panels and, below, the evidence and the references.

    Every picture shows what the model saw: the image as preprocessed, so that image, mask and maps are in register
    whatever the aspect ratio. Upper row: image, ground truth if there is any, normalised anomaly map over the image,
    predicted mask. Middle row: patch residual and the maps of the branches in use, raw, all on one colour scale that
    is the same in every picture of a run: from 0 to twice the pixel threshold, and as long for InCTRLv2's M_p, which
    begins where S_a says nothing; DevPrompt adds its text map and its deviations, each on the scale in its label. Last
    row: the references.

    Args:
        panel_size (int): Height of a panel in pixels; widths follow the images.
        max_references (int): Most references to draw.
        output_dir (str | Path | None): Where to write; ``None`` for ``images`` in the run's folder.
    """

    def __init__(self, panel_size: int = 224, max_references: int = 8, output_dir: str | Path | None = None) -> None:
        super().__init__(field_size=(panel_size, panel_size), output_dir=output_dir)
        self.panel_size, self.max_references = panel_size, max_references
        self._drawn: dict[Path, str] = {}

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: Any,
        outputs: ImageBatch,
        batch: ImageBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draw every image of a batch; prediction batches come here as well."""
        del outputs, batch_idx, dataloader_idx
        if isinstance(batch, EpisodeBatch):
            return
        folder = Path(self.output_dir or Path(trainer.default_root_dir) / "images")
        datamodule = getattr(trainer, "datamodule", None)
        for index, item in enumerate(batch):
            filename = generate_output_filename(
                input_path=item.image_path or f"{index}.png",
                output_path=folder,
                dataset_name=getattr(datamodule, "name", None),
                category=getattr(datamodule, "category", None),
            )
            self.draw(item, index, pl_module).save(self._free_path(filename, item.image_path or f"{index}.png"))

    def on_test_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Forget the pictures of an earlier run."""
        del trainer, pl_module
        self._drawn.clear()

    def on_predict_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Forget the pictures of an earlier run."""
        self.on_test_start(trainer, pl_module)

    def _free_path(self, filename: Path, source: str) -> Path:
        """Path of the picture of an image: another one for every image of a run.

        anomalib keeps an image's own folder or two. Of equal ones the second picture gets the image's suffix before its
        own, then the names of more folders in front.
        """
        names = [filename.stem, filename.name]
        for parent in Path(source).resolve().parents:
            names.append(f"{parent.name}_{names[-1]}")
        for name in names:
            path = filename.with_name(f"{name}.png")
            if self._drawn.setdefault(path, source) == source:
                return path
        return filename.with_suffix(".png")

    def draw(self, item: ImageItem, index: int, pl_module: Any) -> Image.Image:
        """Draw one image.

        Args:
            item (ImageItem): Post-processed prediction.
            index (int): Its row in ``pl_module.explanation``.
            pl_module (InContextMixin): The Lightning model that made it.

        Returns:
            Image.Image: The picture.
        """
        backbone = pl_module.model.backbone
        picture = _to_image(backbone.to_pictures(torch.as_tensor(item.image)[None].float())[0])
        evidence, top = self._evidence_row(index, pl_module, backbone.grid_size, picture.size)
        rows = [(_verdict(item), self._result_row(item, picture, has_map=bool(evidence)))]
        if evidence:
            rows.append((f"evidence, one scale from 0 to {top:.3f}", evidence))
        class_name, references = self._reference_row(item, pl_module)
        without = "no references" if evidence else "text alone, no map"
        rows.append((f"references of class {class_name!r}", references) if references else (without, []))
        return _compose(rows, scale_row=1 if evidence else None, top=top)

    def _panel(
        self,
        label: str,
        image: Image.Image,
        resample: Image.Resampling = Image.Resampling.BILINEAR,
        share: float = 1.0,
    ) -> _Panel:
        height = round(share * self.panel_size)
        return _Panel(
            label, image.convert("RGB").resize((round(image.width * height / image.height), height), resample)
        )

    def _result_row(self, item: ImageItem, picture: Image.Image, *, has_map: bool) -> list[_Panel]:
        row = [self._panel("image as seen", picture)]
        if item.gt_mask is not None:
            row.append(self._panel("ground truth", _to_mask(item.gt_mask), Image.Resampling.NEAREST))
        if has_map and item.anomaly_map is not None:
            heat = _heat(item.anomaly_map.squeeze().float(), 0, 1)
            row.append(self._panel("anomaly map (threshold 0.5)", overlay_image(picture, heat, alpha=0.5)))
        if has_map and item.pred_mask is not None:
            contour = visualize_mask(_to_mask(item.pred_mask), mode="contour", color=(255, 0, 0), alpha=1.0)
            row.append(self._panel("predicted mask", overlay_image(picture, contour, alpha=1.0)))
        return row

    def _evidence_row(
        self,
        index: int,
        pl_module: Any,
        grid: tuple[int, int],
        size: tuple[int, int],
    ) -> tuple[list[_Panel], float]:
        fields = pl_module.explanation._asdict()
        maps = {
            name: fields[name][index].float().cpu()
            for name, (_, branch) in _MAPS.items()
            if fields.get(name) is not None and (branch is None or branch in pl_module.model.branches)
        }
        if not maps:
            return [], 1.0
        top = _scale_top(pl_module.post_processor, maps)
        row = []
        for name, values in maps.items():
            low = 0.0
            if name == "discriminative_map":  # a mean with M_x, if there are references
                low = pl_module.model.undecided * (0.5 if "patch_residuals" in maps else 1.0)
            label = _MAPS[name][0] + (f" from {low:g}" if low else "")
            pixels = F.interpolate(values.reshape(1, 1, *grid), size=size[::-1], mode="bilinear", align_corners=False)
            row.append(self._panel(f"{label}, max {values.max():.3f}", _heat(pixels[0, 0], low, low + top)))
        for name, (label, end) in _OTHER_MAPS.items():
            if fields.get(name) is not None:
                values = fields[name][index].float().cpu().reshape(1, 1, *grid)
                pixels = F.interpolate(values, size=size[::-1], mode="bilinear", align_corners=False)
                row.append(self._panel(f"{label}, 0 to {end:g}, max {values.max():.1f}", _heat(pixels[0, 0], 0, end)))
        return row, top

    def _reference_row(self, item: ImageItem, pl_module: Any) -> tuple[str, list[_Panel]]:
        bank = pl_module.model.references
        name = getattr(item, "category", None) if len(bank.class_names) > 1 else None
        if not bank.count(name):
            return "", []
        files = ((pl_module.reference_record or {}).get("files") or {}).get(bank.resolve(name)) or []
        pictures = bank.pictures_of(name)[: self.max_references]
        labels = [Path(file).name for file in files] or [f"reference {i + 1}" for i in range(len(pictures))]
        share = 1.0 if len(pictures) <= 4 else 0.5  # so that up to eight are as wide as the other rows
        panels = [self._panel(label, _to_image(p), share=share) for label, p in zip(labels, pictures, strict=False)]
        return bank.resolve(name), panels


def _verdict(item: ImageItem) -> str:
    parts = ["/".join(Path(item.image_path).parts[-2:])] if item.image_path else []
    if item.pred_score is not None:
        parts.append(f"score {float(item.pred_score):.3f}")
    if item.pred_label is not None:
        parts.append("called anomalous" if bool(item.pred_label) else "called normal")
    if item.gt_label is not None:
        parts.append("is anomalous" if bool(item.gt_label) else "is normal")
    return "   ".join(parts)


def _scale_top(post_processor: Any, maps: dict[str, Tensor]) -> float:
    threshold = getattr(post_processor, "pixel_threshold", None)
    if threshold is not None and not torch.isnan(threshold) and float(threshold) > 0:
        return min(1.0, 2 * float(threshold))
    return max(float(values.max()) for values in maps.values()) or 1.0


def _heat(values: Tensor, low: float, high: float) -> Image.Image:
    scaled = ((values.cpu() - low) / (high - low)).clamp(0, 1)
    return apply_colormap(Image.fromarray((scaled.numpy() * 255).astype(np.uint8)))


def _to_image(picture: Tensor) -> Image.Image:
    return Image.fromarray(picture.permute(1, 2, 0).cpu().numpy())


def _to_mask(mask: Tensor) -> Image.Image:
    return Image.fromarray(mask.squeeze().bool().cpu().numpy().astype(np.uint8) * 255)


def _compose(captioned: list[tuple[str, list[_Panel]]], scale_row: int | None, top: float) -> Image.Image:
    """Lay rows of panels below each other, each under its caption."""
    captions, rows = zip(*captioned, strict=True)
    small, large = ImageFont.load_default(12), ImageFont.load_default(14)
    height = _MARGIN
    tops = []
    for index, row in enumerate(rows):
        tops.append(height)
        height += 2 * _LABEL + max((p.image.height for p in row), default=0) + _MARGIN
        height += _SCALE_BAR + _LABEL if index == scale_row else 0
    width = max(sum(p.image.width + _MARGIN for p in row) for row in rows) + _MARGIN
    width = max(width, *(round(large.getlength(caption)) + 2 * _MARGIN for caption in captions))
    sheet = Image.new("RGB", (width, height), _PAPER)
    pen = ImageDraw.Draw(sheet)
    for index, (row, caption, y) in enumerate(zip(rows, captions, tops, strict=True)):
        pen.text((_MARGIN, y), caption, fill=_INK, font=large)
        x = _MARGIN
        for panel in row:
            pen.text((x, y + _LABEL), _fit(panel.label, small, panel.image.width), fill=_FAINT, font=small)
            sheet.paste(panel.image, (x, y + 2 * _LABEL))
            x += panel.image.width + _MARGIN
        if index == scale_row:
            bar_top = y + 2 * _LABEL + row[0].image.height + 4
            _draw_scale(sheet, pen, small, (_MARGIN, bar_top, x - 2 * _MARGIN), top)
    return sheet


def _draw_scale(
    sheet: Image.Image,
    pen: ImageDraw.ImageDraw,
    font: Any,
    place: tuple[int, int, int],
    top: float,
) -> None:
    left, y, width = place
    ramp = torch.linspace(0, 1, width)[None].expand(_SCALE_BAR - 4, -1)
    sheet.paste(_heat(ramp, 0, 1).convert("RGB"), (left, y))
    for share in (0, 0.25, 0.5, 0.75, 1):
        text = f"{share * top:.3f}"
        x = left + share * width - share * font.getlength(text)
        pen.text((x, y + _SCALE_BAR - 3), text, fill=_FAINT, font=font)


def _fit(text: str, font: Any, width: int) -> str:
    while len(text) > 1 and font.getlength(text) > width:
        text = text[:-2] + "…"
    return text
