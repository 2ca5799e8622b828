"""Fresh weights: what a model that starts from random numbers begins with.

Knows: which numbers let a small model learn in minutes what a pretrained one knows. Does not know: checkpoints, parts
taken from other models, training.

A pretrained decoder has heads that look for the same thing elsewhere and copy it, and heads that look by distance. A
random one must find both out before a loss moves at all, so some heads begin near them (an idea of Trockman and
Kolter, 2023, "Mimetic Initialization of Self-Attention Layers"). All remain ordinary weights.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from qvl.layers.decoder import Decoder, DecoderLayer
from qvl.models.qwen2_vl.vit import Merger

_LIKENESS = 1.5
"""Queries and keys of a head of likeness, relative to the others' deviation."""
_TURNING = 5 / 12
"""Share of a head's frequencies, the fastest, that turn far between a question and its picture."""
_LIKENESS_TURNING, _LIKENESS_SLOW = 0.5 / 1.5, 2.6 / 1.5
"""What becomes of likeness at these frequencies and at the others where it looks into pictures."""
_SEEN_SCORE = 4.5
"""Attention score that such a head adds for things seen."""
_PLACE_SCORE = 5.0
"""Attention score of a head of place for the mark itself; it falls as the cosine of the distance."""
_PLACE_FREQUENCIES = 6
"""How many of an axis' frequencies, the fastest, a head of place looks at: the others hardly turn within a picture."""

_TRIED_TOKENS = 256
"""Tokens made of random numbers, to find out how long a merger's output is."""


@torch.no_grad()
def fill(model: nn.Module, seed: int) -> None:
    """Normal for matrices, zero for biases, one for norms; the deviation follows the number of inputs.

    Word vectors 2 / sqrt(D), language model 1 / sqrt(3 inputs), everything that sees 1 / sqrt(inputs). At the released
    widths this is near the published 0.02 (1 / sqrt(3 * 1536) = 0.015, 1 / sqrt(1280) = 0.028); at a tiny model's width
    0.02 is several times too small, and learning to copy or to see takes several times longer.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        if p.ndim >= 2:
            p.normal_(0.0, _deviation(name, p.shape[1]), generator=generator)
        else:
            p.fill_(1.0 if name.endswith("norm.weight") else 0.0)


def _deviation(name: str, inputs: int) -> float:
    if name.startswith("visual."):
        return inputs**-0.5
    return 2 * inputs**-0.5 if name.startswith("embed.") else (3 * inputs) ** -0.5


@torch.no_grad()
def begin_with_likeness(decoder: Decoder) -> None:
    """The first head of each group looks for what it is itself, and copies what it finds.

    Its keys begin as its queries, its output as its values turned back: looking for the thing a question names, and
    saying the name of what was found, need not be found out first. (Where every head has its own keys, every second
    head.)
    """
    for layer in _layers(decoder):
        for n, group in _first_heads(layer):
            _, v_HD = _alike(layer, n, group, _LIKENESS)
            layer.out.weight[:, n * layer.head_size : (n + 1) * layer.head_size] = v_HD.T


@torch.no_grad()
def begin_with_sight(decoder: Decoder, mark_D: Tensor) -> None:
    """Heads of likeness look among the things seen, however far back the picture is.

    A word in a question otherwise finds itself first, and with it nothing new. Where vision tokens tell their place
    (`StageConfig.place`), the word then knows the place of its thing after one layer.

    Args:
        mark_D: what all vision tokens have in common: word vector of the placeholder.
    """
    frequencies = decoder.config.head_size // 2
    slow_H = (torch.arange(frequencies) >= int(_TURNING * frequencies)).repeat(2)  # each turns entries i and i + H / 2
    gain_H1 = torch.where(slow_H, _LIKENESS_SLOW, _LIKENESS_TURNING)[:, None]
    seen_D = mark_D * (2 * mark_D.square().mean()).rsqrt()  # half of a vision token; the other half is what it shows
    for layer in _layers(decoder):
        for n, group in _first_heads(layer):
            k_HD, _ = _alike(layer, n, group, gain_H1)
            query_H = _query_for(k_HD @ seen_D, slow_H, _SEEN_SCORE)
            layer.qkv.bias[n * layer.head_size : (n + 1) * layer.head_size] = query_H


@torch.no_grad()
def begin_with_places(decoder: Decoder, mark_D: Tensor) -> None:
    """In the first layer, the heads beside those of likeness look at the mark before a picture from where they stand,
    in turn by how many rows and by how many columns away they are.

    Rotary positions are relative, so without this nothing in a vision token says where in the picture it is, and "where
    is the dog?" stays unanswerable until such a head has been found by chance.

    Args:
        mark_D: word vector of the token before a picture's first vision token.
    """
    layer = _layers(decoder)[0]
    size, (_, rows, columns) = layer.head_size, decoder.config.rope_sections
    first_row = decoder.config.rope_sections[0]
    starts = ((first_row, rows), (first_row + rows, columns))
    _, k_KHD, _ = layer.qkv.weight.unflatten(0, (-1, size)).split(layer.split)
    mark_D = mark_D / mark_D.square().mean().sqrt()
    for turn, (n, _) in enumerate(_first_heads(layer)):
        start, count = starts[turn % 2]
        if n + 1 == layer.split[0] or not count:  # an axis without frequencies tells no distance
            continue
        key_H = k_KHD[(n + 1) * layer.split[1] // layer.split[0]] @ mark_D
        chosen_F = torch.zeros(size // 2)
        chosen_F[start : start + min(count, _PLACE_FREQUENCIES)] = 1
        layer.qkv.bias[(n + 1) * size : (n + 2) * size] = _query_for(key_H, chosen_F.repeat(2), _PLACE_SCORE)


@torch.no_grad()
def begin_as_long_as_words(merger: Merger, words_VD: Tensor, seed: int) -> None:
    """Scales a new merger's output so that vision tokens are as long as word vectors.

    A pretrained decoder adds to its residual stream in proportion to words. To vision tokens many times as long it
    would add next to nothing, and hardly change them on their way to the answer.
    """
    generator = torch.Generator().manual_seed(seed)
    rows_PE = torch.randn(_TRIED_TOKENS * merger.group, merger.norm.weight.shape[0], generator=generator)
    begun_MD = merger(rows_PE)
    ratio = words_VD.norm(dim=1).mean() / begun_MD.norm(dim=1).mean()
    merger.fc2.weight *= ratio
    merger.fc2.bias *= ratio


def _alike(layer: DecoderLayer, n: int, group: int, gain: float | Tensor) -> tuple[Tensor, Tensor]:
    """Makes the queries of a head `gain` times as long and its group's keys the same; returns these and the values."""
    q_NHD, k_KHD, v_KHD = layer.qkv.weight.unflatten(0, (-1, layer.head_size)).split(layer.split)
    q_NHD[n] *= gain
    k_KHD[group] = q_NHD[n]
    return k_KHD[group], v_KHD[group]


def _query_for(key_H: Tensor, chosen_H: Tensor, score: float) -> Tensor:
    """The query that gives a key this score, looking at the chosen entries only."""
    query_H = key_H * chosen_H
    return query_H * (score * len(key_H) ** 0.5 / (query_H @ key_H))


def _first_heads(layer: DecoderLayer) -> list[tuple[int, int]]:
    """(query head, its key group) of the heads of likeness."""
    heads, groups, _ = layer.split
    return [(n, n * groups // heads) for n in range(0, heads, max(2, heads // groups))]


def _layers(decoder: Decoder) -> list[DecoderLayer]:
    return [cast(DecoderLayer, layer) for layer in decoder.layers]
