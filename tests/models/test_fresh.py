"""Fresh weights: drawn by seed, with heads that look for likeness, copy what they find, and see how far a mark is."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from qvl.layers.decoder import Decoder, DecoderConfig, DecoderLayer
from qvl.layers.rope import cos_sin, rotate, text_angles
from qvl.models import fresh
from qvl.models.qwen2_vl.config import preset
from qvl.models.qwen2_vl.model import Qwen2VL

MARK, PAD = 7, 9


def made(seed: int) -> Qwen2VL:
    tiny = preset("tiny")
    model = Qwen2VL(replace(tiny, vocab_size=256, ids=replace(tiny.ids, vision_start=MARK)))
    model.init_weights(seed)
    return model


@torch.no_grad()
def scores(layer: DecoderLayer, config: DecoderConfig, x_TD: Tensor, positions_RT: Tensor) -> Tensor:
    """Attention scores [N, T, T] of the rows, before the mask."""
    heads = layer.qkv(layer.attn_norm(x_TD)).unflatten(-1, (-1, layer.head_size))
    q, k, _ = heads.split(layer.split, dim=1)
    turn = cos_sin(text_angles(positions_RT, config.head_size, config.rope_theta, config.rope_sections), torch.float32)
    k = rotate(k, *turn).repeat_interleave(config.heads // config.kv_heads, dim=1)
    return torch.einsum("qnh,knh->nqk", rotate(q, *turn), k) * layer.head_size**-0.5


def test_follow_the_seed() -> None:
    a, b, c = made(1), made(1), made(2)
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    assert not torch.equal(a.embed.weight, c.embed.weight)


def test_deviations() -> None:
    model = made(0)
    for name, p in model.named_parameters():
        if p.ndim == 1 and name != "decoder.layers.0.qkv.bias":
            assert (p == (1.0 if name.endswith("norm.weight") else 0.0)).all(), name
        elif p.ndim > 1 and not name.endswith("qkv.weight"):
            expected = p.shape[1] ** -0.5 if name.startswith("visual.") else (3 * p.shape[1]) ** -0.5
            expected = 2 * p.shape[1] ** -0.5 if name.startswith("embed.") else expected
            assert float(p.detach().std()) == pytest.approx(expected, rel=0.1), name


def test_heads_of_likeness_find_and_copy_the_same_word() -> None:
    model = made(0)
    words_D = model.embed.weight.detach()
    tokens = torch.arange(20, 60)
    rows = torch.cat((tokens, tokens[32:33]))  # the last word stands 8 places before, too
    positions = torch.arange(len(rows)).expand(3, -1)
    for layer in model.decoder.layers:
        assert isinstance(layer, DecoderLayer)
        found = scores(layer, model.config.text, words_D[rows], positions)[:, -1, :-1].argmax(-1)
        assert found[0] == found[2] == 32
        group_HD = layer.qkv.weight.detach().split(48)[-2]  # values of the first group
        copied = layer.out.weight.detach()[:, :48] @ group_HD @ words_D[20:60].T
        assert (words_D[20:60] @ copied).argmax(0).tolist() == list(range(40))


@pytest.mark.parametrize("sections", [(24, 0, 0), (4, 0, 20), (4, 20, 0)])
def test_an_axis_may_have_no_frequencies(sections: tuple[int, int, int]) -> None:
    tiny = preset("tiny")
    ids = replace(tiny.ids, vision_start=MARK)
    model = Qwen2VL(replace(tiny, vocab_size=256, ids=ids, text=replace(tiny.text, rope_sections=sections)))
    model.init_weights(0)
    assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("seed", range(3))
def test_heads_of_place_look_less_at_the_mark_the_further_away_it_is(seed: int) -> None:
    model = made(seed)
    words_D = model.embed.weight.detach()
    for axis, head in ((1, 1), (2, 3)):
        positions = torch.zeros(3, 5, dtype=torch.long)
        positions[axis] = torch.arange(5)
        for word in (30, 31):  # whatever stands there
            x_TD = torch.stack((words_D[MARK], *[words_D[word]] * 4))
            layer = model.decoder.layers[0]
            assert isinstance(layer, DecoderLayer)
            to_mark = scores(layer, model.config.text, x_TD, positions)[head, 1:, 0]
            assert (to_mark.diff() < -0.1).all(), (axis, to_mark)
            other = positions.roll(1, 0) if axis == 1 else positions.roll(-1, 0)  # the same along the other axis
            across = scores(layer, model.config.text, x_TD, other)[head, 1:, 0]
            assert (to_mark[0] - to_mark[-1]) > 2 * (across[0] - across[-1]).abs()


def test_heads_of_likeness_prefer_what_is_seen_to_the_word_itself() -> None:
    """A word in a question, eight tokens behind a picture that shows it among eleven other things."""
    model = made(0)
    words_D = model.embed.weight.detach()
    mark_D = words_D[PAD]
    fresh.begin_with_sight(model.decoder, mark_D)
    x_TD = torch.cat((words_D[20:32] + mark_D, words_D[40:48], words_D[25:26]))
    positions = torch.arange(len(x_TD)).expand(3, -1)
    layer = model.decoder.layers[0]
    assert isinstance(layer, DecoderLayer)
    weights = scores(layer, model.config.text, x_TD, positions)[:, -1].softmax(-1)
    for head in (0, 2):
        assert weights[head].argmax() == 5
        assert weights[head, 5] > 2 * weights[head, -1]


def test_every_head_with_its_own_keys() -> None:
    """Qwen-VL: every second head looks for likeness, the others stay as drawn."""
    decoder = Decoder(DecoderConfig(width=64, layers=1, heads=4, kv_heads=4, head_size=16, mlp_hidden=32))
    fresh.fill(decoder, 0)
    before = decoder.layers[0].qkv.weight.detach().clone().split(64)
    fresh.begin_with_likeness(decoder)
    q, k, v = decoder.layers[0].qkv.weight.detach().split(64)
    like = [*range(16), *range(32, 48)]
    rest = [*range(16, 32), *range(48, 64)]
    assert torch.equal(k[like], q[like])
    assert torch.equal(q[like], 1.5 * before[0][like])
    assert torch.equal(q[rest], before[0][rest])
    assert torch.equal(k[rest], before[1][rest])
    assert torch.equal(decoder.layers[0].out.weight.detach()[:, like], v[like].T)
