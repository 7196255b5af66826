"""Takes over the fixtures of ``tests/flows``: drawn data, models and engines."""

from __future__ import annotations

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

_spec = spec_from_file_location("engine_fixtures", Path(__file__).parents[1] / "flows" / "conftest.py")
_fixtures = module_from_spec(_spec)
_spec.loader.exec_module(_fixtures)

_encode_text_once = _fixtures._encode_text_once
kit, engine, root, normals, name, trained = (
    getattr(_fixtures, fixture) for fixture in ("kit", "engine", "root", "normals", "name", "trained")
)
