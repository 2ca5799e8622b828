"""A model without memory has the structure of the real one, and is there at once."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from qvl.models.hollow import hollow
from qvl.models.registry import build_model, presets


def test_structure_is_that_of_the_model() -> None:
    for name in ("tiny", "tiny-qwen-vl"):
        config = presets()[name]
        made, real = hollow(config), build_model(config)
        shapes = [{n: (p.shape, p.dtype, p.requires_grad) for n, p in m.named_parameters()} for m in (made, real)]
        assert shapes[0] == shapes[1]
        assert all(p.is_meta for p in made.parameters())
        assert (made.head.weight is made.embed.weight) == config.tie_embeddings


@pytest.mark.slow
def test_nothing_is_initialised() -> None:
    """torch's `normal_` on the meta device imports its reference operators for it."""
    code = (
        "import sys\n"
        "from qvl.models.hollow import hollow\n"
        "from qvl.models.registry import preset\n"
        "before = set(sys.modules)\n"
        "hollow(preset('qwen2-vl-2b'))\n"
        "print(*sorted(set(sys.modules) - before))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert set(done.stdout.split()) <= {"torch.utils._device"}


def test_afterwards_tensors_are_filled_again() -> None:
    hollow(presets()["tiny"])
    assert torch.nn.init.ones_(torch.zeros(3)).tolist() == [1, 1, 1]
