"""The start-up hook: in environments with only our wheel or only our editable install, and on a stand-in for anomalib.

The first part runs the real anomalib in virtual environments. Each sees the dependencies of the running interpreter
through a ``.pth`` file with their directories. Python does not read the ``.pth`` files inside directories added that
way, so a plugin that is installed in the running environment, too, has no hook there, and its package comes later on
the path. Importing anomalib takes about ten seconds, hence few processes with many questions each; inside a process,
dropping the modules of both projects and importing them again takes a fraction of one.

The second part needs no environment: ``python -S`` reads no ``.pth`` file, so nothing but the hook, a stand-in for
anomalib and a stand-in for the plugin exist there.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
import venv
from pathlib import Path
from zipfile import ZipFile

import pytest

PROJECT = Path(__file__).resolve().parents[2]
MODELS = ["ClipZeroShot", "CoOp", "CorrectedWinClip", "DevPrompt", "InCTRL", "InCTRLv2", "Spade"]
DATA = [
    "Aitex",
    "AuxiliaryData",
    "BrainMRI",
    "Cifar10",
    "DemoAD",
    "DigitsAD",
    "Elpv",
    "FacesAD",
    "FewShot",
    "HeadCT",
    "KolektorSDD",
    "Mnist",
    "ProceduralAD",
]  # fmt: skip
REGISTERED = MODELS + DATA
HOOK_FILES = {"_anomalib_inctrl_hook.py", "anomalib_inctrl.pth", "anomalib_inctrl.start"}


def clean_environ(**extra: str) -> dict[str, str]:
    """The environment variables without those that would change what Python, pip or the hook do."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "PIP_", "ANOMALIB_INCTRL_"))}
    return kept | {"PIP_CONFIG_FILE": os.devnull, "HF_HUB_OFFLINE": "1"} | extra


