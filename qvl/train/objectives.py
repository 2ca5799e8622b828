"""What a stage minimises: the next token, or (before there is anything to read with) the match of picture and words.

Knows: losses per item, summed, so that any split of a step into packs adds up the same.
Does not know: the divisor (the step's global item count: the trainer's), optimizers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

from qvl.batch import Batch
from qvl.data.packing import Pack
from qvl.layers.attention import PackedContext
from qvl.layers.places import place_vectors
from qvl.models.vlm import VisionLanguageModel
from qvl.train.loss import token_losses

_SCALE = 8.0
"""Inverse temperature of the cosine between a vision token and a word: so low that only a cosine near 1 among a hundred
words is cheap. (At 20 a cosine of 0.5 is enough to win, and a language model that knows only words does not find them
again.)"""
_TOLD_NOISE = 0.25
"""Length of the noise on a told word, relative to the word's."""
_MEASURED_WORDS = 256
"""Words, spread over the vocabulary, that say how long a word vector is."""
_LENGTH_WEIGHT = 0.1
"""Weight of the vision tokens' length beside the match."""


class Objective(ABC):
    divisible = True
    """Items do not need each other: a pack may be cut in two without changing the sum of losses."""
    reads = True
    """The language model reads the pack."""

    @abstractmethod
    def count(self, batch: Batch) -> int:
        """Items the batch is scored on."""

    @abstractmethod
    def losses(self, model: VisionLanguageModel, batch: Batch) -> Tensor:
        """float32 [X], one loss per item."""

    @abstractmethod
    def by_task(self, losses_X: Tensor, pack: Pack, tasks: tuple[str, ...]) -> dict[str, tuple[float, int]]:
        """(sum of losses, items) per task, for the log."""

    def task_names(self, tasks: tuple[str, ...]) -> tuple[str, ...]:
        """Every name that `by_task` can give."""
        return tasks


@final
class NextToken(Objective):
    """Cross-entropy of the supervised tokens: every published stage.

    Args:
        told: pictures are `WordPicture`s, whose words stand for vision tokens.
        place: length of the vector added to a told word for its place, relative to a word vector's.
    """

    def __init__(self, told: bool = False, place: float = 0.0) -> None:
        self._told = told
        self._place = place

    def count(self, batch: Batch) -> int:
        return batch.target_count

    def losses(self, model: VisionLanguageModel, batch: Batch) -> Tensor:
        return token_losses(model, batch, _words_as_vision(model, batch, self._place) if self._told else None)[0]

    def by_task(self, losses_X: Tensor, pack: Pack, tasks: tuple[str, ...]) -> dict[str, tuple[float, int]]:
        sums = torch.zeros(len(tasks)).index_add_(0, pack.task_X, losses_X.float().cpu())
        counts = torch.bincount(pack.task_X, minlength=len(tasks))
        return {n: (float(s), int(c)) for n, s, c in zip(tasks, sums, counts, strict=True) if c}


def _words_as_vision(model: VisionLanguageModel, batch: Batch, place: float) -> Tensor:
    """[M, D] vision tokens that look like the words in their places, and tell those places.

    The placeholder's own vector is added, as the mark of a thing seen: without it a word in a question would first
    of all find itself again, and the model could not learn to look for it in the picture. While it learns, noise is
    added: what a vision tower says later is never quite a word.

    Raises:
        ValueError: the batch shows pictures.
    """
    if batch.grids:
        raise ValueError(
            f"the told objective reads pictures told in words, this pack shows {len(batch.grids)} real ones: give the "
            "stage world.medium: words and leave out tasks with pictures of their own (dialogue, video)"
        )
    words_MD = model.embed(batch.tokens_T[batch.vision_rows_M])
    if model.training:
        size = words_MD.detach().norm(dim=-1, keepdim=True) * words_MD.shape[-1] ** -0.5
        words_MD = words_MD + _TOLD_NOISE * size * torch.randn_like(words_MD)
    words_MD = words_MD + _mark(model, batch)
    return words_MD + _place(model, batch, place) if place else words_MD


