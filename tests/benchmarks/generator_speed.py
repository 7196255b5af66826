"""Pictures a second that the generator draws, in as many processes as there are cores.

Not a test: run ``python tests/benchmarks/generator_speed.py``.
"""

import argparse
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor

from anomalib_inctrl.pretraining.groups import GroupDataset


def draw(seed: int, batches: int) -> int:
    """Draw batches as the pre-training does, and count their pictures."""
    data = GroupDataset(batches, seed=seed)
    return sum(data[step].images.flatten(0, 1).shape[0] for step in range(batches))


def main() -> None:
    """Print the rate."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", type=int, default=10)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    cores = os.cpu_count() or 1
    with ProcessPoolExecutor(cores) as pool:
        list(pool.map(draw, range(cores), [1] * cores))  # imports and first use
        start = time.perf_counter()
        count = sum(pool.map(draw, range(cores), [options.batches] * cores))
    sys.stdout.write(f"{count} pictures on {cores} cores: {count / (time.perf_counter() - start):.0f} a second\n")


if __name__ == "__main__":
    main()
