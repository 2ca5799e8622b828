from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from qvl.batch import IGNORE
from qvl.data.packing import PackLimits, packs
from qvl.layers.attention import PackedContext
from qvl.models.qwen2_vl.model import Qwen2VL
from qvl.train.build import WorldSource
from qvl.train.loss import token_losses
from qvl.train.objectives import objective_of


@pytest.fixture
def told_pack(processor, world):
    source = WorldSource(replace(world.config, medium="words", tasks={"what": 1, "where": 1}))
    return next(packs(source, processor, PackLimits(300, 100), "raw"))


def test_told_pictures_are_read_as_vision_tokens(model: Qwen2VL, told_pack) -> None:
    batch = told_pack.batch
    model.eval()  # without noise
    assert batch.patches_PC.shape[0] == 0
    assert batch.vision_rows_M.shape[0] > 8
    losses = objective_of("told").losses(model, batch)
    words_MD = model.embed.weight[batch.tokens_T[batch.vision_rows_M]]
    pad_M = torch.full_like(batch.vision_rows_M, model.config.ids.image_pad)
    x_TD = model.embed(batch.tokens_T).index_copy(0, batch.vision_rows_M, words_MD + model.embed(pad_M))
    hidden_TD = model.decoder(x_TD, batch.positions_RT, PackedContext(batch))
    kept = batch.labels_T != IGNORE
    expected = F.cross_entropy(model.head(hidden_TD[kept]), batch.labels_T[kept], reduction="none")
    assert torch.allclose(losses, expected, atol=1e-5)  # worst 1e-6
    assert objective_of("told").count(batch) == len(losses) == told_pack.task_X.shape[0]


def test_told_pictures_leave_the_vision_tower_alone(model: Qwen2VL, told_pack) -> None:
    objective_of("told").losses(model, told_pack.batch).sum().backward()
    assert all(p.grad is None for p in model.visual.parameters())
    assert model.embed.weight.grad[model.config.ids.image_pad].abs().sum() > 0


def test_told_pictures_need_their_objective(model: Qwen2VL, told_pack) -> None:
    with pytest.raises(ValueError, match="0 vision tokens"):
        objective_of("next_token").losses(model, told_pack.batch)


def test_the_told_objective_refuses_pictures(model: Qwen2VL, processor, world) -> None:
    pack = next(packs(WorldSource(replace(world.config, tasks={"what": 1})), processor, PackLimits(300, 400), "raw"))
    with pytest.raises(ValueError, match="real ones"):
        objective_of("told").losses(model, pack.batch)


@pytest.fixture
def both_pack(processor, world):
    source = WorldSource(replace(world.config, medium="both", tasks={"background": 1}, turns=1))
    return next(packs(source, processor, PackLimits(300, 400), "raw"))


def test_match_compares_each_vision_token_with_the_word_in_its_place(model: Qwen2VL, both_pack) -> None:
    batch = both_pack.batch
    words_M = batch.tokens_T[batch.vision_rows_M]
    words_M = words_M[words_M != model.config.ids.image_pad]
    choice = words_M.unique()
    losses = objective_of("match").losses(model, batch)
    assert objective_of("match").count(batch) == len(losses) == len(words_M) == len(batch.vision_rows_M) // 2
    losses.sum().backward()
    assert model.embed.weight.grad is None
    with torch.no_grad():
        middle_D = model.embed.weight[choice].mean(dim=0)
        seen_MD = model.see(batch, PackedContext(batch)) - model.embed.weight[model.config.ids.image_pad] - middle_D
        words_AD = model.embed.weight[choice] - middle_D
        cosines = F.cosine_similarity(seen_MD[:, None], words_AD, dim=-1)
        wrong = F.cross_entropy(8 * cosines, torch.searchsorted(choice, words_M), reduction="none")
        too_long = (seen_MD.norm(dim=-1) / words_AD.norm(dim=-1).mean()).log().square()
    assert torch.allclose(losses.detach(), wrong + 0.1 * too_long, atol=1e-5)  # worst 1e-6


def test_match_knows_a_tower_that_says_the_words(model: Qwen2VL, both_pack, monkeypatch) -> None:
    batch = both_pack.batch
    words_M = batch.tokens_T[batch.vision_rows_M]
    words_MD = model.embed.weight[words_M[words_M != model.config.ids.image_pad]]
    mark_D = model.embed.weight[model.config.ids.image_pad]
    monkeypatch.setattr(type(model), "see", lambda self, batch, attn: words_MD + mark_D)
    right = objective_of("match").losses(model, batch)
    monkeypatch.setattr(type(model), "see", lambda self, batch, attn: words_MD.roll(1, 0) + mark_D)
    assert 5 * right.mean() < objective_of("match").losses(model, batch).mean()


def test_match_knows_words_that_lie_to_one_side(model: Qwen2VL, both_pack, monkeypatch) -> None:
    """As a pretrained language model's do: from the origin all of them would be alike."""
    batch = both_pack.batch
    with torch.no_grad():
        width = model.embed.weight.shape[1]
        model.embed.weight += 2 * model.embed.weight.norm(dim=1).mean() / width**0.5
    words_M = batch.tokens_T[batch.vision_rows_M]
    words_MD = model.embed.weight[words_M[words_M != model.config.ids.image_pad]]
    mark_D = model.embed.weight[model.config.ids.image_pad]
    monkeypatch.setattr(type(model), "see", lambda self, batch, attn: words_MD + mark_D)
    assert objective_of("match").losses(model, batch).mean() < 0.2


def test_match_with_one_word_in_the_whole_pack(model: Qwen2VL, both_pack) -> None:
    """Nothing to choose from, and no middle to look from: only the length is left, and it is a number."""
    tokens_T = both_pack.batch.tokens_T.clone()
    rows_M = both_pack.batch.vision_rows_M
    told_M = rows_M[tokens_T[rows_M] != model.config.ids.image_pad]
    tokens_T[told_M] = tokens_T[told_M[0]].clone()
    losses = objective_of("match").losses(model, replace(both_pack.batch, tokens_T=tokens_T))
    assert losses.isfinite().all()
    losses.sum().backward()
    assert all(p.grad.isfinite().all() for p in model.visual.parameters() if p.grad is not None)


def place_vectors_naive(model: Qwen2VL, pictures: list[tuple[int, int]]) -> torch.Tensor:
    """Sines and cosines of column and row, one token after the other; 0.6 of a word's length."""
    width = model.config.text.width
    omega = [20.0 ** (-i / (width // 4)) for i in range(width // 4)]
    rows = []
    for height, wide in pictures:
        for r in range(height):
            for c in range(wide):
                angles = [[x * o for o in omega] for x in (r, c)]
                rows.append([f(a) for f in (math.sin, math.cos) for axis in angles for a in axis])
    vectors_MD = F.normalize(torch.tensor(rows), dim=1)
    assert model.config.vocab_size == 960
    return 0.6 * model.embed.weight[::4].detach().norm(dim=1).mean() * vectors_MD


def test_told_words_tell_their_places(model: Qwen2VL, told_pack) -> None:
    """All told pictures of the pack are 4 x 6 or 6 x 4 patches: 2 x 3 or 3 x 2 words."""
    model.eval()
    batch = told_pack.batch
    rows_M = batch.vision_rows_M.tolist()
    starts = [i for i, row in enumerate(rows_M) if i == 0 or row != rows_M[i - 1] + 1]
    row_T = batch.positions_RT[1]
    heights = [3 if row_T[rows_M[i + 2]] > row_T[rows_M[i]] else 2 for i in starts]
    assert set(heights) == {2, 3}
    vectors_MD = place_vectors_naive(model, [(h, 6 // h) for h in heights])
    told_MD = model.embed(batch.tokens_T[batch.vision_rows_M]) + model.embed.weight[model.config.ids.image_pad]
    expected, _ = token_losses(model, batch, told_MD + vectors_MD)
    assert torch.allclose(objective_of("told", 0.6).losses(model, batch), expected, atol=1e-5)
    plain = objective_of("told").losses(model, batch)
    assert not torch.allclose(plain, expected, atol=1e-2)


def test_places_need_rows_and_columns(model: Qwen2VL, told_pack) -> None:
    batch = replace(told_pack.batch, positions_RT=told_pack.batch.positions_RT[:1])
    with pytest.raises(ValueError, match="leave `place` out"):
        objective_of("told", 0.6).losses(model, batch)


def test_match_knows_a_tower_that_says_the_places_too(model: Qwen2VL, both_pack, monkeypatch) -> None:
    batch = both_pack.batch
    words_M = batch.tokens_T[batch.vision_rows_M]
    words_MD = model.embed.weight[words_M[words_M != model.config.ids.image_pad]]
    shown = [(h // 2, w // 2) for _, h, w in batch.grids]
    places_MD = place_vectors_naive(model, shown)
    said_MD = words_MD + model.embed.weight[model.config.ids.image_pad]

    def losses(seen_MD: torch.Tensor) -> torch.Tensor:
        monkeypatch.setattr(type(model), "see", lambda self, batch, attn: seen_MD)
        return objective_of("match", 0.6).losses(model, batch)

    right = losses(said_MD + places_MD)
    assert 1.5 * right.mean() < losses(said_MD).mean()
    assert 1.5 * right.mean() < losses(said_MD + places_MD.flip(0)).mean()


def test_match_needs_the_picture_and_its_telling(model: Qwen2VL, processor, world, told_pack) -> None:
    shown = next(packs(WorldSource(replace(world.config, tasks={"what": 1})), processor, PackLimits(300, 400), "raw"))
    for pack in (shown, told_pack):
        with pytest.raises(ValueError, match="medium: both"):
            objective_of("match").losses(model, pack.batch)
