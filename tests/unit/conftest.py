"""Fixtures of the unit tests: architectures that exist for one test alone."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from open_clip import add_model_config, factory

from anomalib_inctrl.clip import image_convention

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def register(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Register a small architecture with open_clip until the test ends."""
    image_convention("inctrl-tiny")  # registers itself once per process, which must not be undone
    monkeypatch.setattr(factory, "_MODEL_CONFIG_PATHS", list(factory._MODEL_CONFIG_PATHS))
    monkeypatch.setattr(factory, "_MODEL_CONFIGS", dict(factory._MODEL_CONFIGS))

    def add(name: str = "micro", vision: dict[str, Any] | None = None, **options: Any) -> str:
        config = {
            "embed_dim": 24,
            "vision_cfg": {"image_size": 32, "layers": 3, "width": 32, "head_width": 16, "patch_size": 8},
            "text_cfg": {"context_length": 77, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1},
        }
        config["vision_cfg"] |= vision or {}
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(config | options))
        add_model_config(path)
        return name

    return add
