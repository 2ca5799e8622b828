"""The oracle: transformers' own Qwen2-VL with random weights, saved by it, for several small configurations."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from parity.handmade import IDS, randomise, small_config
from qvl.checkpoint.folder import load_model
from qvl.models.qwen2_vl.config import Qwen2VLConfig
from qvl.models.qwen2_vl.model import Qwen2VL

transformers = pytest.importorskip("transformers")

CONFIGS: dict[str, Qwen2VLConfig] = {
    "like-7b": small_config(),
    "like-2b": small_config(heads=6, kv_heads=1, width=96, tied=True, sections=(2, 3, 3), vision=(48, 3, 3, 2)),
    "no-sharing": small_config(heads=2, kv_heads=2, layers=3, sections=(4, 6, 6), eps=1e-5),
    "deep-narrow": small_config(width=48, heads=3, kv_heads=3, layers=5, mlp=40, vision=(16, 4, 1, 3), theta=1e4),
    "odd-sections": small_config(width=80, heads=4, kv_heads=4, sections=(5, 1, 4), theta=20.0, tied=True),
    "head-128": small_config(width=256, heads=2, kv_heads=1, layers=1, sections=(16, 24, 24), vision=(80, 1, 1, 4)),
    "real-patch": small_config(width=64, heads=8, kv_heads=4, sections=(1, 2, 1), patch=14, vision=(64, 2, 4, 1)),
}


@dataclass(frozen=True)
class Pair:
    """The same weights twice."""

    name: str
    config: Qwen2VLConfig
    ours: Qwen2VL
    theirs: Any
    folder: Path
    """Written by transformers' `save_pretrained`."""


def oracle_config(c: Qwen2VLConfig) -> Any:
    """Their configuration object, made without this package's json code."""
    t, v = c.text, c.vision
    return transformers.Qwen2VLConfig(
        hidden_size=t.width,
        intermediate_size=t.mlp_hidden,
        num_hidden_layers=t.layers,
        num_attention_heads=t.heads,
        num_key_value_heads=t.kv_heads,
        rms_norm_eps=t.norm_eps,
        rope_theta=t.rope_theta,
        rope_scaling={"type": "mrope", "mrope_section": list(t.rope_sections)},
        vocab_size=c.vocab_size,
        tie_word_embeddings=c.tie_embeddings,
        image_token_id=IDS.image_pad,
        video_token_id=IDS.video_pad,
        vision_start_token_id=IDS.vision_start,
        vision_end_token_id=IDS.vision_end,
        bos_token_id=IDS.bos,
        eos_token_id=IDS.eos,
        vision_config={
            "depth": v.layers,
            "embed_dim": v.width,
            "num_heads": v.heads,
            "mlp_ratio": v.mlp_hidden // v.width,
            "hidden_size": t.width,
            "patch_size": v.patch,
        },
    )


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    made = {}
    for seed, (name, config) in enumerate(CONFIGS.items()):
        theirs = transformers.Qwen2VLForConditionalGeneration(oracle_config(config)).eval()
        randomise(theirs, seed)
        theirs.tie_weights()
        folder = tmp_path_factory.mktemp("theirs") / name
        theirs.save_pretrained(folder)
        made[name] = Pair(name, config, load_model(folder), theirs, folder)
    return made


@pytest.fixture(params=list(CONFIGS))
def pair(request: pytest.FixtureRequest, pairs: dict[str, Pair]) -> Pair:
    return pairs[request.param]


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield
