"""Who is updated by what, how fast."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from qvl.models.lora import LoraConfig, add_lora, is_adapter
from qvl.models.registry import build_model, preset
from qvl.train.clock import StageClock
from qvl.train.config import OptimConfig
from qvl.train.optim import BatchedMuon, Optimizers, freeze, orthogonalise, part_of, rate


def test_muon_follows_the_library() -> None:
    """Against `torch.optim.Muon`, which iterates in bfloat16: 0.6 % worst difference of the weights' movement."""
    torch.manual_seed(0)
    shapes = [(24, 16), (16, 24), (16, 16), (24, 16)]
    mine = [nn.Parameter(torch.randn(s)) for s in shapes]
    theirs = [nn.Parameter(p.detach().clone()) for p in mine]
    start = [p.detach().clone() for p in mine]
    options = {"lr": 0.01, "weight_decay": 0.1, "adjust_lr_fn": "match_rms_adamw"}
    ours, library = BatchedMuon(mine, {}, **options), torch.optim.Muon(theirs, **options)
    for _ in range(4):
        for a, b in zip(mine, theirs, strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        ours.step()
        library.step()
    for a, b, s in zip(mine, theirs, start, strict=True):
        assert (a - b).abs().max() <= 0.02 * (b - s).abs().max()


def test_orthogonalise_brings_singular_values_near_one() -> None:
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalise(torch.randn(3, 32, 64), steps=5))
    assert values.min() > 0.4
    assert values.max() < 1.4


def test_rate_warms_up_and_follows_a_cosine() -> None:
    config = OptimConfig(warmup=0.1, min_lr_ratio=0.1)
    assert rate(0.05, config) == pytest.approx(0.5)
    assert rate(0.1, config) == pytest.approx(1.0)
    assert rate(0.55, config) == pytest.approx(0.55)
    assert rate(1.0, config) == pytest.approx(0.1)


def test_matrices_go_to_muon_and_norms_do_not_decay(model) -> None:
    optimizers = Optimizers(model, ("vision", "merger", "text"), OptimConfig(name="muon", weight_decay=0.1))
    muon, adamw = optimizers.all
    names = {id(p): n for n, p in model.named_parameters()}
    in_muon = {names[id(p)] for g in muon.param_groups for p in g["params"]}
    assert "embed.weight" not in in_muon
    assert "decoder.layers.0.qkv.weight" in in_muon
    assert "visual.patch_embed.weight" in in_muon
    for group in adamw.param_groups:
        for p in group["params"]:
            assert (group["weight_decay"] > 0) == (p.ndim >= 2)
    counted = [id(p) for o in optimizers.all for g in o.param_groups for p in g["params"]]
    assert sorted(counted) == sorted(set(names))


def test_parts_and_vision_layers_have_their_own_rates(model) -> None:
    config = OptimConfig(lr=1.0, vision_lr=0.5, merger_lr=2.0, text_lr=0.1, vision_layer_decay=0.9)
    (adamw,) = Optimizers(model, ("vision", "merger", "text"), config).all
    names = {id(p): n for n, p in model.named_parameters()}
    peak = {names[id(p)]: g["peak"] for g in adamw.param_groups for p in g["params"]}
    assert peak["visual.blocks.1.fc1.weight"] == pytest.approx(0.5 * 0.9)
    assert peak["visual.blocks.0.fc1.weight"] == pytest.approx(0.5 * 0.9**2)
    assert peak["visual.patch_embed.weight"] == pytest.approx(0.5 * 0.9**3)
    assert peak["visual.merger.fc1.weight"] == pytest.approx(2.0)
    assert peak["decoder.norm.weight"] == pytest.approx(0.1)


def test_clipping_bounds_the_update(model) -> None:
    optimizers = Optimizers(model, ("text",), OptimConfig(clip=1.0))
    trained = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    assert trained
    for _, p in trained:
        p.grad = torch.full_like(p, 10.0)
    assert optimizers.clip() > 1.0
    assert sum(float(p.grad.square().sum()) for _, p in trained) == pytest.approx(1.0, rel=1e-3)
    optimizers.step(0.5)
    assert all(p.grad is None for _, p in trained)


def test_projections_of_a_fused_matrix_are_orthogonalised_apart() -> None:
    """Queries with a gradient a thousand times smaller than the values' move as far as these."""
    torch.manual_seed(0)
    p = nn.Parameter(torch.zeros(48, 16))
    p.grad = torch.randn(48, 16) * torch.tensor([1e-3] * 32 + [1.0] * 16)[:, None]
    BatchedMuon([p], {p: (16, 16, 16)}, lr=0.01, weight_decay=0.0, adjust_lr_fn="match_rms_adamw").step()
    queries, keys, values = (part.norm() for part in p.detach().split(16))
    assert queries > 0.8 * values
    assert keys > 0.8 * values


def test_tables_of_qwen_vl_are_not_for_muon() -> None:
    model = build_model(preset("tiny-qwen-vl"))
    optimizers = Optimizers(model, ("vision", "merger", "text"), OptimConfig(name="muon"))
    names = {p: n for n, p in model.named_parameters()}
    muon = {names[p] for group in optimizers.all[0].param_groups for p in group["params"]}
    tables = {"visual.position_embed", "visual.adapter.query", "embed.weight"}
    assert tables <= set(names.values())
    assert not tables & muon
    assert any(n.startswith("visual.adapter.") for n in muon)


def test_names_can_be_frozen_and_adapters_learn_alone() -> None:
    with torch.device("meta"):
        model = build_model(preset("tiny"))
    learning = {name for name, _ in freeze(model, ("text", "merger"), ("embed.*", "decoder.layers.[01].*"))}
    assert {part_of(name) for name in learning} == {"text", "merger"}
    assert not any(name.startswith(("embed.", "decoder.layers.0.", "decoder.layers.1.")) for name in learning)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == learning
    with pytest.raises(ValueError, match=r"no parameter is called 'head\.\*'; names are such as"):
        freeze(model, ("text",), ("head.*",))
    with pytest.raises(ValueError, match="nothing learns: trains=merger, frozen=visual"):
        freeze(model, ("merger",), ("visual.*",))
    add_lora(model, LoraConfig(rank=2))
    assert all(is_adapter(name) for name, _ in freeze(model, ("text", "merger")))
    assert len(freeze(model, ("text",), ("decoder.layers.0.*",))) == 3 * 7 * 2
    with pytest.raises(ValueError, match=r"nothing learns: trains=vision \(lora adapts text\)"):
        freeze(model, ("vision",))


def test_a_stage_counted_in_samples() -> None:
    clock = StageClock(0, 0.0, samples=40)
    assert (clock.progress, clock.seconds_left) == (0.0, 0.0)
    clock.agree(clock.elapsed, 10)
    assert clock.progress == 0.25
    assert clock.seconds_left == pytest.approx(3 * clock.elapsed, rel=0.5)
    clock.resume(step=3, elapsed=5.0, taken=44)
    assert (clock.progress, clock.step) == (1.0, 3)
    with pytest.raises(ValueError, match="needs steps, epochs or time"):
        StageClock(0, 0.0)
