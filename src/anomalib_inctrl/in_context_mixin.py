"""What the Lightning models share: references, statistics and checkpoints through every flow of the framework."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from anomalib import LearningType
from anomalib.deploy.export import CompressionType, ExportType
from anomalib.models.components.base.export_mixin.utils import create_export_root
from anomalib.utils.path import create_versioned_dir
from PIL import Image
from torchvision.transforms.v2 import CenterCrop, Compose

from anomalib_inctrl.checkpoints import METADATA_KEY, check_backbone, load_weights
from anomalib_inctrl.clip import image_convention
from anomalib_inctrl.data.auxiliary import AuxiliaryData
from anomalib_inctrl.data.episodes import EpisodeBatch
from anomalib_inctrl.embedding_distance import ImageBranch
from anomalib_inctrl.episodic_training import IMAGE_BRANCH, EpisodicTrainingMixin
from anomalib_inctrl.evaluation import few_shot_evaluator
from anomalib_inctrl.in_context import ScoreHead
from anomalib_inctrl.post_processing import InContextPostProcessor
from anomalib_inctrl.pre_processing import ClipPreProcessor
from anomalib_inctrl.prompts import class_name_of
from anomalib_inctrl.quantisation import LazyImages
from anomalib_inctrl.reference_images import ReferenceImages, draw, from_source, read_references, require_eight_bits
from anomalib_inctrl.visualization import InContextVisualizer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anomalib.data import AnomalibDataModule, ImageBatch, InferenceBatch
    from anomalib.metrics import Evaluator
    from anomalib.models.components import AnomalibModule
    from torch import Tensor

    from anomalib_inctrl.in_context import Explanation, InContextModel
    from anomalib_inctrl.post_processing import Calibration
    from anomalib_inctrl.pre_processing import Geometry

    _Host = AnomalibModule
else:
    # anomalib lists direct subclasses of AnomalibModule as models, so at run time the mixin must not be one.
    _Host = object

logger = logging.getLogger(__name__)

Phase = Literal["few_shot", "train"]
_FROZEN = "model.backbone."


class InContextMixin(EpisodicTrainingMixin, _Host):
    """Shared behaviour of the Lightning models. Not an ``AnomalibModule``: anomalib lists only direct subclasses.

    References are collected when a validation, test or prediction run starts, after a checkpoint has been restored and
    on the model's device; never in training data loaders, which shuffle and augment.
    """

    model: InContextModel
    explanation: Explanation | None

    # ------------------------------------------------------------------------------------------------ construction
    def _set_options(
        self,
        *,
        backbone: str,
        pretrained: str | Path | None,
        class_name: str | None,
        k_shot: int,
        reference_seed: int,
        few_shot_source: str | Path | None,
        phase: Phase,
        geometry: Geometry,
        calibration: Calibration,
        learning_rate: float,
        feature_cache: str | Path | None,
        double_sigmoid: bool,
        rotate_embeddings: bool = False,
        stretch_embeddings: float = 1.0,
        scatter_embeddings: float = 0.0,
        decay_learning_rate: bool = False,
        image_branch: ImageBranch = "trained",
    ) -> None:
        """Check and keep the shared options. Precedes ``AnomalibModule.__init__``, whose hooks read them."""
        if phase not in {"few_shot", "train"}:
            msg = f"phase must be 'few_shot' or 'train', got {phase!r}."
            raise ValueError(msg)
        self.phase = phase
        if k_shot < 0:
            msg = f"k_shot must be 0 (text alone) or more, got {k_shot}."
            raise ValueError(msg)
        self.class_name = class_name
        self.k_shot = k_shot
        self.reference_seed = reference_seed
        self.few_shot_source = few_shot_source
        self._pretrained = pretrained
        self._convention = image_convention(backbone, pretrained)
        self._geometry = geometry
        self._calibration = calibration
        self._set_training_options(
            learning_rate,
            feature_cache,
            double_sigmoid=double_sigmoid,
            rotate_embeddings=rotate_embeddings,
            stretch_embeddings=stretch_embeddings,
            scatter_embeddings=scatter_embeddings,
            decay_learning_rate=decay_learning_rate,
            image_branch=image_branch,
        )
        self.reference_record: dict[str, Any] | None = None
        self._restored = False
        self._without_validation_data = False

    def _finish(self, weights: str | Path | None) -> None:
        """Load trained heads into the model that has just been built."""
        self._built_fingerprint = self.model.backbone.fingerprint
        if weights is not None:
            self.training_record = load_weights(self.model, weights)
        elif self.phase == "train":
            for head in self._heads(trained=True):
                if isinstance(head, ScoreHead):
                    head.start_neutral()
        if self.phase == "train":
            loaded, wanted = self.model.branches, self._trained_branches
            self.model.use_branches(loaded.union(wanted))
            if self.image_branch == "distance":
                self._sets_distance = IMAGE_BRANCH in wanted and IMAGE_BRANCH not in loaded
                self._trained_branches = [branch for branch in wanted if branch != IMAGE_BRANCH]
            if not self._trained_branches:
                msg = f"image_branch='distance' leaves nothing of branches={wanted} to train: take further ones."
                raise ValueError(msg)
            self._train_only_what_is_used()
        self._said_training_free = False

    def configure_pre_processor(self, image_size: tuple[int, int] | None = None) -> ClipPreProcessor:
        """Build the preprocessing of the backbone.

        Raises:
            ValueError: If another size is asked for than the backbone's.
        """
        if image_size is not None and tuple(image_size) != self._convention.size:
            msg = f"The backbone takes images of {self._convention.size}, not {tuple(image_size)}."
            raise ValueError(msg)
        return ClipPreProcessor(self._convention, self._geometry)

    def configure_post_processor(self) -> InContextPostProcessor:
        """Build the post-processor."""
        return InContextPostProcessor(self._calibration)

    @staticmethod
    def configure_evaluator() -> Evaluator:
        """Build the evaluator."""
        return few_shot_evaluator()

    @classmethod
    def configure_visualizer(cls) -> InContextVisualizer:
        """Build the visualizer."""
        return InContextVisualizer()

    @property
    def learning_type(self) -> LearningType:
        """Few-shot, zero-shot without references, or one-class (which anomalib calls what it trains) in training."""
        if self.phase == "train":
            return LearningType.ONE_CLASS
        return LearningType.FEW_SHOT if self.k_shot else LearningType.ZERO_SHOT

    @property
    def trainer_arguments(self) -> dict[str, Any]:
        """In training, episodes are shared out by their own sampler and there is nothing to check for sanity."""
        return {"num_sanity_val_steps": 0, "use_distributed_sampler": False} if self.phase == "train" else {}

    def configure_optimizers(self) -> Any:
        """Adam on the heads in training; else none, as no gradient step is taken."""
        return self._schedule(self._optimizer()) if self.phase == "train" else None

    def val_dataloader(self) -> list:
        """Empty, so that a run on a plain folder, which has no validation data, skips validation."""
        return []

    # -------------------------------------------------------------------------------------------------------- runs
    def setup(self, stage: str) -> None:
        """Prepare the workspace and the data module of a run."""
        del stage
        root = Path(self.trainer.default_root_dir)
        if root.name == "latest" and not root.exists() and not root.is_symlink():
            create_versioned_dir(root.parent)  # else Lightning makes it a folder, and a later fit can't replace it
        datamodule = self._datamodule()
        if self.phase == "train":
            self._setup_training(datamodule)
            return
        if isinstance(datamodule, AuxiliaryData):
            msg = "AuxiliaryData is for training: set phase='train' (--model.phase train), or give a target's data."
            raise ValueError(msg)
        if datamodule is None:
            return
        self._crop_before_collating(datamodule)
        self._ensure_validation_data(datamodule)
        check_masks(datamodule)

    def on_validation_start(self) -> None:
        """Collect references if there are none yet."""
        if self.phase == "few_shot":
            self._prepare_references()

    def on_test_start(self) -> None:
        """Collect references and calibrate if that has not been done."""
        if self.phase == "few_shot":
            self._prepare_references()
            self._prepare_calibration()

    def on_predict_start(self) -> None:
        """Collect references and calibrate if that has not been done."""
        self.on_test_start()

    def validation_step(self, batch: ImageBatch, *args: Any, **kwargs: Any) -> ImageBatch:
        """Score a batch."""
        del args, kwargs
        if isinstance(batch, EpisodeBatch):
            self._remember(self._score_episodes(batch))
            return batch
        return self._score(batch)

    def test_step(self, batch: ImageBatch, *args: Any, **kwargs: Any) -> ImageBatch:
        """Score a batch."""
        del args, kwargs
        return self._score_episodes(batch) if isinstance(batch, EpisodeBatch) else self._score(batch)

    def predict_step(self, batch: ImageBatch, *args: Any, **kwargs: Any) -> ImageBatch:
        """Score a batch."""
        del args, kwargs
        return self._score(batch)

    def on_validation_epoch_end(self) -> None:
        """Calibrate from the references if they, not the validation split, are to give the threshold."""
        if self.phase == "train":
            self._log_validation()
            return
        post_processor = self.post_processor
        if isinstance(post_processor, InContextPostProcessor) and (
            post_processor.calibration == "references" or self._without_validation_data
        ):
            self._calibrate(post_processor)

    def _score(self, batch: ImageBatch) -> ImageBatch:
        for path in batch.image_path or []:
            require_eight_bits(path)
        class_names = self._class_names_of(batch)
        self.explanation = self.model.explain(torch.as_tensor(batch.image), class_names)
        return batch.update(
            pred_score=self.explanation.score.float(),
            anomaly_map=self.explanation.anomaly_map.float(),
        )

    def _class_names_of(self, batch: ImageBatch) -> Sequence[str] | None:
        known = self.model.references.class_names
        if len(known) < 2:
            return None
        class_names = getattr(batch, "category", None)
        if class_names is None:
            msg = (
                f"The references are of {len(known)} classes {known}, but the images do not say which is theirs: use a "
                "data module whose batches have a `category`, or a model for every class."
            )
            raise ValueError(msg)
        return class_names

    # -------------------------------------------------------------------------------------------------- references
    def _datamodule(self) -> AnomalibDataModule | None:
        return getattr(self._trainer, "datamodule", None) if self._trainer is not None else None

    def _prepare_references(self) -> None:
        datamodule = self._datamodule()
        if not self._needs_references(datamodule):
            return
        with torch.inference_mode(mode=False), torch.no_grad():
            if self.few_shot_source is not None or self.k_shot == 0 or datamodule is None:
                self._collect_from_source(datamodule)
            else:
                self._collect_from_training_split(datamodule)
        if isinstance(self.post_processor, InContextPostProcessor) and self.post_processor.is_calibrated:
            logger.warning("References have changed: threshold and score range of the previous data are discarded.")
            self.post_processor.reset()
        if not self.model.branches and not self._said_training_free:
            self._said_training_free = True
            self._say_training_free()

    def _say_training_free(self) -> None:
        logger.warning(
            "%s runs training-free (residuals and text prior): no trained heads were given by `weights`.",
            type(self).__name__,
        )

    def _needs_references(self, datamodule: AnomalibDataModule | None) -> bool:
        if not self.model.references.class_names:
            return True
        record, wanted = self.reference_record, self._origin(datamodule)
        if record is None or wanted is None or record["origin"] == wanted:
            return False  # set by hand, or nothing else to take them from, or the same
        if self.few_shot_source is not None:
            return True
        if not self._restored:
            return "source" not in record["origin"]
        recorded = record["origin"]
        if recorded.get("dataset") == wanted["dataset"] and recorded["category"] and wanted["category"]:
            msg = (
                f"The checkpoint holds references of {recorded['dataset']} {recorded['category']!r}, the data is "
                f"{wanted['category']!r}. Set the category to {recorded['category']!r}, or make a checkpoint of "
                f"{wanted['category']!r} with `anomalib train`, which takes no training."
            )
            raise ValueError(msg)
        return False

    def _origin(self, datamodule: AnomalibDataModule | None) -> dict[str, str] | None:
        """Where references of this run would come from, for comparison with where they did come from."""
        if self.few_shot_source is not None:
            return {"source": str(self.few_shot_source)}
        if datamodule is None:
            return None
        return {"dataset": datamodule.name, "category": datamodule.category or ""}

    def _collect_from_source(self, datamodule: AnomalibDataModule | None) -> None:
        if self.k_shot == 0:
            references = ReferenceImages(torch.empty(0, 3, *self.model.backbone.image_size), [])
        elif self.few_shot_source is not None:
            references = from_source(self.few_shot_source, self.k_shot, self.reference_seed, self._transform)
        else:
            msg = (
                f"{type(self).__name__} needs {self.k_shot} normal images as references: give a folder by "
                "few_shot_source (--model.few_shot_source FOLDER), a data module, a checkpoint that holds them "
                "(--ckpt_path), call model.model.set_references(...), or set k_shot=0 to score by text alone."
            )
            raise RuntimeError(msg)
        class_name = self.class_name or class_name_of(datamodule)
        self._use({class_name: references}, datamodule)

    def _collect_from_training_split(self, datamodule: AnomalibDataModule) -> None:
        samples = getattr(getattr(datamodule, "train_data", None), "samples", None)
        if samples is None or samples.empty:
            msg = (
                f"{datamodule.name} has no training split to take references from: name a folder of normal images by "
                "few_shot_source, or set k_shot=0."
            )
            raise ValueError(msg)
        normal = samples[samples.label_index == 0] if "label_index" in samples else samples
        default = self.class_name or class_name_of(datamodule)
        groups = normal.groupby("category").image_path if "category" in normal else [(default, normal.image_path)]
        self._use(
            {
                str(name): read_references(draw(list(paths), self.k_shot, self.reference_seed), self._transform)
                for name, paths in groups
            },
            datamodule,
        )

    def _use(self, references: dict[str, ReferenceImages], datamodule: AnomalibDataModule | None) -> None:
        first, *others = references.items()
        self.model.set_references(first[1].images.to(self.device), first[0])
        for name, reference in others:
            self.model.add_references(reference.images.to(self.device), name)
        files = {name: reference.names for name, reference in references.items()}
        self.reference_record = {"origin": self._origin(datamodule) or {}, "seed": self.reference_seed, "files": files}
        self._restored = False
        for name, names in files.items():
            logger.info("References of class %r: %s", name, ", ".join(names) or "none, scoring by text alone")

    def _transform(self, image: Tensor) -> Tensor:
        transform = getattr(self.pre_processor, "transform", None)
        return image if transform is None else transform(image)

    # ------------------------------------------------------------------------------------------------- calibration
    def _prepare_calibration(self) -> None:
        """Without statistics from validation data, take them from the references."""
        if isinstance(self.post_processor, InContextPostProcessor) and not self.post_processor.is_calibrated:
            self._calibrate(self.post_processor)

    def _calibrate(self, post_processor: InContextPostProcessor) -> None:
        counts = {name: self.model.references.count(name) for name in self.model.references.class_names}
        if 0 in counts.values():
            logger.warning("Without references there is no calibration: raw scores, threshold 0.5.")
            return
        if 1 in counts.values():
            logger.warning("Calibrated from mirror images of a single reference: take the threshold with care.")
        with torch.inference_mode(mode=False):
            normals = [self.model.score_normals(name) for name in counts]
            post_processor.calibrate(
                torch.cat([n.score for n in normals]), torch.cat([n.anomaly_map for n in normals]),
            )  # fmt: skip

    # ---------------------------------------------------------------------------------------------------- geometry
    def _crop_before_collating(self, datamodule: AnomalibDataModule) -> None:
        """Crop every image by itself: collating stretches a batch of mixed aspect ratios to its first image."""
        crop = [t for t in getattr(self._transform_of_model(), "transforms", []) if isinstance(t, CenterCrop)]
        for name in ("train_data", "val_data", "test_data"):
            subset = getattr(datamodule, name, None)
            if crop and subset is not None:
                before = subset.augmentations
                subset.augmentations = Compose([*([before] if before else []), *crop])

    def _transform_of_model(self) -> Any:
        return getattr(self.pre_processor, "transform", None)

    def _ensure_validation_data(self, datamodule: AnomalibDataModule) -> None:
        """Let a data module without validation data calibrate from the references, not end without a checkpoint."""
        train, validation = getattr(datamodule, "train_data", None), getattr(datamodule, "val_data", None)
        there = validation is not None and validation is not train and len(validation) > 0
        self._without_validation_data = train is not None and not there
        if train is not None and not there and validation is not train:
            logger.warning("%s has no validation data: the threshold comes from the references.", datamodule.name)
            datamodule.val_data = train

    # ------------------------------------------------------------------------------------------------- checkpoints
    @property
    def metadata(self) -> dict[str, Any]:
        """What trained heads belong to, as plain data."""
        backbone = self.model.backbone
        return {
            "model": type(self).__name__,
            "branches": list(self.model.BRANCHES),
            "backbone": {
                "name": backbone.name,
                "pretrained": None if self._pretrained is None else str(self._pretrained),
                "blocks": list(backbone.blocks),
                "fingerprint": backbone.fingerprint,
            },
            "options": self.model.options,
            "training": self.training_record,
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave out the frozen towers and record what the rest belongs to."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["hyper_parameters"].pop("weights", None)  # the heads are in the state dict
        backbone = self.model.backbone
        if backbone.fingerprint == self._built_fingerprint:  # else a published file has brought the towers along
            for key in [k for k in checkpoint["state_dict"] if k.startswith(_FROZEN)]:
                del checkpoint["state_dict"][key]
        checkpoint[METADATA_KEY] = self.metadata | {"references": self.reference_record}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put the frozen towers in again, after checking that they are the same.

        Raises:
            ValueError: If the checkpoint was made by another model, with another backbone or with other options.
        """
        super().on_load_checkpoint(checkpoint)
        metadata = checkpoint.get(METADATA_KEY, {})
        if metadata.get("model", type(self).__name__) != type(self).__name__:
            msg = f"The checkpoint was made by {metadata['model']}, not by {type(self).__name__}."
            raise ValueError(msg)
        if metadata.get("options", self.model.options) != self.model.options:
            msg = (
                f"The checkpoint was made with {metadata['options']}, this model has {self.model.options}: the "
                "threshold would not fit. Set the same options, or make a new checkpoint."
            )
            raise ValueError(msg)
        state = checkpoint["state_dict"]
        if not any(key.startswith(_FROZEN) for key in state):
            check_backbone(self.model.backbone, metadata.get("backbone", {}), "The checkpoint")
            state.update({k: v for k, v in self.state_dict().items() if k.startswith(_FROZEN)})
        elif metadata:
            self.model.backbone.fingerprint = metadata["backbone"]["fingerprint"]
        self.reference_record = metadata.get("references")
        if self.phase != "train":  # else it is what this run trains on
            self.training_record = metadata.get("training")
        self._restored = True
        datamodule = self._datamodule()
        if datamodule is not None:  # it was set up with the constructor's geometry, the checkpoint's counts
            datamodule._update_augmentations()
            self._crop_before_collating(datamodule)

    # ------------------------------------------------------------------------------------------------------ export
    def forward(self, batch: Tensor, *args: Any, **kwargs: Any) -> InferenceBatch:
        """Score raw images, preprocessing and post-processing included.

        Args:
            batch (Tensor): Images ``(B, 3, h, w)`` of any size, in ``[0, 1]``.
            *args (Any): Not used.
            **kwargs (Any): Not used.
        """
        if not torch.compiler.is_compiling():
            self._prepare_references()
        return super().forward(batch, *args, **kwargs)

    def to_torch(self, *args: Any, **kwargs: Any) -> Path:
        """Export to a torch file; see anomalib. References are collected first if there are none."""
        self._prepare_export()
        return super().to_torch(*args, **kwargs)

    def to_onnx(self, *args: Any, **kwargs: Any) -> Path:
        """Export to ONNX; see anomalib. References are collected first if there are none."""
        self._prepare_export()
        return super().to_onnx(*args, **kwargs)

    def to_openvino(
        self,
        export_root: Path | str,
        model_file_name: str = "model",
        input_size: tuple[int, int] | None = None,
        compression_type: CompressionType | None = None,
        datamodule: AnomalibDataModule | None = None,
        **options: Any,
    ) -> Path:
        """Export to OpenVINO; see anomalib. ``INT8_PTQ`` quantises the encoder alone, reading one image at a time.

        anomalib would feed batches of the data module, hold the activations of all their images at once, take the
        vision transformer for a network without attention, and keep references of another precision than queries. The
        quantised file takes images of any size, whatever ``input_size``. The threshold is that of validation data if
        there were any, else it is taken from the quantised references.
        """
        if compression_type != CompressionType.INT8_PTQ or not self.model.SWAPPABLE or self.k_shot == 0:
            return super().to_openvino(
                export_root,
                model_file_name,
                input_size,
                compression_type,
                datamodule,
                **options,
            )
        from anomalib_inctrl.runtime_export import export_quantised

        if datamodule is None:
            msg = "INT8_PTQ takes a data module, whose images show the range of activations: give one (--data)."
            raise ValueError(msg)
        post, statistics = self.post_processor, None
        if isinstance(post, InContextPostProcessor) and post.calibration == "validation" and post.is_calibrated:
            statistics = post.statistics
        self._prepare_export()
        datamodule.setup("fit")
        path = create_export_root(export_root, ExportType.OPENVINO) / f"{model_file_name}.xml"
        dataset = datamodule.val_dataloader().dataset
        images = LazyImages(len(dataset), lambda i: dataset[i].image.numpy())
        return export_quantised(self, path, images, statistics=statistics)

    def _prepare_export(self) -> None:
        self.eval()  # a model that no run has used yet is in training mode
        self._prepare_references()
        if len(self.model.references.class_names) > 1:
            msg = (
                f"An exported model scores one class, this one has references of {self.model.references.class_names}: "
                "make a model for each."
            )
            raise ValueError(msg)
        self._prepare_calibration()
        self.explanation = None


def check_masks(datamodule: AnomalibDataModule) -> None:
    """Refuse masks of another size than their images, which resizing would put out of register.

    Raises:
        ValueError: Naming the first such mask.
    """
    samples = getattr(getattr(datamodule, "test_data", None), "samples", None)
    if samples is None or "mask_path" not in samples:
        return
    for row in samples.itertuples():
        if not row.mask_path or not Path(str(row.mask_path)).is_file():
            continue
        with Image.open(row.image_path) as image, Image.open(row.mask_path) as mask:
            if image.size != mask.size:
                msg = (
                    f"The mask {row.mask_path} is {mask.size[0]} x {mask.size[1]}, its image {image.size[0]} x "
                    f"{image.size[1]}: they must have the same size."
                )
                raise ValueError(msg)