def _place(model: VisionLanguageModel, batch: Batch, length: float) -> Tensor:
    """[M, D] what a tower with a table of positions can tell as well: where in the picture a vision token is.

    Rotary positions are relative: without this a decoder that has found a thing has not found its place.
    """
    vocabulary = model.config.vocab_size
    some_A = torch.arange(0, vocabulary, -(-vocabulary // _MEASURED_WORDS), device=batch.tokens_T.device)
    word = model.embed(some_A).detach().norm(dim=1).mean()  # looked up, as the mark is
    return length * word * place_vectors(model.places(batch), model.config.text.width)


def _mark(model: VisionLanguageModel, batch: Batch) -> Tensor:
    """[D] the placeholder's vector. By a look-up, for ranks may hold only some of the words each."""
    return model.embed(batch.tokens_T.new_tensor([model.config.ids.image_pad]))[0]


@final
class Match(Objective):
    """Which word stands for what this vision token shows? For a vision tower that starts from nothing.

    The published models take their vision tower from contrastive pretraining (OpenCLIP, DFN); this is that step in
    small, with a word for every vision token: a sample shows a picture and tells it behind (`world.medium: both`), and
    each vision token chooses the word in its own place among all words of the batch. So the tower learns to look like
    the words in the very space the language model reads. That model is not run and its word vectors are not changed.
    The choice is by cosines, from the middle of the batch's words: those of a pretrained language model lie to one side
    of the origin (SmolLM2's have cosines of 0.4 with each other), and a token that is above all unlike other words is
    not like its own. (The middle of the whole vocabulary would not do: words that are never said lie elsewhere.) The
    length of vision tokens, left free by cosines, is held at that of word vectors, or no decoder layer could add
    anything to them afterwards.

    Args:
        place: length of the vector by which a vision token has to tell its place beside the word, as for told words.
    """

    divisible = False
    reads = False

    def __init__(self, place: float = 0.0) -> None:
        self._place = place

    def count(self, batch: Batch) -> int:
        return len(batch.vision_rows_M) // 2

    def losses(self, model: VisionLanguageModel, batch: Batch) -> Tensor:
        """Cross-entropy of each vision token among the distinct words of the batch.

        Raises:
            ValueError: the batch does not show every picture once and tell it once.
        """
        tokens_M = batch.tokens_T[batch.vision_rows_M]
        told = tokens_M != model.config.ids.image_pad
        seen_MD = model.see(batch, PackedContext(batch))
        if len(seen_MD) != int(told.sum()) or 2 * len(seen_MD) != len(told):
            raise ValueError(
                f"the match objective needs every picture shown and told: {len(seen_MD)} vision tokens, "
                f"{int(told.sum())} words of told pictures; give the stage world.medium: both and only tasks about one "
                "picture, and where pictures are enlarged (min_pixels) only square ones (world.sizes), with their "
                "tokens a side as world.words_side"
            )
        words_A, word_M = tokens_M[told].unique(return_inverse=True)
        mark_D = _mark(model, batch).detach()
        words_AD = model.embed(words_A).detach()
        middle_D = words_AD.mean(dim=0) * (len(words_A) > 1)  # of one word alone nothing would be left
        words_AD = words_AD - middle_D
        seen_MD = seen_MD - mark_D - middle_D
        if self._place:
            seen_MD = seen_MD - _place(model, batch, self._place)[~told]
        lengths = seen_MD.norm(dim=-1) / words_AD.norm(dim=-1).mean()
        scores_MA = _SCALE * F.normalize(seen_MD, dim=-1) @ F.normalize(words_AD, dim=-1).T
        return F.cross_entropy(scores_MA, word_M, reduction="none") + _LENGTH_WEIGHT * lengths.log().square()

    def by_task(self, losses_X: Tensor, pack: Pack, tasks: tuple[str, ...]) -> dict[str, tuple[float, int]]:
        return {"match": (float(losses_X.sum()), losses_X.shape[0])}

    def task_names(self, tasks: tuple[str, ...]) -> tuple[str, ...]:
        return ("match",)


def objective_of(name: str, place: float = 0.0) -> Objective:
    """The objective of a stage (`StageConfig.objective` and `.place`)."""
    return {"next_token": NextToken(), "told": NextToken(told=True, place=place), "match": Match(place)}[name]
