"""Fresh weights: drawn by seed, with heads that look for likeness, copy what they find, and tell places."""

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
    model = Qwen2VL(replace(tiny, vocab_size=256, ids=replace(tiny.ids, vision_start=MARK, image_pad=PAD)))
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
        if name.startswith("decoder.layers.0."):
            continue  # it tells places
        if p.ndim == 1 and not name.endswith("qkv.bias"):
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
    for layer in model.decoder.layers[1:]:  # the first tells places
        assert isinstance(layer, DecoderLayer)
        found = scores(layer, model.config.text, words_D[rows], positions)[:, -1, :-1].argmax(-1)
        assert found[0] == found[2] == 32
        group_HD = layer.qkv.weight.detach().split(48)[-2]  # values of the first group
        copied = layer.out.weight.detach()[:, :48] @ group_HD @ words_D[20:60].T
        assert (words_D[20:60] @ copied).argmax(0).tolist() == list(range(40))


@pytest.mark.parametrize("sections", [(24, 0, 0), (4, 0, 20), (4, 20, 0)])
def test_an_axis_may_have_no_frequencies(sections: tuple[int, int, int]) -> None:
    tiny = preset("tiny")
    ids = replace(tiny.ids, vision_start=MARK, image_pad=PAD)
    model = Qwen2VL(replace(tiny, vocab_size=256, ids=ids, text=replace(tiny.text, rope_sections=sections)))
    model.init_weights(0)
    assert all(p.isfinite().all() for p in model.parameters())


def looks_at_the_start(model: Qwen2VL, before: int) -> tuple[Tensor, Tensor]:
    """How much each head of the first layer looks at the token before a picture of 4 x 5 tokens: from every vision
    token [N, 4, 5], and from the words behind the picture [N, 6]. `before`: words before it."""
    words_D = model.embed.weight.detach()
    seen_D = words_D[torch.arange(20, 40) % 7 + 20] + words_D[PAD]
    x_TD = torch.cat((words_D[50 : 50 + before], words_D[[MARK]], seen_D, words_D[60:66]))
    text = torch.arange(before + 1).expand(3, -1)
    grid = torch.cartesian_prod(torch.zeros(1, dtype=torch.long), torch.arange(4), torch.arange(5)).T + before + 1
    positions = torch.cat((text, grid, torch.arange(6).expand(3, -1) + before + 6), dim=1)
    layer = model.decoder.layers[0]
    assert isinstance(layer, DecoderLayer)
    masked = scores(layer, model.config.text, x_TD, positions)
    later = torch.ones(masked.shape[1:], dtype=torch.bool).triu(1)
    looks = masked.masked_fill(later, -torch.inf).softmax(-1)[:, before + 1 :, before]
    return looks[:, :20].unflatten(1, (4, 5)), looks[:, 20:]


@pytest.mark.parametrize("seed", range(3))
def test_the_first_layer_tells_vision_tokens_their_row_and_column(seed: int) -> None:
    model = made(seed)
    seen_NHW, words_NT = looks_at_the_start(model, before=3)
    for near, far, across in ((0, 2, 2), (1, 3, 1)):
        by_place = seen_NHW.mean(across)
        assert (by_place[near].diff() < 0).all(), by_place[near]
        assert (by_place[far].diff() > -0.01).all(), by_place[far]
        steps = by_place[[near, far]].diff(dim=1).norm(dim=0)
        # two neighbours are told apart by one of the two, of five least the last ones
        assert (steps[:3] > 0.3).all(), steps
        assert (steps > 0.05).all(), steps
    assert words_NT.max() < 0.05


def test_the_first_layer_tells_the_same_place_whatever_is_written_before() -> None:
    model = made(0)
    alone, behind = looks_at_the_start(model, before=0)[0], looks_at_the_start(model, before=30)[0]
    assert (alone - behind).abs().max() < 0.1


def test_the_first_layer_says_nothing_but_places() -> None:
    model = made(0)
    layer = model.decoder.layers[0]
    assert isinstance(layer, DecoderLayer)
    words_D = model.embed.weight.detach()[20:40]
    assert not layer.mlp(layer.mlp_norm(words_D)).any()
    values = layer.qkv(layer.attn_norm(words_D)).split(layer.qkv.parts, dim=1)[2].unflatten(1, (-1, 48))
    said = layer.out(values.repeat_interleave(2, dim=1).flatten(1))
    assert said.norm(dim=1).max() < 0.5 * words_D.norm(dim=1).mean()


def test_heads_of_likeness_prefer_what_is_seen_to_the_word_itself() -> None:
    """A word in a question, eight tokens behind a picture that shows it among eleven other things."""
    model = made(0)
    fresh.fill(model, 0)
    words_D = model.embed.weight.detach()
    mark_D = words_D[PAD]
    fresh.begin_with_likeness(model.decoder)
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
