"""FLOPs counted from sizes are those that torch counts while it computes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from qvl.batch import IGNORE, Batch
from qvl.layers.decoder import DecoderConfig
from qvl.models.lora import LoraConfig, add_lora
from qvl.models.qwen2_vl.config import Qwen2VLConfig, TokenIds, VisionConfig
from qvl.models.qwen_vl import config as v1
from qvl.models.registry import build_model
from qvl.models.vlm import VLMConfig
from qvl.train.config import Part
from qvl.train.flops import FlopCount, StepFlops, measured_peak, step_flops
from qvl.train.loss import token_losses
from qvl.train.optim import freeze

QWEN2_VL = Qwen2VLConfig(
    DecoderConfig(32, 3, 4, 2, 16, 48, rope_theta=20.0, rope_sections=(2, 3, 3)),
    VisionConfig(width=32, layers=2, heads=2, mlp_hidden=80),
    vocab_size=96,
    ids=TokenIds(90, 91, 92, 93, 94, 95),
)
QWEN_VL = v1.QwenVLConfig(
    DecoderConfig(48, 2, 4, 4, 12, 40, rope_theta=20.0),
    v1.VisionConfig(width=32, layers=3, heads=2, mlp_hidden=80, image_px=56, table_side=4),
    v1.AdapterConfig(queries=4, heads=4),
    vocab_size=96,
    tie_embeddings=True,
    ids=v1.TokenIds(image_start=90, bos=95, eos=95),
)
FAMILIES = [pytest.param(QWEN2_VL, id="qwen2_vl"), pytest.param(QWEN_VL, id="qwen_vl")]
EVERYTHING: tuple[Part, ...] = ("vision", "merger", "text")
LENGTH, PICTURES, LABELLED = 24, 3, 7


def packed(config: VLMConfig, pictures: int = PICTURES) -> Batch:
    """Sequences of `LENGTH` tokens with a picture of 4 x 4 patches (4 vision tokens) in each of the first ones."""
    sequences = PICTURES + 1
    rows = [s * LENGTH + 1 + i for s in range(pictures) for i in range(4)]
    total = sequences * LENGTH
    labels_T = torch.full((total,), IGNORE)
    labels_T[torch.arange(LABELLED) * 3 + 6] = 5
    axes = 3 if config.text.rope_axes == 3 else 1
    places = torch.cartesian_prod(torch.arange(4), torch.arange(4)).T
    values = config.vision.patch_values  # type: ignore[attr-defined]
    return Batch(
        tokens_T=torch.arange(total) % 50,
        positions_RT=torch.arange(LENGTH).repeat(sequences).expand(axes, -1),
        seq_lens=(LENGTH,) * sequences,
        patches_PC=torch.randn(16 * pictures, values),
        patch_hw_2P=places.repeat(1, pictures),
        segment_lens=(16,) * pictures,
        grids=((1, 4, 4),) * pictures,
        vision_rows_M=torch.tensor(rows, dtype=torch.long),
        labels_T=labels_T,
    )


def as_computed(found: StepFlops) -> int:
    """torch multiplies whole squares where causal attention means the triangle with its diagonal."""
    squares = found.text_attention * 2 * LENGTH
    assert squares % (LENGTH + 1) == 0
    return found.total - found.text_attention + squares // (LENGTH + 1)


def counted(model: torch.nn.Module, batch: Batch, backward: bool = True) -> int:
    with FlopCounterMode(display=False) as counter:
        loss = token_losses(model, batch)[0].sum()
        if backward:
            loss.backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("config", FAMILIES)
@pytest.mark.parametrize(
    "trains", [EVERYTHING, ("text",), ("merger",), ("vision",), ("merger", "text"), ("vision", "merger")]
)
def test_a_step_is_what_torch_counts(config: VLMConfig, trains: tuple[Part, ...]) -> None:
    model, batch = build_model(config), packed(config)
    model.init_weights(0)
    freeze(model, trains)
    found = step_flops(config, batch.seq_lens, batch.segment_lens, LABELLED, trains)
    assert as_computed(found) == counted(model, batch)
    assert min(vars(found).values()) > 0, "every part has its share"


@pytest.mark.parametrize("config", FAMILIES)
def test_forward_alone(config: VLMConfig) -> None:
    model, batch = build_model(config), packed(config)
    model.init_weights(0)
    with torch.no_grad():
        found = step_flops(config, batch.seq_lens, batch.segment_lens, LABELLED, ())
        assert as_computed(found) == counted(model, batch, backward=False)
    whole = step_flops(config, batch.seq_lens, batch.segment_lens, LABELLED, EVERYTHING)
    # A third of the whole, but for the patches: nobody asks for their gradient.
    patch_embed = 2 * 16 * PICTURES * config.vision.width * config.vision.patch_values  # type: ignore[attr-defined]
    assert whole.total == 3 * found.total - patch_embed


@pytest.mark.parametrize("config", FAMILIES)
def test_adapters_are_counted(config: VLMConfig) -> None:
    batch = packed(config)
    for parts in (("text",), ("vision", "merger", "text")):
        model = build_model(config)
        model.init_weights(0)
        add_lora(model, LoraConfig(rank=3, parts=parts))
        freeze(model, EVERYTHING)
        found = FlopCount(model).of(batch.seq_lens, batch.segment_lens, LABELLED)
        assert as_computed(found) == counted(model, batch)


def test_frozen_layers_pass_gradients_only_where_somebody_before_learns() -> None:
    model, batch = build_model(QWEN2_VL), packed(QWEN2_VL, pictures=0)
    model.init_weights(0)
    frozen = ("embed.*", "decoder.layers.[01].*")
    freeze(model, ("text",), frozen)
    found = step_flops(QWEN2_VL, batch.seq_lens, (), LABELLED, ("text",), frozen=frozen)
    assert as_computed(found) == counted(model, batch)
    assert found.vision == found.vision_attention == found.merger == 0


def test_a_branch_attends_to_its_parent_too() -> None:
    apart = step_flops(QWEN2_VL, (10, 4), (), 0, ())
    branch = step_flops(QWEN2_VL, (10, 4), (), 0, (), parents=(-1, 0))
    assert apart.text == branch.text
    per_pair = 4 * 3 * 4 * 16  # layers, heads, head size
    assert apart.text_attention == per_pair * (55 + 10)
    assert branch.text_attention == per_pair * (55 + 10 + 40)


def test_passes_add_up() -> None:
    count = FlopCount(build_model(QWEN_VL))
    both = count.of((5, 9), (16, 16), 3) + count.of((7,), (), 2)
    assert both == replace(both, text=count.of((5, 9, 7), (), 0).text)
    assert both.total == sum(vars(both).values())


def test_the_peak_is_a_speed() -> None:
    """A product of 1024 x 1024 takes between a microsecond and a minute on anything that runs this test."""
    assert 2 * 1024**3 / 60 < measured_peak(torch.device("cpu"), torch.float32) < 2 * 1024**3 / 1e-6
