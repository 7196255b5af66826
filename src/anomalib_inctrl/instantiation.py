"""Objects from configurations, as anomalib's command line makes them."""

from __future__ import annotations

from typing import Any

from jsonargparse import ArgumentParser, Namespace
from omegaconf import OmegaConf


class Builder:
    """Builds objects from one ``class_path`` and ``init_args``, short names and nested ones included.

    anomalib's own ``get_datamodule`` takes no nested ones, and makes a pair of every ``image_size``.

    Args:
        base (type): What they are instances of.
        config (dict): ``class_path`` and ``init_args``, those of OmegaConf too.

    Raises:
        ValueError: If the class or one of its arguments does not exist, or a value is of another type.
    """

    def __init__(self, base: type, config: dict[str, Any]) -> None:
        self._parser = ArgumentParser(exit_on_error=False)
        self._parser.add_subclass_arguments(base, "it", fail_untyped=False, required=True)
        plain = {name: OmegaConf.to_container(v) if OmegaConf.is_config(v) else v for name, v in config.items()}
        self._parsed = self._parser.parse_object({"it": plain})
        self._given = config.get("init_args") or {}

    def __call__(self, optional: dict[str, Any] | None = None, **changed: Any) -> Any:
        """Build one.

        Args:
            optional (dict | None): Arguments to be set if the constructor has them and the configuration does not set
                them.
            **changed (Any): Arguments that the configuration has, with other values of the same types.
        """
        parsed: Namespace = self._parsed.clone()
        taken = parsed.it.get("init_args") or {}
        for name, value in (optional or {}).items():
            if name in taken and name not in self._given:
                parsed.it.init_args[name] = value
        for name, value in changed.items():
            parsed.it.init_args[name] = value
        return self._parser.instantiate_classes(parsed).it
