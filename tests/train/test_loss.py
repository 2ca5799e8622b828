"""The loss is a property of the samples, not of how they are laid out."""

from __future__ import annotations

import itertools

import pytest
import torch

from qvl.data.fitting import prepare
from qvl.data.packing import PackLimits, packs
from qvl.data.records import Sample
from qvl.inputs.processor import Processor
from qvl.models.qwen2_vl.model import Qwen2VL
from qvl.text.messages import Message
from qvl.train.loss import token_losses

# Worst cases measured on these samples, relative to the largest gradient: 6e-7; per-token losses: 1e-6.
TOLERANCE = 1e-5


def samples(world, count: int = 6) -> list[Sample]:
    return [world.sample("train", i) for i in range(count)]


def gradients(model: Qwen2VL) -> torch.Tensor:
    found = torch.cat([p.grad.flatten() for p in model.parameters()])
    model.zero_grad()
    return found


def backward(model: Qwen2VL, processor: Processor, groups: list[list], chat_format: str) -> torch.Tensor:
    losses = []
    for group in groups:
        found, _ = token_losses(model, processor.pack(group))
        found.sum().backward()
        losses.append(found.detach())
    return torch.cat(losses)


@pytest.mark.parametrize("chat_format", ["raw", "chatml"])
def test_packed_equals_unpacked(model, processor, world, chat_format) -> None:
    sequences = [s for x in samples(world) for s in prepare(x, processor, chat_format)]
    roots = [i for i, s in enumerate(sequences) if not s.branch] + [len(sequences)]
    single = [sequences[a:b] for a, b in itertools.pairwise(roots)]
    apart = backward(model, processor, single, chat_format)
    apart_gradients = gradients(model)
    together = backward(model, processor, [sequences], chat_format)
    together_gradients = gradients(model)
    assert torch.allclose(apart, together, atol=TOLERANCE)
    assert (apart_gradients - together_gradients).abs().max() <= TOLERANCE * apart_gradients.abs().max()


@pytest.mark.parametrize("chat_format", ["raw", "chatml"])
def test_branches_equal_separate_conversations(model, processor, world, chat_format) -> None:
    shared, separate = [], []
    for x in samples(world):
        image = x.messages[0].parts[0]
        shared += processor.branches(x.messages, labels=True, chat_format=chat_format)
        for i in range(0, len(x.messages), 2):
            words = tuple(p for p in x.messages[i].parts if p is not image)
            turn = (Message("user", (image, *words)), x.messages[i + 1])
            separate.append(processor.sequence(turn, labels=True, chat_format=chat_format))
    together = backward(model, processor, [shared], chat_format)
    together_gradients = gradients(model)
    apart = backward(model, processor, [[s] for s in separate], chat_format)
    apart_gradients = gradients(model)
    assert torch.allclose(apart, together, atol=TOLERANCE)
    assert (apart_gradients - together_gradients).abs().max() <= TOLERANCE * apart_gradients.abs().max()


def test_a_turn_cannot_see_its_siblings(model, processor, world) -> None:
    """Changing the first question and answer must not move the loss of the second."""
    x = next(x for x in samples(world, 40) if len(x.messages) >= 4 and len(x.messages[0].parts) == 2)
    image = x.messages[0].parts[0]
    other = (Message("user", (image, *x.messages[2].parts)), x.messages[3], *x.messages[2:4])
    kept = token_losses(model, processor.pack(processor.branches(x.messages[:4], labels=True, chat_format="raw")))[0]
    moved = token_losses(model, processor.pack(processor.branches(other, labels=True, chat_format="raw")))[0]
    length = len(processor.branches(x.messages[:4], labels=True, chat_format="raw")[2].tokens_T)
    tail = min(length // 2, 3)
    assert torch.allclose(kept[-tail:], moved[-tail:], atol=1e-6)


def test_packs_name_the_task_of_every_target(processor, world) -> None:
    class Source:
        tasks = world.tasks

        def __getitem__(self, index: int) -> Sample:
            return world.sample("train", index)

    pack = next(packs(Source(), processor, PackLimits(600, 2000), "raw"))
    assert pack.task_X.shape[0] == pack.batch.target_count
    assert pack.samples == pack.next_index
    assert sum(pack.batch.seq_lens) <= 600
    again = next(packs(Source(), processor, PackLimits(600, 2000), "raw", start=pack.next_index))
    assert again.batch.names[0].endswith(f"/{pack.next_index}")


def test_labels_are_required(model, processor, world) -> None:
    batch = processor([world.sample("train", 0).messages])
    with pytest.raises(ValueError, match="no labels"):
        token_losses(model, batch)
