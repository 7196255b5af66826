"""What a benchmark consists of: models, data sets, categories, shots and seeds, read from a configuration file."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@dataclass(frozen=True)
class ModelEntry:
    """A method of the benchmark.

    Args:
        name: What the tables call it.
        class_path: Any model of anomalib: class name or import path.
        init_args: Arguments of its constructor. ``k_shot``, ``reference_seed`` and ``class_name`` are set by the
            benchmark where the constructor has them.
        shots: Numbers of references it runs with, those of them that the benchmark has; ``None`` for all above 0.
        image_size: Height and width its default pre-processor resizes to; ``None`` for its default.
        trainer: More arguments of Lightning's trainer, such as ``max_epochs``.
        published: What :func:`published_figures <anomalib_inctrl.benchmark.tables.published_figures>` call it, if they
            have it.
    """

    name: str
    class_path: str
    init_args: dict[str, Any] = field(default_factory=dict)
    shots: list[int] | None = None
    image_size: list[int] | None = None
    trainer: dict[str, Any] = field(default_factory=dict)
    published: str | None = None


@dataclass(frozen=True)
class DataEntry:
    """A data set of the benchmark.

    Args:
        name: What the tables call it.
        class_path: Any data module of anomalib: class name or import path.
        init_args: Arguments of its constructor.
        categories: Values of the argument ``category_argument``, each a part of the data set; empty for none.
        category_argument: Which argument selects a part.
        model_args: Arguments of models, by the models' names, that take the place of their ``init_args`` on this data
            set; for weights that must not have been trained on it.
        published: What the published figures call it, if they have it.
    """

    name: str
    class_path: str
    init_args: dict[str, Any] = field(default_factory=dict)
    categories: list[str] = field(default_factory=list)
    category_argument: str = "category"
    model_args: dict[str, dict[str, Any]] = field(default_factory=dict)
    published: str | None = None


@dataclass(frozen=True)
class Cell:
    """One run: a method on a category with K references of a seed."""

    model: ModelEntry
    data: DataEntry
    category: str
    k_shot: int
    seed: int
    selection: str = "random"

    @property
    def data_config(self) -> dict[str, Any]:
        """``class_path`` and ``init_args`` of the data module."""
        chosen = {self.data.category_argument: self.category} if self.data.categories else {}
        return {"class_path": self.data.class_path, "init_args": self.data.init_args | chosen}

    @property
    def key(self) -> str:
        """File name: readable, and another one for whatever would give another result."""
        model = (self.model.class_path, self.model.init_args, self.model.image_size, self.model.trainer)
        label = f"{self.data.name}-{self.category or 'all'}-{self.model.name}-k{self.k_shot}-s{self.seed}"
        content = json.dumps(
            [model, self.data_config, self.k_shot, self.seed, self.selection], sort_keys=True, default=str
        )
        return f"{re.sub(r'[^A-Za-z0-9.]+', '-', label)}-{hashlib.sha256(content.encode()).hexdigest()[:10]}"


@dataclass(frozen=True)
class Grid:
    """All cells of a benchmark, and where their results go.

    Args:
        output: Folder of results.
        models: Methods, in the order of the tables.
        data: Data sets, in the order of the tables.
        shots: Numbers of references; 0 runs without any.
        seeds: Seeds of the draws of references, each a run of its own. Without references there is nothing to draw,
            and only the first counts.
        selection: How references are chosen, see :class:`FewShot <anomalib_inctrl.data.FewShot>`.
        title: Heading of the report.
        feature_cache_mb: Memory of a process in which features of frozen encoders are kept for other cells; 0 for none.
            An encoder whose features of a category don't fit goes without.
        threads: Of a process on the CPU; 0 shares the cores out among the processes.
    """

    output: Path
    models: tuple[ModelEntry, ...]
    data: tuple[DataEntry, ...]
    shots: tuple[int, ...]
    seeds: tuple[int, ...]
    selection: str = "random"
    title: str = "Few-shot anomaly detection benchmark"
    feature_cache_mb: int = 2048
    threads: int = 0

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Grid:
        """Read the section ``few_shot_benchmark`` of a configuration file.

        Raises:
            ValueError: If a key is unknown, missing or of the wrong kind; the message names it.
        """
        given = dict(config)
        _check_keys("few_shot_benchmark", given, cls, required=("output", "models", "data", "shots", "seeds"))
        grid = cls(
            **given
            | {
                "output": Path(given["output"]),
                "models": tuple(_entry(ModelEntry, entry) for entry in _list("models", given)),
                "data": tuple(_entry(DataEntry, entry) for entry in _list("data", given)),
                "shots": tuple(_numbers("shots", given)),
                "seeds": tuple(_numbers("seeds", given)),
            }
        )
        for kind, names in (("models", [m.name for m in grid.models]), ("data", [d.name for d in grid.data])):
            if len(set(names)) < len(names):
                msg = f"few_shot_benchmark.{kind}: every entry needs a name of its own, got {names}."
                raise ValueError(msg)
        unknown = {name for d in grid.data for name in d.model_args} - {m.name for m in grid.models}
        if unknown:
            msg = f"few_shot_benchmark.data: model_args names {sorted(unknown)}, which is none of the models."
            raise ValueError(msg)
        if not any(grid.shots_of(model) for model in grid.models):
            msg = (
                f"few_shot_benchmark: no model runs with any of shots={list(grid.shots)}: a model's own must "
                "be among them, and 0 is for models that name it in theirs."
            )
            raise ValueError(msg)
        return grid

    def cells(self) -> list[Cell]:
        """List all cells; those of a category follow each other, so that they can share features."""
        return [
            Cell(
                replace(model, init_args=model.init_args | data.model_args.get(model.name, {})),
                data,
                category,
                k_shot,
                seed,
                self.selection,
            )
            for data in self.data
            for category in data.categories or [""]
            for model in self.models
            for k_shot in self.shots_of(model)
            for seed in (self.seeds if k_shot else self.seeds[:1])
        ]

    def shots_of(self, model: ModelEntry) -> list[int]:
        """Numbers of references a model runs with."""
        if model.shots is not None:
            return [k for k in model.shots if k in self.shots]
        return [k for k in self.shots if k]


def _entry(kind: type[Any], given: Any) -> Any:
    if not isinstance(given, dict):
        msg = f"few_shot_benchmark: an entry must have class_path and init_args, got {given!r}."
        raise ValueError(msg)
    _check_keys(kind.__name__, given, kind, required=("class_path",))
    entry: dict[str, Any] = {"name": str(given["class_path"]).rpartition(".")[-1]} | given
    if "categories" in entry:
        entry["categories"] = [str(category) for category in entry["categories"]]
    return kind(**entry)


def _check_keys(where: str, given: Mapping[str, Any], kind: type[Any], required: Sequence[str]) -> None:
    known = [f.name for f in fields(kind)]
    unknown, missing = sorted(set(given) - set(known)), [key for key in required if key not in given]
    if unknown or missing:
        problem = f"does not know {', '.join(unknown)}" if unknown else f"lacks {', '.join(missing)}"
        msg = f"{where} {problem}. It takes: {', '.join(known)}."
        raise ValueError(msg)


def _list(key: str, given: Mapping[str, Any]) -> list[Any]:
    if not isinstance(given[key], list) or not given[key]:
        msg = f"few_shot_benchmark.{key} must be a list with at least one entry, got {given[key]!r}."
        raise ValueError(msg)
    return given[key]


def _numbers(key: str, given: Mapping[str, Any]) -> list[int]:
    numbers = _list(key, given)
    if any(not isinstance(n, int) or n < 0 for n in numbers) or len(set(numbers)) < len(numbers):
        msg = f"few_shot_benchmark.{key} must be different whole numbers from 0 on, got {numbers}."
        raise ValueError(msg)
    return numbers
