"""Samples into packs: whole sequences end to end, bounded in tokens *and* patches.

Knows: how much fits, which task each supervised token belongs to, where to resume.
Does not know: what the samples show, the model, the optimizer.

A pack is filled in sample order and closed by the first sample that no longer fits, so the only state is the index of
the next sample. With `same_task` one pack per task is open at a time, and the state is that index and those of the
samples that wait in open packs. Nothing is cut: a sample that cannot fit alone gets smaller pictures (`fitting`) or, if
that is not enough, is left out and named.
"""

from __future__ import annotations

import itertools
import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qvl.batch import IGNORE, Batch
from qvl.data.fitting import TooLarge, fit
from qvl.data.records import Sample
from qvl.inputs.processor import ChatFormatName, Processor
from qvl.inputs.sequence import Sequence as Prepared

log = logging.getLogger(__name__)

_ROUNDING = 1e-9
"""A third of three is one."""
_MOST_LEFT_OUT = 1000
"""So many samples in a row that cannot be used end the run: it would look for the next one for ever."""


_MOST_TOLD = 10_000
"""So many samples that are too large are kept in mind, to be named once and not in every epoch."""


class SampleSource(Protocol):
    """Random access to an endless or finite list of samples; sample `index` is always the same one.

    It can be pickled: the worker that prepares packs may be a new process.
    """

    tasks: tuple[str, ...]
    """Every task name a turn can have, in a fixed order."""

    def __getitem__(self, index: int) -> Sample: ...


@runtime_checkable
class Forgiving(Protocol):
    """A source some of whose samples may turn out to be unusable (a missing or damaged picture). Of other sources one
    that is unusable is an error."""

    allowed_bad: int
    """So many are left out and named; one more is an error."""


@dataclass(frozen=True)
class Pack:
    """One forward pass worth of samples."""

    batch: Batch
    task_X: Tensor
    """int64 [X]: task index (into the source's `tasks`) of each supervised row, in row order."""
    next_index: int
    """Index of the first sample that was not taken yet: where a resumed run goes on."""
    samples: int
    """How many samples it holds."""
    waiting: tuple[int, ...] = ()
    """Indices before `next_index` that are in no pack yet: samples in the open packs of other tasks."""


@dataclass(frozen=True)
class PackLimits:
    tokens: int
    patches: int
    same_task: bool = False
    """A pack holds samples of one task only (Qwen-VL's multi-task stage: same-task samples packed to 2048 tokens)."""
    samples: int = 0
    """Most samples in a pack; 0 = as many as fit."""
    sample_tokens: int = 0
    """Most tokens of a sample; 0 = what a pack holds."""
    part: float = 1.0
    """Packs are filled to this part of the limits only, because several ranks share a step. A larger sample still has
    a pack to itself: no sample is left out because there are more ranks."""


@dataclass
class _OpenPack:
    """Samples that lie together until the next one of their kind no longer fits."""

    tokens: int = 0
    patches: int = 0
    held: list[tuple[list[Prepared], Sample]] = field(default_factory=list)
    indices: list[int] = field(default_factory=list)

    def is_full(self, tokens: int, patches: int, limits: PackLimits) -> bool:
        """There is no room for one more sample of that size."""
        part = limits.part
        return bool(self.held) and (
            (limits.samples > 0 and max(1, int(part * limits.samples + _ROUNDING)) <= len(self.held))
            or self.tokens + tokens > part * limits.tokens
            or self.patches + patches > part * limits.patches
        )


