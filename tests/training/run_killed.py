"""Trains InCTRLv2 and kills itself in the middle of the third epoch, as a scheduler or the lack of memory would.

Arguments: folder of the data, folder of features, folder of results.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback


class Kill(Callback):
    """Ends the process without a chance to tidy up."""

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.current_epoch == 2 and batch_idx == 1:
            os.kill(os.getpid(), signal.SIGKILL)


def main(root: Path, features: Path, results: Path) -> None:
    spec = importlib.util.spec_from_file_location("training_conftest", Path(__file__).with_name("conftest.py"))
    conftest = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(conftest)
    kit = conftest.Kit(root, features)
    kit.fit(kit.build("InCTRLv2"), results, epochs=4, callbacks=[Kill()])


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
