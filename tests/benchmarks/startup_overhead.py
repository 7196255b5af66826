"""What the start-up hook costs: ``python -c pass`` and ``anomalib -h`` with and without it, measured side by side.

Run by hand from a clone, in an environment with the test dependencies::

    python tests/benchmarks/startup_overhead.py --starts 100 --helps 5

Two throw-away virtual environments see the dependencies of the running interpreter; one of them also has the plugin's
wheel. The runs alternate (with, without, without, with ...), so that a machine that slows down meets both alike; the
first pair of each command only warms the caches up. ``anomalib -h`` includes the import of the plugin itself.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path
from statistics import median
from zipfile import ZipFile

PROJECT = Path(__file__).resolve().parents[2]
COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "anomalib -h": ["-c", "import sys; sys.argv[0] = 'anomalib'; from anomalib.cli.cli import main; main()", "-h"],
}


def make_environment(path: Path, wheel: Path | None) -> Path:
    """Create a virtual environment, unpack the wheel into it, if there is one, and return its interpreter."""
    venv.create(path, with_pip=False, symlinks=os.name != "nt")
    site_packages = next(path.glob("[Ll]ib/**/site-packages"))
    # A path line adds the directory without reading the .pth files in it: a hook installed there stays out of this.
    dependencies = [p for p in sys.path if Path(p).name in {"site-packages", "dist-packages"}]
    (site_packages / "zz_dependencies.pth").write_text("\n".join(dependencies) + "\n")
    if wheel is not None:
        with ZipFile(wheel) as archive:
            archive.extractall(site_packages)
    return path / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def build_wheel(directory: Path) -> Path:
    """Build the plugin's wheel from this clone."""
    options = ["--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", str(directory)]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(PROJECT)], check=True)
    return next(directory.glob("*.whl"))


def seconds(python: Path, arguments: list[str], directory: Path) -> float:
    """Wall time of one process."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "ANOMALIB_INCTRL_"))}
    start = time.perf_counter()
    subprocess.run([str(python), *arguments], cwd=directory, env=environ, check=True, capture_output=True)
    return time.perf_counter() - start


def measure(
    arguments: list[str], pythons: tuple[Path, Path], pairs: int, directory: Path
) -> tuple[list[float], list[float]]:
    """Wall times with and without the hook, run in turns after one pair that is not counted."""
    times: tuple[list[float], list[float]] = ([], [])
    for pair in range(pairs + 1):
        for which in (0, 1) if pair % 2 == 0 else (1, 0):
            times[which].append(seconds(pythons[which], arguments, directory))
    return times[0][1:], times[1][1:]


def main() -> None:
    """Measure and print medians, their ratio, and the middle half of the values."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--starts", type=int, default=100, help="pairs of `python -c pass`, 0 to skip (default 100)")
    parser.add_argument("--helps", type=int, default=5, help="pairs of `anomalib -h`, 0 to skip (default 5)")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        wheel = build_wheel(directory)
        pythons = make_environment(directory / "with", wheel), make_environment(directory / "without", None)
        for command, pairs in zip(COMMANDS, (options.starts, options.helps), strict=True):
            if pairs < 1:
                continue
            results = measure(COMMANDS[command], pythons, pairs, directory)
            for label, times in zip(("with", "without"), results, strict=True):
                low, high = sorted(times)[len(times) // 4], sorted(times)[-1 - len(times) // 4]
                sys.stdout.write(
                    f"{command:15} {label:8} n={pairs:<4} median {1000 * median(times):9.1f} ms"
                    f"   middle half {1000 * low:.1f} to {1000 * high:.1f} ms\n"
                )
            ratio = median(results[0]) / median(results[1])
            difference = 1000 * (median(results[0]) - median(results[1]))
            sys.stdout.write(f"{command:15} ratio {ratio:.3f}, difference {difference:+.1f} ms\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
