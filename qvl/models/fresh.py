"""Fresh weights: what a model that starts from random numbers begins with.

Knows: which numbers let a small model learn in minutes what a pretrained one knows. Does not know: checkpoints, parts
taken from other models, training.

A pretrained decoder has heads that look for the same thing elsewhere and copy it, and heads that look by distance. A
random one must find both out before a loss moves at all, so some heads begin near them (an idea of Trockman and
Kolter, 2023, "Mimetic Initialization of Self-Attention Layers"). All remain ordinary weights.
"""

from __future__ import annotations

from itertools import chain
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
_PLACE_SCORE = 6.0
"""Most that a head of place gives the token before a picture; it falls as the cosine of the distance."""
_PLACE_PEAKS = (0.0, 5.0)
"""Distances, in vision tokens, at which the near heads of place and the far ones give that most."""
_PLACE_FREQUENCIES = 2
"""How many of an axis' frequencies, the fastest, a head of place looks at: the others hardly turn within a picture."""
_APART_SCORE = 6.0
"""By how much such a head prefers what is seen from a vision token, and words from a word: else what stands before a
picture would move its places, and words would have places too."""
_PLACE_LENGTH = 2.0
"""Length of what such a head adds; a fresh word vector has 2."""

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
def begin_with_places(decoder: Decoder, start_D: Tensor, mark_D: Tensor) -> None:
    """The first layer tells vision tokens where they are, and says nothing else.

    Rotary positions are relative: nothing in a vision token says where in the picture it is, and "where is the dog?"
    stays unanswerable until some head finds by chance that the token before the picture is so and so far away. Here
    every head of the first layer looks at that token: in turn by rows and by columns, one pair of heads the more the
    nearer it is, the next pair the farther, each adding a direction of its own. What else the layer might say begins
    at zero: heads of likeness behind it compare words, and are found sooner while nothing is added to those. (A recipe
    may freeze the layer for that.)

    Args:
        start_D: word vector of the token before a picture's first vision token.
        mark_D: what all vision tokens have in common: word vector of the placeholder.
    """
    layer = _layers(decoder)[0]
    size, width = layer.head_size, decoder.config.width
    q_NHD, k_KHD, v_KHD = layer.qkv.weight.unflatten(0, (-1, size)).split(layer.split)
    q_bias_NH, k_bias_KH, _ = layer.qkv.bias.unflatten(0, (-1, size)).split(layer.split)
    start_D, mark_D = _only(start_D, mark_D), _only(mark_D, start_D)
    speed_F = decoder.config.rope_theta ** -torch.linspace(0, 1, size // 2 + 1)[:-1]
    *axes, still, start = _place_frequencies(decoder.config.rope_sections)
    if not all(axes):
        return  # too few frequencies for rows or columns
    for f in chain(*axes, still, start):
        k_KHD[:, f], k_KHD[:, f + size // 2] = start_D, 0
    k_KHD[:, still] += 2**0.5 * mark_D  # a vision token is half mark, half what it shows
    k_bias_KH[:, still] = -1
    v_KHD[:, 0] = start_D
    layer.out.weight.zero_()
    layer.mlp.down.weight.zero_()
    q_NHD.zero_()
    q_bias_NH.zero_()
    q_NHD[:, still] = 3 * _APART_SCORE * size**0.5 * 2**0.5 * mark_D
    fastest = max(float(speed_F[frequencies].square().mean()) for frequencies in axes)
    for n, direction_D in enumerate(_directions(layer.split[0], width)):
        frequencies = axes[n % 2]
        mirrored = [f + size // 2 for f in frequencies]  # each turns entries f and f + H / 2
        turns_F = speed_F[frequencies] * _PLACE_PEAKS[n // 2 % 2]
        # A cosine falls by the square of its frequency: at the slower axis it is looked as much more sharply, and the
        # peak is as high.
        sharper = fastest / float(speed_F[frequencies].square().mean())
        share = sharper * _PLACE_SCORE * size**0.5 / len(frequencies)
        q_bias_NH[n, frequencies], q_bias_NH[n, mirrored] = share * turns_F.cos(), -share * turns_F.sin()
        q_bias_NH[n, start] = (1 - sharper) * _PLACE_SCORE * size**0.5
        q_bias_NH[n, still] = -2 * _APART_SCORE * size**0.5
        layer.out.weight[:, n * size] = _PLACE_LENGTH * direction_D


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


def _only(word_D: Tensor, other_D: Tensor) -> Tensor:
    """What answers 1 to a normalised word vector and 0 to another one."""
    apart_D = word_D - other_D * (word_D @ other_D) / (other_D @ other_D)
    return apart_D * (word_D.norm() / (len(word_D) ** 0.5 * (apart_D @ word_D)))


def _place_frequencies(sections: tuple[int, ...]) -> tuple[list[int], list[int], list[int], list[int]]:
    """Numbers of the fastest frequencies of rows, of columns, of the one that turns least and of the one before it."""
    time, rows, columns = sections
    of_rows = range(time, time + min(rows, _PLACE_FREQUENCIES))
    of_columns = range(time + rows, time + rows + min(columns - 2, _PLACE_FREQUENCIES))
    return list(of_rows), list(of_columns), [sum(sections) - 1], [sum(sections) - 2]


def _directions(count: int, width: int) -> Tensor:
    """[count, width] of length 1, the same for every seed."""
    return nn.functional.normalize(torch.randn(count, width, generator=torch.Generator().manual_seed(count)), dim=1)


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
