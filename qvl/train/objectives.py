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

from qvl.batch import IGNORE, Batch
from qvl.data.packing import Pack
from qvl.layers.attention import PackedContext
from qvl.models.vlm import VisionLanguageModel
from qvl.train.loss import token_losses

_CONTRAST_SCALE = 20.0
"""Inverse temperature of the cosine between a vision token and a word."""


_LENGTH_WEIGHT = 0.1
"""Weight of the vision tokens' length beside the match."""


class Objective(ABC):
    divisible = True
    """Items do not need each other: a pack may be cut in two without changing the sum of losses."""

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
    """

    def __init__(self, told: bool = False) -> None:
        self._told = told

    def count(self, batch: Batch) -> int:
        return batch.target_count

    def losses(self, model: VisionLanguageModel, batch: Batch) -> Tensor:
        return token_losses(model, batch, _words_as_vision(model, batch) if self._told else None)[0]

    def by_task(self, losses_X: Tensor, pack: Pack, tasks: tuple[str, ...]) -> dict[str, tuple[float, int]]:
        sums = torch.zeros(len(tasks)).index_add_(0, pack.task_X, losses_X.float().cpu())
        counts = torch.bincount(pack.task_X, minlength=len(tasks))
        return {n: (float(s), int(c)) for n, s, c in zip(tasks, sums, counts, strict=True) if c}


def _words_as_vision(model: VisionLanguageModel, batch: Batch) -> Tensor:
    """[M, D] vision tokens that look like the words in their places.

    The placeholder's own vector is added, as the mark of a thing seen: without it a word in a question would first
    of all find itself again, and the model could not learn to look for it in the picture.

    Raises:
        ValueError: the batch shows pictures.
    """
    if batch.grids:
        raise ValueError(
            f"the told objective reads pictures told in words, this pack shows {len(batch.grids)} real ones: give the "
            "stage world.medium: words and leave out tasks with pictures of their own (ocr, compare, dialogue, video)"
        )
    return model.embed(batch.tokens_T[batch.vision_rows_M]) + model.embed.weight[model.config.ids.image_pad]


@final
class Contrast(Objective):
    """Which of the batch's answers belong to this picture? For a vision tower that starts from nothing.

    The published models take their vision tower from contrastive pretraining (OpenCLIP, DFN); this is that step in
    small. A picture scores an answer by its best vision tokens (log-mean-exp of their cosines with the mean of the
    answer's word vectors, centred over the batch), so a vision token learns to look like the word for what it shows,
    in the very space the language model reads. Items are branches (`Batch.parents`): one answer about one picture.
    The language model is not run and its word vectors are not changed; the mark of a thing seen (`_words_as_vision`)
    is taken off first. Cosines leave the length of vision tokens free;
    it is held at the length of word vectors, or no decoder layer could add anything to them afterwards.
    """

    divisible = False

    def count(self, batch: Batch) -> int:
        return sum(p >= 0 for p in batch.parents)

    def losses(self, model: VisionLanguageModel, batch: Batch) -> Tensor:
        """Cross-entropy of each branch's answer among the distinct answers of the batch.

        Raises:
            ValueError: the batch has no branches about pictures.
        """
        if not self.count(batch) or not batch.grids:
            raise ValueError(
                "the contrast objective needs questions about pictures: give the stage tasks such as what or "
                "box_to_name, whose samples are independent questions (not text, not dialogue)"
            )
        answers, kind_X = _distinct_answers(batch)
        words_AD = torch.stack([model.embed.weight[a].mean(0) for a in answers]).detach()
        words_AD = F.normalize(words_AD - words_AD.mean(0), dim=-1)
        mark_D = model.embed.weight[model.config.ids.image_pad].detach()
        seen_MD = model.see(batch, PackedContext(batch)) - mark_D
        lengths = seen_MD.norm(dim=-1) / model.embed.weight.detach().norm(dim=-1).mean()
        vision_MD = F.normalize(seen_MD, dim=-1)
        sequence_M = torch.bucketize(
            batch.vision_rows_M, torch.tensor(batch.seq_offsets[1:], device=vision_MD.device), right=True
        )
        # exp of a bounded cosine needs no maximum taken out: the scale is 20.
        scores_MA = (_CONTRAST_SCALE * vision_MD @ words_AD.T).exp()
        sums_SA = scores_MA.new_zeros(len(batch.seq_lens), len(answers)).index_add_(0, sequence_M, scores_MA)
        tokens_S = torch.bincount(sequence_M, minlength=len(batch.seq_lens)).clamp(min=1)
        pictures_SA = (sums_SA / tokens_S[:, None]).log()
        parent_X = torch.tensor([p for p in batch.parents if p >= 0], device=vision_MD.device)
        # Other true answers about the same picture are not wrong: they are left out of the choice.
        also_true_SA = torch.zeros_like(pictures_SA, dtype=torch.bool)
        also_true_SA[parent_X, kind_X] = True
        also_true_XA = also_true_SA[parent_X].scatter(1, kind_X[:, None], False)
        scores_XA = pictures_SA[parent_X].masked_fill(also_true_XA, float("-inf"))
        return F.cross_entropy(scores_XA, kind_X, reduction="none") + _LENGTH_WEIGHT * lengths.log().square().mean()

    def by_task(self, losses_X: Tensor, pack: Pack, tasks: tuple[str, ...]) -> dict[str, tuple[float, int]]:
        return {"contrast": (float(losses_X.sum()), losses_X.shape[0])}

    def task_names(self, tasks: tuple[str, ...]) -> tuple[str, ...]:
        return ("contrast",)


def _distinct_answers(batch: Batch) -> tuple[list[Tensor], Tensor]:
    """Token ids of each distinct answer (the closing token left out), and which of them each branch gives."""
    assert batch.labels_T is not None
    index: dict[tuple[int, ...], int] = {}
    kinds = []
    offsets = batch.seq_offsets
    for s, parent in enumerate(batch.parents):
        if parent >= 0:
            labels = batch.labels_T[offsets[s] : offsets[s + 1]]
            answer = tuple(labels[labels != IGNORE][:-1].tolist())
            kinds.append(index.setdefault(answer, len(index)))
    device = batch.tokens_T.device
    return [torch.tensor(a, device=device) for a in index], torch.tensor(kinds, device=device)


OBJECTIVES: dict[str, Objective] = {"next_token": NextToken(), "told": NextToken(told=True), "contrast": Contrast()}
