"""Start-up hook: whoever imports anomalib gets the models and data modules of anomalib-inctrl with it.

anomalib has no plugin mechanism. It knows a model by its short name (``--model InCTRLv2``, ``get_model("InCTRLv2")``)
only if the module that defines it was imported, and a user of ``anomalib train`` has no line of code to do so. Hence
this module, which Python runs at start-up: ``anomalib_inctrl.pth`` (up to Python 3.17) and ``anomalib_inctrl.start``
(PEP 829, from Python 3.15) beside it in site-packages name it. It puts a finder on ``sys.meta_path`` that waits:

* when ``anomalib.models`` is complete, it imports ``anomalib_inctrl.models``;
* when ``anomalib.data`` is complete, it imports ``anomalib_inctrl.data``;
* when ``anomalib.cli.pipelines`` is complete, it imports ``anomalib_inctrl.benchmark``.

Those register what they define with anomalib at their own end; where they are imported by hand, no hook is needed.

Rules of this file:

* It runs in every Python process of the environment, so it imports nothing but ``sys``; the rest is imported on use.
* Nothing that goes wrong in the plugin reaches the interpreter or anomalib; it becomes one warning.
* The finder keeps no state about what has been seen: an ``anomalib.models`` that failed to import, was only looked up
  or is reloaded fires again at the next import, and a second load of an imported plugin module costs a dict look-up.

Set the environment variable ``ANOMALIB_INCTRL_AUTOLOAD=0`` to turn it off. ``--model anomalib_inctrl.InCTRL``, the full
class path, works without the hook.
"""

import sys

TYPE_CHECKING = False  # type checkers take it for true; the constant of `typing` would cost milliseconds at every start
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.abc import Loader
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

_PACKAGE = "anomalib_inctrl"
_PLUGIN_OF = {
    "anomalib.cli.pipelines": "anomalib_inctrl.benchmark",
    "anomalib.data": "anomalib_inctrl.data",
    "anomalib.models": "anomalib_inctrl.models",
}

# Both sets only see single operations, which are atomic in CPython. Threads that import anomalib and the plugin at once
# may do a load twice, which is harmless, or leave it to the thread that is inside the plugin already. They never forget
# one: each first notes its own change, then looks at the other set.
_importing: "set[str]" = set()  # modules of the plugin that are executing now
_due: "set[str]" = set()  # modules of the plugin whose trigger is done, but that were not loaded yet
_warned = False


class _Finder:
    """Finds the triggers and the plugin's modules where the finders after it do, and has their execution watched."""

    anomalib_inctrl_hook = True  # recognises a finder of a second copy of this file, too

    def find_spec(
        self, fullname: str, path: "Sequence[str] | None" = None, target: "ModuleType | None" = None
    ) -> "ModuleSpec | None":
        """Return the spec of a watched module with a watching loader, and ``None`` for every other module."""
        if fullname not in _PLUGIN_OF and fullname.partition(".")[0] != _PACKAGE:
            return None
        # The finders before this one were asked and had no answer. Asking only those after it cannot recurse, even if
        # several projects use a hook like this one.
        finders = list(sys.meta_path)
        for finder in finders[finders.index(self) + 1 :] if self in finders else finders:
            find_spec = getattr(finder, "find_spec", None)
            spec = find_spec(fullname, path, target) if find_spec else None
            if spec is not None:
                if hasattr(spec.loader, "exec_module"):
                    spec.loader = _Loader(spec.loader)
                return spec
        return None


class _Loader:
    """Stands in for a module's loader until the module executes, to learn when it has."""

    def __init__(self, loader: "Loader") -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> "Any":
        """Pass on ``get_source``, ``get_code`` ... to those who look a module up without importing it."""
        if name.startswith("_"):  # also before __init__ ran, as in copy.copy, where self._loader would recurse
            raise AttributeError(name)
        return getattr(self._loader, name)

    def create_module(self, spec: "ModuleSpec") -> "ModuleType | None":
        """Create the module as its own loader does."""
        return self._loader.create_module(spec)

    def exec_module(self, module: "ModuleType") -> None:
        """Hand the module back to its own loader, execute it, and load what became due."""
        # First of all, so that inspect, reload and pickle never meet the stand-in.
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        module.__loader__ = self._loader
        plugin = _PLUGIN_OF.get(module.__name__)
        if plugin is None:
            _importing.add(module.__name__)
        try:
            self._loader.exec_module(module)
            if plugin is not None:
                _bind_to_parent(module)
                _due.add(plugin)
        finally:
            _importing.discard(module.__name__)
            _load_due()


def _bind_to_parent(module: "ModuleType") -> None:
    """Make ``anomalib.models`` an attribute of ``anomalib``; the import statement does so after the loader is done.

    The plugin's ``import anomalib.models`` succeeds without, but ``anomalib.models.Padim`` would fail in it.
    """
    parent, _, child = module.__name__.rpartition(".")
    if parent in sys.modules:
        setattr(sys.modules[parent], child, module)


def _load_due() -> None:
    """Import the plugin modules that are due, unless the plugin is just being imported.

    A user may import any module of the plugin before anomalib. That module imports ``anomalib.models`` in its first
    lines; loading ``anomalib_inctrl.models`` at that moment would import from a module without content. The load
    happens when the outermost module of the plugin is done.
    """
    for plugin in sorted(_due):
        if _importing:
            return
        _due.discard(plugin)
        _load(plugin)


def _load(plugin: str) -> None:
    """Import a module of the plugin; a failure of any kind is reported once per process and goes no further."""
    import os

    if os.environ.get("ANOMALIB_INCTRL_AUTOLOAD") == "0":
        return
    try:
        import importlib

        importlib.import_module(plugin)
    except Exception as error:  # whatever it is, anomalib itself is fine and has to go on
        _warn(plugin, error)


def _warn(plugin: str, error: Exception) -> None:
    """Say in one line what is missing, why, and what to do."""
    global _warned  # one cause often stops both modules
    if _warned:
        return
    _warned = True
    # anomalib.models imports anomalib.data, so what stops the data modules comes first and may stop the models as well.
    missing = {
        f"{_PACKAGE}.benchmark": "few-shot benchmark is",
        f"{_PACKAGE}.data": "data modules and possibly its models are",
        f"{_PACKAGE}.models": "models are",
    }[plugin]
    message = (
        f"anomalib-inctrl could not be loaded, its {missing} not available: "
        f"{type(error).__name__}: {' '.join(str(error).split())}. Reinstall anomalib-inctrl, or set "
        "ANOMALIB_INCTRL_AUTOLOAD=0 to silence this warning. "
        f'`python -c "import {plugin}"` shows the whole error.'
    )
    import warnings

    try:
        # The line that imports anomalib is above _warn, _load, _load_due and exec_module; importlib does not count.
        warnings.warn(message, RuntimeWarning, stacklevel=5)
    except RuntimeWarning:  # warnings are errors here (`python -W error`), but this one must not stop `import anomalib`
        sys.stderr.write(f"RuntimeWarning: {message}\n")


def install() -> None:
    """Put the finder on ``sys.meta_path``, once, and catch up with what was imported before.

    ``anomalib_inctrl.pth`` runs this by importing the module, ``anomalib_inctrl.start`` by calling it; Python versions
    that read both files do both.
    """
    if any(getattr(type(finder), "anomalib_inctrl_hook", False) for finder in sys.meta_path):
        return
    sys.meta_path.insert(0, _Finder())
    _due.update(plugin for trigger, plugin in _PLUGIN_OF.items() if trigger in sys.modules)
    _load_due()


install()