def run(*command: str | Path, cwd: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run a command and hand back its result; what it wrote is shown if the test fails."""
    command = tuple(str(part) for part in command)
    environ = clean_environ(**environ)
    result = subprocess.run(command, cwd=cwd, env=environ, capture_output=True, text=True, timeout=200)
    sys.stdout.write(result.stdout)
    sys.stderr.write(result.stderr)
    return result


class Environment:
    """A virtual environment that sees what the running interpreter has installed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        venv.create(path, with_pip=False, symlinks=os.name != "nt")
        self.python = path / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
        self.site_packages = next(path.glob("[Ll]ib/**/site-packages"))
        dependencies = [p for p in sys.path if Path(p).name in {"site-packages", "dist-packages"}]
        (self.site_packages / "zz_dependencies.pth").write_text("\n".join(dependencies) + "\n")

    def run(self, *arguments: str | Path, **environ: str) -> subprocess.CompletedProcess[str]:
        return run(self.python, *arguments, cwd=self.path, **environ)

    def install(self, *target: str | Path) -> None:
        """Install with the pip of the running interpreter; it works in the environment of the Python that runs it."""
        options = ["--quiet", "--ignore-installed", "--no-deps", "--no-index", "--no-build-isolation", "--no-input"]
        result = self.run("-m", "pip", "--disable-pip-version-check", "install", *options, *target)
        assert result.returncode == 0


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    directory = tmp_path_factory.mktemp("wheel")
    options = ["--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", directory]
    result = run(sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", *options, PROJECT, cwd=directory)
    assert result.returncode == 0
    (path,) = directory.glob("anomalib_inctrl-*.whl")
    return path


@pytest.fixture(scope="module")
def wheel_environment(wheel, tmp_path_factory):
    environment = Environment(tmp_path_factory.mktemp("from_wheel"))
    environment.install(wheel)
    return environment


@pytest.fixture(scope="module")
def editable_environment(tmp_path_factory):
    environment = Environment(tmp_path_factory.mktemp("editable"))
    environment.install("--editable", PROJECT)
    return environment


@pytest.fixture(scope="module", params=["wheel", "editable"])
def installed(request):
    """Both ways to install, one after the other."""
    return request.getfixturevalue(f"{request.param}_environment")


QUESTIONS = (
    f"MODELS, DATA = {MODELS}, {DATA}\n"
    + """
import importlib, inspect, json, os, pickle, pkgutil, sys, warnings

def forget():
    "Drop anomalib and the plugin, but neither the hook nor the dependencies, which take the time."
    for name in [n for n in sys.modules if n.partition(".")[0] in {"anomalib", "anomalib_inctrl"}]:
        del sys.modules[name]
    for registry in (AcceleratorRegistry, StrategyRegistry):  # anomalib.engine refuses to enter its own twice
        for name in [n for n in registry if "xpu" in n]:
            registry.pop(name)

def registered():
    import anomalib.data, anomalib.models
    names = {anomalib.models: MODELS, anomalib.data: DATA}
    return [name for module, group in names.items() for name in group if hasattr(module, name)]

answers = {"before": sorted({"anomalib", "torch", "anomalib_inctrl"} & sys.modules.keys())}

import anomalib.models
from lightning.pytorch.accelerators import AcceleratorRegistry
from lightning.pytorch.strategies import StrategyRegistry
from anomalib.data import get_datamodule
from anomalib.models import get_model, list_models

import _anomalib_inctrl_hook, anomalib_inctrl
answers["hook_file"] = _anomalib_inctrl_hook.__file__
answers["package_file"] = anomalib_inctrl.__file__
answers["same_classes"] = [
    getattr(home, name) is getattr(anomalib_inctrl, name)
    for home, names in ((anomalib.models, MODELS), (anomalib.data, DATA))
    for name in names
]
answers["public"] = dir(anomalib_inctrl)
listed = {"clip_zero_shot", "co_op", "dev_prompt", "in_c_t_r_l", "in_c_t_r_lv2", "padim", "spade"}
answers["listed"] = sorted(list_models() & listed)
tiny = {"backbone": "inctrl-tiny"}
answers["models"] = {
    spelling: type(get_model(spelling, **tiny)).__name__
    for spelling in (
        "DevPrompt", "dev_prompt", "InCTRL", "InCTRLv2", "inctrl_v2", "inctrl",
        "Spade", "ClipZeroShot", "clip_zero_shot", "coop"
    )
}
for path in ("InCTRLv2", "anomalib.models.InCTRLv2", "anomalib_inctrl.InCTRLv2"):
    answers["models"]["class_path " + path] = type(get_model({"class_path": path, "init_args": tiny})).__name__
for path in ("DemoAD", "anomalib.data.DemoAD", "anomalib_inctrl.DemoAD", "ProceduralAD"):
    answers["models"]["data " + path] = type(get_datamodule({"class_path": path})).__name__

answers["source"] = [inspect.getsource(anomalib.models)[:20], inspect.getsource(anomalib.data)[:20]]
answers["loaders"] = sorted({
    type(loader).__module__
    for name, module in list(sys.modules.items())
    if name.partition(".")[0] in {"anomalib", "anomalib_inctrl"}
    for loader in (module.__loader__, getattr(module.__spec__, "loader", None))
})
answers["pickled"] = pickle.loads(pickle.dumps(anomalib.models.InCTRL)) is anomalib_inctrl.InCTRL
importlib.reload(anomalib.models)
answers["reloaded"] = [registered(), type(anomalib.models.get_model("InCTRLv2", **tiny)).__name__]

ours = ["anomalib_inctrl", *(m.name for m in pkgutil.walk_packages(anomalib_inctrl.__path__, "anomalib_inctrl."))]
host = ["anomalib.data", "anomalib.models", "anomalib.models.image.padim", "anomalib.engine", "anomalib.cli"]
answers["first"] = {}
for first in [*host, *(name for name in ours if not name.endswith("__main__"))]:
    forget()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", RuntimeWarning)
        _anomalib_inctrl_hook._warned = False
        importlib.import_module(first)
        found = registered()
    answers["first"][first] = found + [str(w.message) for w in caught if "anomalib-inctrl" in str(w.message)]

forget()
os.environ["ANOMALIB_INCTRL_AUTOLOAD"] = "0"
answers["opt_out"] = registered() + sorted({"anomalib_inctrl"} & sys.modules.keys())
answers["opt_out_by_hand"] = [importlib.import_module("anomalib_inctrl").InCTRL.__name__, *registered()]
print("\\n" + json.dumps(answers))
"""
)


@pytest.mark.slow
def test_everything_anomalib_offers_finds_the_plugin(installed, request):
    """Short names, class paths, lists, any import order, reload, pickling and the way out, in one process."""
    result = installed.run("-c", QUESTIONS)
    assert result.returncode == 0
    answers = json.loads(result.stdout.splitlines()[-1])

    assert answers["before"] == []  # reading the .pth file loads none of them
    assert Path(answers["hook_file"]).parent.samefile(installed.site_packages)
    from_wheel = Path(answers["package_file"]).is_relative_to(installed.site_packages.resolve())
    assert from_wheel == (request.node.callspec.params["installed"] == "wheel")
    assert from_wheel or Path(answers["package_file"]).is_relative_to(PROJECT / "src")

    assert answers["same_classes"] == [True] * len(REGISTERED)
    assert answers["public"] == sorted([*REGISTERED, "__version__"])
    assert answers["listed"] == [
        "clip_zero_shot", "co_op", "dev_prompt", "in_c_t_r_l", "in_c_t_r_lv2", "padim", "spade",
    ]  # fmt: skip
    assert answers["models"] == {
        "DevPrompt": "DevPrompt",
        "dev_prompt": "DevPrompt",
        "InCTRL": "InCTRL",
        "InCTRLv2": "InCTRLv2",
        "inctrl_v2": "InCTRLv2",
        "inctrl": "InCTRL",
        "Spade": "Spade",
        "ClipZeroShot": "ClipZeroShot",
        "clip_zero_shot": "ClipZeroShot",
        "coop": "CoOp",
        "class_path InCTRLv2": "InCTRLv2",
        "class_path anomalib.models.InCTRLv2": "InCTRLv2",
        "class_path anomalib_inctrl.InCTRLv2": "InCTRLv2",
        "data DemoAD": "DemoAD",
        "data anomalib.data.DemoAD": "DemoAD",
        "data anomalib_inctrl.DemoAD": "DemoAD",
        "data ProceduralAD": "ProceduralAD",
    }

    assert [source.strip()[:1] for source in answers["source"]] == ["#", "#"]  # anomalib's licence header
    assert "_anomalib_inctrl_hook" not in answers["loaders"]
    assert answers["pickled"] is True
    assert answers["reloaded"] == [REGISTERED, "InCTRLv2"]

    assert {"anomalib.engine", "anomalib_inctrl.models", "anomalib_inctrl.data"} <= answers["first"].keys()
    others = {first: found for first, found in answers["first"].items() if found != REGISTERED}
    assert others == {}  # and no warning

    assert answers["opt_out"] == []
    assert answers["opt_out_by_hand"][: 1 + len(MODELS)] == ["InCTRL", *MODELS]  # what is imported by hand registers


@pytest.mark.slow
def test_command_line_knows_the_short_names(installed):
    command = "from anomalib.cli.cli import main; main()"  # what the console script `anomalib` does
    arguments = ["--model", "InCTRLv2", "--model.backbone", "inctrl-tiny", "--data", "DemoAD", "--print_config"]
    result = installed.run("-c", command, "train", *arguments)
    assert result.returncode == 0
    assert re.findall(r"class_path: (anomalib_inctrl\S*)", result.stdout) == [
        "anomalib_inctrl.InCTRLv2",
        "anomalib_inctrl.DemoAD",
    ]


@pytest.mark.slow
def test_broken_plugin_leaves_anomalib_working(wheel, tmp_path):
    environment = Environment(tmp_path / "broken")
    with ZipFile(wheel) as archive:  # a wheel of pure Python is installed by unpacking it
        archive.extractall(environment.site_packages)
    broken = environment.site_packages / "anomalib_inctrl" / "models" / "__init__.py"
    broken.write_text('raise ImportError("synthetic breakage")\n')

    result = environment.run("-c", "from anomalib.models import Padim\nprint(Padim.__name__)")
    assert result.returncode == 0
    assert result.stdout.splitlines()[-1] == "Padim"
    (line,) = [line for line in result.stderr.splitlines() if "anomalib-inctrl" in line]
    assert line.startswith(
        "<string>:1: RuntimeWarning: anomalib-inctrl could not be loaded, its models are not available"
    )
    assert "ImportError: synthetic breakage." in line
    assert "Traceback" not in result.stderr


def test_python_start_costs_nothing(wheel_environment):
    """No heavy module is imported, and the hook takes less than 5 ms (measured: 0.3 ms) where anomalib is not used."""
    result = wheel_environment.run("-c", "import sys; print(*sys.modules)")
    loaded = set(result.stdout.split())
    assert "_anomalib_inctrl_hook" in loaded
    assert not {name for name in loaded if name.partition(".")[0] in {"anomalib", "anomalib_inctrl", "torch", "numpy"}}

    microseconds = []
    for _ in range(5):
        result = wheel_environment.run("-X", "importtime", "-c", "pass")
        (cumulative,) = re.findall(r"\|\s*(\d+) \| +_anomalib_inctrl_hook$", result.stderr, flags=re.MULTILINE)
        microseconds.append(int(cumulative))
    assert min(microseconds) < 5000


def test_wheel_brings_the_hook_and_uninstall_removes_it(wheel, tmp_path):
    with ZipFile(wheel) as archive:
        (record,) = [name for name in archive.namelist() if name.endswith(".dist-info/RECORD")]
        recorded = {line.split(",")[0] for line in archive.read(record).decode().splitlines()}
        assert recorded >= HOOK_FILES
        assert archive.read("anomalib_inctrl.pth").decode().splitlines() == ["import _anomalib_inctrl_hook"]
        assert archive.read("anomalib_inctrl.start").decode().splitlines() == ["_anomalib_inctrl_hook:install"]

    environment = Environment(tmp_path / "uninstalled")
    before = {path.name for path in environment.site_packages.iterdir()}
    environment.install(wheel)
    assert {path.name for path in environment.site_packages.iterdir()} >= before | HOOK_FILES
    result = environment.run("-m", "pip", "--disable-pip-version-check", "uninstall", "--yes", "anomalib-inctrl")
    assert result.returncode == 0
    left = {path.name for path in environment.site_packages.iterdir()} - before - {"__pycache__"}
    assert left == set()
    assert environment.run("-c", "pass").stderr == ""


# ---------------------------------------------------------------------------------------------------------------------
# The hook by itself. The stand-ins do what the real ones do: anomalib.models imports anomalib.data, and the plugin's
# modules register at their own end.

STAND_INS = {
    "anomalib/__init__.py": "",
    "anomalib/data/__init__.py": "class Folder: pass\n",
    "anomalib/models/__init__.py": "import anomalib.data\nclass Padim: pass\n",
    "anomalib_inctrl/__init__.py": "",
    "anomalib_inctrl/data.py": "import anomalib.data\nclass DemoAD: pass\nanomalib.data.DemoAD = DemoAD\n",
    "anomalib_inctrl/helper.py": "import anomalib.models\nclass Helper: pass\n",
    "anomalib_inctrl/models.py": """
        import anomalib.models
        from anomalib_inctrl.helper import Helper
        class InCTRL(Helper): pass
        anomalib.models.InCTRL = InCTRL
        """,
}
SHOW = "import anomalib.data, anomalib.models as m; print(*[n for n in ('Padim', 'InCTRL') if hasattr(m, n)]"
SHOW += ", *[n for n in ('DemoAD',) if hasattr(anomalib.data, n)])"
ALL = "Padim InCTRL DemoAD"


class Sandbox:
    """A directory with the hook and the two stand-ins, and a Python that sees nothing else."""

    def __init__(self, path: Path) -> None:
        self.path = path
        shutil.copy(PROJECT / "src" / "_anomalib_inctrl_hook.py", path)
        for name, source in STAND_INS.items():
            self.write(name, source)

    def write(self, name: str, source: str) -> None:
        file = self.path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(textwrap.dedent(source))

    def run(self, script: str, *options: str, **environ: str) -> subprocess.CompletedProcess[str]:
        """Run a script with the hook on; ``-S`` keeps the environment's own hooks out, ``-B`` stale byte code."""
        self.write("script.py", "import _anomalib_inctrl_hook as hook\n" + textwrap.dedent(script))
        return run(sys.executable, "-S", "-B", *options, "script.py", cwd=self.path, **environ)


@pytest.fixture
def sandbox(tmp_path):
    return Sandbox(tmp_path)


ORDERS = ["anomalib.data", "anomalib.models", "anomalib_inctrl", "anomalib_inctrl.data", "anomalib_inctrl.models"]


# The class of the helper does not exist yet when the anomalib.models it imports is done.
@pytest.mark.parametrize("first", [*ORDERS, "anomalib_inctrl.helper"])
def test_any_import_order(sandbox, first):
    result = sandbox.run(f"import {first}\n{SHOW}")
    assert (result.returncode, result.stdout.strip(), result.stderr) == (0, ALL, "")


def test_data_alone_does_not_load_the_models(sandbox):
    result = sandbox.run(
        "import sys, anomalib.data; print(*sorted(n for n in sys.modules if n.startswith('anomalib')))"
    )
    assert result.stdout.split() == ["anomalib", "anomalib.data", "anomalib_inctrl", "anomalib_inctrl.data"]


@pytest.mark.parametrize(("value", "expected"), [("0", "Padim"), ("1", ALL), ("", ALL)])
def test_environment_variable_turns_it_off(sandbox, value, expected):
    assert sandbox.run(SHOW, ANOMALIB_INCTRL_AUTOLOAD=value).stdout.strip() == expected


BREAKAGES = {  # where, what, how the line begins, what it says about the cause, what is still there
    "models": (
        "models.py",
        "raise ImportError('one\\ntwo')",
        "its models are",
        "ImportError: one two.",
        "Padim DemoAD",
    ),
    "data": ("data.py", "raise ValueError", "its data modules and", "ValueError: .", "Padim InCTRL"),
    "syntax": ("models.py", "class InCTRL(", "its models are", "SyntaxError: ", "Padim DemoAD"),
    "package": ("__init__.py", "1 / 0", "its data modules and", "ZeroDivisionError: ", "Padim"),
}


@pytest.mark.parametrize("strict", [False, True], ids=["warning", "warnings_are_errors"])
@pytest.mark.parametrize("breakage", BREAKAGES)
def test_a_failure_is_one_readable_line(sandbox, breakage, strict):
    file, source, missing, cause, expected = BREAKAGES[breakage]
    sandbox.write(f"anomalib_inctrl/{file}", source)
    result = sandbox.run(SHOW, *(["-W", "error"] if strict else []))
    assert (result.returncode, result.stdout.strip()) == (0, expected)
    (line,) = [line for line in result.stderr.splitlines() if "RuntimeWarning" in line]
    assert f"RuntimeWarning: anomalib-inctrl could not be loaded, {missing}" in line
    assert cause in line
    assert "Reinstall anomalib-inctrl, or set ANOMALIB_INCTRL_AUTOLOAD=0" in line
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("rest", [[], ["anomalib_inctrl/notes.txt"]], ids=["gone", "empty_directory"])
def test_hook_left_behind_without_the_package(sandbox, rest):
    shutil.rmtree(sandbox.path / "anomalib_inctrl")
    for name in rest:
        sandbox.write(name, "")
    assert sandbox.run("print('started')").stderr == ""
    result = sandbox.run(SHOW)
    assert (result.returncode, result.stdout.strip()) == (0, "Padim")
    assert result.stderr.count("RuntimeWarning") == 1
    assert "ModuleNotFoundError: No module named 'anomalib_inctrl" in result.stderr
    assert sandbox.run(SHOW, ANOMALIB_INCTRL_AUTOLOAD="0").stderr == ""


def test_error_in_the_users_own_import_reaches_the_user(sandbox):
    sandbox.write("anomalib_inctrl/models.py", "import anomalib.models\nraise ImportError('synthetic breakage')")
    result = sandbox.run("import anomalib_inctrl.models")
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1] == "ImportError: synthetic breakage"


@pytest.mark.parametrize("failing", ["anomalib.models", "anomalib.data"])
def test_an_import_of_anomalib_that_fails_can_be_repeated(sandbox, failing):
    path = f"{failing.replace('.', '/')}/__init__.py"
    once = "import builtins\nif not hasattr(builtins, 'tried'):\n    builtins.tried = True\n    raise OSError('once')\n"
    sandbox.write(path, once + STAND_INS[path])
    result = sandbox.run(f"try:\n    import anomalib.models\nexcept OSError as error:\n    print(error)\n{SHOW}")
    assert (result.returncode, result.stdout.splitlines(), result.stderr) == (0, ["once", ALL], "")


def test_looking_a_module_up_does_not_use_the_trigger_up(sandbox):
    result = sandbox.run(
        f"""
        import copy, importlib.util
        spec = importlib.util.find_spec("anomalib.models")
        print("Padim" in spec.loader.get_source(spec.name), copy.copy(spec.loader).is_package(spec.name))
        {SHOW}
        """
    )
    assert (result.returncode, result.stdout.splitlines(), result.stderr) == (0, ["True True", ALL], "")


def test_lazy_loader_still_loads_the_plugin(sandbox):
    """The hook's loader may itself be wrapped before the module executes."""
    result = sandbox.run(
        """
        import importlib.util, sys
        spec = importlib.util.find_spec("anomalib.models")
        spec.loader = importlib.util.LazyLoader(spec.loader)
        module = sys.modules["anomalib.models"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        print("anomalib_inctrl.models" in sys.modules, module.Padim.__name__, "anomalib_inctrl.models" in sys.modules)
        """
    )
    assert (result.returncode, result.stdout.strip(), result.stderr) == (0, "False Padim True", "")


def test_modules_keep_their_own_loaders(sandbox):
    """inspect, reload and pickle see anomalib as it is without the hook."""
    result = sandbox.run(
        """
        import importlib, inspect, pickle, sys
        import anomalib.models
        for name in ("anomalib.data", "anomalib.models", "anomalib_inctrl.data", "anomalib_inctrl.models"):
            module = sys.modules[name]
            assert type(module.__loader__).__name__ == "SourceFileLoader"
            assert module.__spec__.loader is module.__loader__
            assert "class" in inspect.getsource(module)
        assert pickle.loads(pickle.dumps(anomalib.models.InCTRL)) is anomalib.models.InCTRL
        before = anomalib.models.InCTRL
        again = importlib.reload(anomalib.models)
        assert again is anomalib.models
        assert again.InCTRL is before
        assert type(again.__spec__.loader).__name__ == "SourceFileLoader"
        """
    )
    assert (result.returncode, result.stderr) == (0, "")


def test_install_twice_is_install_once(sandbox):
    """Python 3.15 to 3.17 may read both start-up files; a reload or a second copy of the hook is as harmless."""
    shutil.copy(sandbox.path / "_anomalib_inctrl_hook.py", sandbox.path / "second_copy.py")
    result = sandbox.run(
        f"""
        import importlib, sys
        before = list(sys.meta_path)
        hook.install()
        importlib.reload(hook)
        import second_copy
        assert sys.meta_path == before
        assert sum(hasattr(type(finder), "anomalib_inctrl_hook") for finder in before) == 1
        {SHOW}
        """
    )
    assert (result.returncode, result.stdout.strip(), result.stderr) == (0, ALL, "")


@pytest.mark.parametrize("already", ["anomalib.data", "anomalib.models"])
def test_install_catches_up_when_anomalib_came_first(sandbox, already):
    sandbox.write("late.py", f"import {already}\nimport _anomalib_inctrl_hook\n{SHOW}\n")
    result = run(sys.executable, "-S", "-B", "late.py", cwd=sandbox.path)
    assert (result.returncode, result.stdout.strip(), result.stderr) == (0, ALL, "")


def test_two_hooks_of_this_kind_do_not_ask_each_other_for_ever(sandbox):
    source = (sandbox.path / "_anomalib_inctrl_hook.py").read_text()
    source = source.replace("anomalib_inctrl", "other_plugin").replace("ANOMALIB_INCTRL", "OTHER_PLUGIN")
    sandbox.write("other_hook.py", source)
    for name in ("__init__", "data", "models"):
        sandbox.write(f"other_plugin/{name}.py", f"print('other {name}')")
    result = sandbox.run(f"import other_hook\n{SHOW}")
    assert result.stdout.splitlines() == ["other __init__", "other data", "other models", ALL]
    assert (result.returncode, result.stderr) == (0, "")


def test_threads_importing_both_sides(sandbox):
    """Whichever thread comes first, both get through and the classes are registered at the end."""
    sandbox.write(
        "anomalib/data/__init__.py", "import time\ntime.sleep(0.05)\n" + STAND_INS["anomalib/data/__init__.py"]
    )
    result = sandbox.run(
        f"""
        import importlib, threading
        names = ["anomalib.models", "anomalib_inctrl.models", "anomalib.data", "anomalib_inctrl.helper"] * 2
        threads = [threading.Thread(target=importlib.import_module, args=[name]) for name in names]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        {SHOW}
        """
    )
    assert (result.returncode, result.stdout.strip(), result.stderr) == (0, ALL, "")