class _LeftOut:
    """Counts and names samples that are not used."""

    def __init__(self, allowed_bad: int) -> None:
        self._allowed = allowed_bad
        self._bad: set[str] = set()
        self._large: set[str] = set()
        self.in_a_row = 0

    def bad(self, error: ValueError | OSError) -> None:
        """Raises the error itself once no more are allowed."""
        reason = str(error)
        new = reason not in self._bad  # a line comes again in every epoch
        self._bad.add(reason)
        if not self._allowed:
            raise error
        if len(self._bad) > self._allowed:
            raise ValueError(
                f"{reason}; with it {len(self._bad)} samples cannot be used, {self._allowed} are allowed "
                "(data.max_bad): put the files right"
            ) from error
        if new:
            log.warning("left out %s (%d so far, %d allowed)", reason, len(self._bad), self._allowed)
        self._one_more(reason)

    def too_large(self, error: TooLarge) -> None:
        reason = str(error)
        if reason not in self._large:
            log.warning("left out %s", reason)
        if len(self._large) < _MOST_TOLD:  # a world's samples never come again
            self._large.add(reason)
        self._one_more(reason)

    def _one_more(self, reason: str) -> None:
        self.in_a_row += 1
        if self.in_a_row >= _MOST_LEFT_OUT:
            raise ValueError(f"{self.in_a_row} samples in a row cannot be used; the last: {reason}")


def packs(
    source: SampleSource,
    processor: Processor,
    limits: PackLimits,
    chat_format: ChatFormatName,
    start: int = 0,
    stride: int = 1,
    waiting: Sequence[int] = (),
) -> Iterator[Pack]:
    """Yields packs for ever, taking samples `start`, `start + stride`, ... in order (stride: one lane per rank).

    `start` and `waiting` of a pack (`next_index`, `waiting`) go on exactly behind it.
    """
    opened: dict[str, _OpenPack] = defaultdict(_OpenPack)
    left_out = _LeftOut(source.allowed_bad if isinstance(source, Forgiving) else 0)
    most = min(limits.sample_tokens or limits.tokens, limits.tokens)
    for index in itertools.chain(sorted(waiting), itertools.count(start, stride)):
        try:
            sample = source[index]
            prepared = fit(sample, processor, chat_format, most, limits.patches)
        except TooLarge as error:
            left_out.too_large(error)
            continue
        except (ValueError, OSError) as error:
            left_out.bad(error)
            continue
        left_out.in_a_row = 0
        size, seen = sum(len(p.tokens_T) for p in prepared), sum(p.patch_count for p in prepared)
        task = sample.task if limits.same_task else ""
        full = opened[task]
        if full.is_full(size, seen, limits):
            del opened[task]
            left = sorted(i for pack in opened.values() for i in pack.indices)
            yield _close(full.held, source.tasks, processor, index, tuple(left))
        pack = opened[task]
        pack.held.append((prepared, sample))
        pack.indices.append(index)
        pack.tokens, pack.patches = pack.tokens + size, pack.patches + seen


def _close(
    held: list[tuple[list[Prepared], Sample]],
    tasks: Sequence[str],
    processor: Processor,
    next_index: int,
    waiting: tuple[int, ...],
) -> Pack:
    index_of = {task: i for i, task in enumerate(tasks)}
    task_X = np.concatenate([turn_tasks(_turns(ps), turn_names(sample), index_of) for ps, sample in held])
    batch = processor.pack([p for ps, _ in held for p in ps])
    return Pack(batch, torch.from_numpy(task_X), next_index, len(held), waiting)


def _turns(sequences: list[Prepared]) -> NDArray[np.int64]:
    """Of each supervised row, which answer of the sample it belongs to."""
    return np.concatenate(
        [s.turns_T[s.labels_T != IGNORE] for s in sequences if s.labels_T is not None and s.turns_T is not None]
    )


def turn_names(sample: Sample) -> list[str]:
    """Task of each assistant turn: `meta["turns"]` when turns differ, else the sample's own task for all."""
    turns: list[dict[str, Any]] = sample.meta.get("turns", [])
    if turns:
        return [turn["task"] for turn in turns]
    return [sample.task] * sum(message.role == "assistant" for message in sample.messages)


def turn_tasks(turn_X: NDArray[np.int64], names: Sequence[str], index_of: dict[str, int]) -> NDArray[np.int64]:
    """Task index of each supervised row, given the answer it belongs to.

    Raises:
        ValueError: the number of answers is not the number of their descriptions.
    """
    count = 1 + int(turn_X.max(initial=-1))
    if count != len(names):
        raise ValueError(f"{count} supervised answers, but {len(names)} are described ({', '.join(names)})")
    return np.asarray([index_of[name] for name in names], np.int64)[turn_X]
