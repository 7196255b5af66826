"""Fixtures shared by the tests. Nothing here needs a network: the backbone is the small one that is embedded.

What tests the formulae takes it untrained, whose weights come from a seed: no new file of weights can then fail them.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import TYPE_CHECKING

import pytest
import torch

from anomalib_inctrl.clip import EMBEDDED_TRUNK, ClipBackbone
from anomalib_inctrl.models.inctrl.torch_model import InCTRLModel
from anomalib_inctrl.models.inctrl_v2.torch_model import InCTRLv2Model
from anomalib_inctrl.runtime.graphs import openvino_core

if TYPE_CHECKING:
    from collections.abc import Iterator

# The models are tiny: threads cost more than they save, above all beside other tests. Processes inherit the variable.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def _one_openvino_core() -> Iterator[None]:
    """Give anomalib's inferencers and the tests the one core there is: several that come and go kill the process."""
    with pytest.MonkeyPatch.context() as patch:
        if find_spec("openvino"):
            core = openvino_core()
            patch.setattr("openvino.Core", lambda: core)
        yield


@pytest.fixture(scope="session")
def tiny_backbone() -> ClipBackbone:
    """A small architecture, untrained: whatever is embedded, what is tested on it stays."""
    return ClipBackbone(EMBEDDED_TRUNK)


@pytest.fixture(scope="session")
def embedded_backbone() -> ClipBackbone:
    """The embedded backbone with the weights users have."""
    return ClipBackbone("inctrl-tiny")


def randomise_heads(model: torch.nn.Module) -> None:
    """Draw weights and non-trivial batch norm statistics for everything but the backbone."""
    for name, parameter in model.named_parameters():
        if not name.startswith("backbone."):
            torch.nn.init.normal_(parameter, std=0.2)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            module.running_mean.normal_(std=0.3)
            module.running_var.uniform_(0.5, 2.0)


@pytest.fixture(
    params=[(InCTRLModel, "none", 0.0), (InCTRLv2Model, "none", 0.0), (InCTRLv2Model, "shifted", 0.5)],
    ids=["InCTRL", "InCTRLv2", "InCTRLv2, shifted and smoothed"],
)
def model(request: pytest.FixtureRequest, tiny_backbone: ClipBackbone) -> InCTRLModel | InCTRLv2Model:
    """Each model in the full formula, in evaluation mode."""
    kind, views, smoothing = request.param
    model = kind(tiny_backbone, branches=kind.BRANCHES, reference_views=views, residual_smoothing=smoothing)
    randomise_heads(model)
    return model.eval()
