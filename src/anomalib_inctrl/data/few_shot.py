"""Few normal images of any data module instead of its whole training split."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, get_args

from anomalib.data import AnomalibDataModule
from torch.utils.data import DataLoader

from anomalib_inctrl.instantiation import Builder
from anomalib_inctrl.prompts import class_name_of
from anomalib_inctrl.reference_images import Selection

if TYPE_CHECKING:
    from pandas import DataFrame

logger = logging.getLogger(__name__)


class FewShot(AnomalibDataModule):
    """Few-shot view of another data module: K named normal images to train on, all else unchanged.

    Any model of anomalib trains on it. The training split holds K normal images of the wrapped module's, and nothing
    else; validation and test split are the wrapped module's own. The images are those that the models of this package
    draw from the wrapped module with the same ``k_shot`` and seed. Samples that name categories give K of each.

    Args:
        data (AnomalibDataModule): The data module to look at; in configuration files ``class_path`` and ``init_args``.
        k_shot (int): Number of normal images to train on.
        seed (int): Of the random draw; K images are among the 2K of the same seed.
        files (list[str] | None): Name the images instead of having them chosen: paths, or their last parts as far as
            they are unique (``"good/012.png"``). ``k_shot`` is then their number.
        selection (str): How images are chosen: ``"random"``; ``"k_centre"``, far from each other; ``"medoid"``, typical
            of the split. The last two look at the whole training split, which a few-shot user may not have: name them
            in what you report.
        backbone (str): open_clip model, or ``"inctrl-tiny"``, whose features tell what is far; not used at random.
        pretrained (str | None): Its weights: open_clip tag or local file.

    Raises:
        ValueError: If K is not positive, there are fewer normal images, or a named file is not among them.

    Example:
        >>> from anomalib_inctrl import DemoAD, FewShot
        >>> view = FewShot(DemoAD(category="gravel"), k_shot=2)
        >>> view.name, view.category
        ('DemoAD', 'gravel')
    """

    def __init__(
        self,
        data: AnomalibDataModule,
        k_shot: int = 4,
        seed: int = 0,
        files: list[str] | None = None,
        selection: Selection = "random",
        backbone: str = "inctrl-tiny",
        pretrained: str | None = None,
    ) -> None:
        self.data = Builder(AnomalibDataModule, dict(data))() if isinstance(data, Mapping) else data
        if isinstance(self.data, FewShot):
            msg = "data is a FewShot itself: give the data module it wraps."
            raise ValueError(msg)
        if files is not None and not files:
            msg = "files is empty: name at least one image, or leave it out to have k_shot images chosen."
            raise ValueError(msg)
        if k_shot < 1:
            msg = f"k_shot must be at least 1, got {k_shot}; without references use the data module itself."
            raise ValueError(msg)
        if selection not in get_args(Selection):
            msg = f"selection must be one of {', '.join(get_args(Selection))}, got {selection!r}."
            raise ValueError(msg)
        super().__init__(
            train_batch_size=self.data.train_batch_size,
            eval_batch_size=self.data.eval_batch_size,
            num_workers=self.data.num_workers,
            train_augmentations=self.data.train_augmentations,
            val_augmentations=self.data.val_augmentations,
            test_augmentations=self.data.test_augmentations,
            seed=self.data.seed,
        )
        self.external_collate_fn = self.data.external_collate_fn
        self.k_shot = len(files) if files else k_shot
        self.reference_seed = seed
        self.files = list(files) if files else None
        self.selection = selection
        self._encoder = (backbone, pretrained)
        self._chosen: tuple[tuple[str, ...], list[str]] | None = None
        self.handed_out: set[str] = set()

    @property
    def name(self) -> str:  # type: ignore[override]
        """Name of the wrapped data module."""
        return self.data.name

    @property
    def category(self) -> str:
        """Category of the wrapped data module."""
        return self.data.category

    @category.setter
    def category(self, category: str) -> None:
        self.data.category = category

    @property
    def class_name(self) -> str:
        """What text prompts call the thing, see :func:`class_name_of`."""
        return class_name_of(self.data)

    @property
    def references(self) -> list[str]:
        """Paths of the chosen images, sorted.

        Raises:
            RuntimeError: Before :meth:`setup`.
        """
        if self._chosen is None:
            msg = "The references are chosen in setup(), which has not been called."
            raise RuntimeError(msg)
        return self._chosen[1]

    @property
    def pool(self) -> list[str]:
        """Paths of all normal training images of the wrapped data module, sorted; see :attr:`references`."""
        if self._chosen is None:
            msg = "The pool is known after setup(), which has not been called."
            raise RuntimeError(msg)
        return list(self._chosen[0])

    def prepare_data(self) -> None:
        """Let the wrapped data module fetch what it needs."""
        self.data.prepare_data()

    def _setup(self, _stage: str | None = None) -> None:
        """Set the wrapped data module up with its own splits, then keep few of its training images."""
        self.data.setup(_stage)
        train = self.data.train_data
        rows = self._choose(train.samples)
        self.train_data = train.subsample(rows)
        self.train_data.samples.attrs.update(train.samples.attrs)
        for subset in ("val_data", "test_data"):
            if hasattr(self.data, subset):
                setattr(self, subset, getattr(self.data, subset))
        logger.info("Training split of %s %s: %s", self.name, self.category, ", ".join(self.references))

    def _create_test_split(self) -> None:
        """The wrapped data module has made its own."""

    def _create_val_split(self) -> None:
        """The wrapped data module has made its own."""

    def _choose(self, samples: DataFrame) -> list[int]:
        """Rows of the chosen images; the choice is made once for the same samples."""
        normal = samples[samples.label_index == 0] if "label_index" in samples else samples
        pool = tuple(sorted(map(str, normal.image_path)))
        if self._chosen is None or self._chosen[0] != pool:
            self._chosen = (pool, self._named(pool) if self.files else self._drawn(normal))
        wanted = set(self._chosen[1])
        return [row for row, path in enumerate(samples.image_path) if str(path) in wanted]

    def _drawn(self, normal: DataFrame) -> list[str]:
        # In the function, for these import what may be importing this module.
        from anomalib_inctrl.clip import ClipBackbone
        from anomalib_inctrl.reference_choice import select

        groups = normal.groupby("category") if "category" in normal else [("", normal)]
        backbone = None if self.selection == "random" else ClipBackbone(*self._encoder)
        chosen = [
            select([str(p) for p in group.image_path], self.k_shot, self.reference_seed, self.selection, backbone)
            for _, group in groups
        ]
        return sorted(path for part in chosen for path in part)

    def _named(self, pool: Sequence[str]) -> list[str]:
        chosen = []
        for file in self.files or []:
            parts = PurePath(file).parts
            found = [path for path in pool if PurePath(path).parts[-len(parts) :] == parts]
            if len(found) != 1:
                msg = (
                    f"files names {file!r}, which is {len(found) or 'none'} of the {len(pool)} normal training images "
                    f"of {self.name} {self.category}: name exactly one, such as {pool[0]!r}."
                )
                raise ValueError(msg)
            chosen += found
        if len(set(chosen)) < len(chosen):
            msg = f"files names an image twice: {', '.join(sorted(chosen))}."
            raise ValueError(msg)
        return sorted(chosen)

    def train_dataloader(self) -> DataLoader:
        """Load the chosen images, noting in :attr:`handed_out` which a model has received."""
        return _NotingLoader(
            self.handed_out,
            dataset=self.train_data,
            shuffle=True,
            batch_size=self.train_batch_size,
            num_workers=self.num_workers,
            collate_fn=self.external_collate_fn or self.train_data.collate_fn,
        )


class _NotingLoader(DataLoader):
    """Notes the files of every batch that is taken from it, in the process that takes it."""

    def __init__(self, handed_out: set[str], collate_fn: Callable[..., Any] | None = None, **options: Any) -> None:
        super().__init__(collate_fn=collate_fn, **options)
        self.handed_out = handed_out

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        for batch in super().__iter__():
            self.handed_out.update(str(path) for path in batch.image_path or [])
            yield batch
