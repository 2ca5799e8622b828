"""Samples into packs: whole sequences end to end, bounded in tokens *and* patches.

Knows: how much fits, which task each supervised token belongs to, where to resume.
Does not know: what the samples show, the model, the optimizer.

A pack is filled in sample order and closed by the first sample that no longer fits, so the only state is the index of
the next sample. Nothing is cut: a sample that cannot fit alone is left out and named.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qvl.batch import IGNORE, Batch
from qvl.data.records import Sample
from qvl.inputs.processor import ChatFormatName, Processor
from qvl.inputs.sequence import Sequence as Prepared

log = logging.getLogger(__name__)


class SampleSource(Protocol):
    """Random access to an endless or finite list of samples; sample `index` is always the same one."""

    tasks: tuple[str, ...]
    """Every task name a turn can have, in a fixed order."""

    def __getitem__(self, index: int) -> Sample: ...


@dataclass(frozen=True)
class Pack:
    """One forward pass worth of samples."""

    batch: Batch
    task_X: Tensor
    """int64 [X]: task index (into the source's `tasks`) of each supervised row, in row order."""
    next_index: int
    """Index of the first sample that is not in this pack: where a resumed run goes on."""
    samples: int
    """How many samples it holds."""


@dataclass(frozen=True)
class PackLimits:
    tokens: int
    patches: int


def packs(
    source: SampleSource,
    processor: Processor,
    limits: PackLimits,
    chat_format: ChatFormatName,
    start: int = 0,
    stride: int = 1,
) -> Iterator[Pack]:
    """Yields packs for ever, taking samples `start`, `start + stride`, ... in order (stride: one lane per rank)."""
    index = start
    held: list[tuple[list[Prepared], Sample]] = []
    tokens = patches = 0
    while True:
        sample = source[index]
        prepared = prepare(sample, processor, chat_format)
        size, seen = sum(len(p.tokens_T) for p in prepared), sum(p.patch_count for p in prepared)
        if size > limits.tokens or seen > limits.patches:
            log.warning(
                "left out %s: %d tokens and %d patches, a pack holds %d and %d",
                *(sample.name, size, seen, limits.tokens, limits.patches),
            )
            index += stride
            continue
        if tokens + size > limits.tokens or patches + seen > limits.patches:
            yield _close(held, source.tasks, processor, index)
            held, tokens, patches = [], 0, 0
        held.append((prepared, sample))
        tokens, patches = tokens + size, patches + seen
        index += stride


def _close(
    held: list[tuple[list[Prepared], Sample]], tasks: Sequence[str], processor: Processor, next_index: int
) -> Pack:
    index_of = {task: i for i, task in enumerate(tasks)}
    task_X = np.concatenate([turn_tasks(_labels(ps), turn_names(sample), index_of) for ps, sample in held])
    batch = processor.pack([p for ps, _ in held for p in ps])
    return Pack(batch, torch.from_numpy(task_X), next_index, len(held))


def _labels(sequences: list[Prepared]) -> NDArray[np.int64]:
    return np.concatenate([s.labels_T for s in sequences if s.labels_T is not None])


def prepare(sample: Sample, processor: Processor, chat_format: ChatFormatName) -> list[Prepared]:
    """The labelled sequences of one sample: one, or a shared beginning and its branches."""
    if sample.independent:
        return processor.branches(sample.messages, labels=True, chat_format=chat_format, name=sample.name)
    return [processor.sequence(sample.messages, labels=True, chat_format=chat_format, name=sample.name)]


def turn_names(sample: Sample) -> list[str]:
    """Task of each assistant turn: `meta["turns"]` when turns differ, else the sample's own task for all."""
    turns: list[dict[str, Any]] = sample.meta.get("turns", [])
    if turns:
        return [turn["task"] for turn in turns]
    return [sample.task] * sum(message.role == "assistant" for message in sample.messages)


def turn_tasks(labels_T: NDArray[np.int64], names: Sequence[str], index_of: dict[str, int]) -> NDArray[np.int64]:
    """Task index of each supervised row. Turns are the runs of consecutive labels: `- B C - - E -` has two."""
    supervised_T = labels_T != IGNORE
    opens_T = supervised_T & ~np.concatenate(([False], supervised_T[:-1]))
    turn_X = np.cumsum(opens_T)[supervised_T] - 1
    count = int(opens_T.sum())
    assert count == len(names), f"{count} supervised turns, but {len(names)} are described"
    return np.asarray([index_of[name] for name in names], np.int64)[turn_X]
