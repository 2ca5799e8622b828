"""The loss is a property of the samples, not of how they are laid out."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from qvl.data.fitting import prepare
from qvl.data.packing import PackLimits, packs
from qvl.data.records import Sample
from qvl.inputs.processor import Processor
from qvl.models.qwen2_vl.model import Qwen2VL
from qvl.text.messages import Message
from qvl.train.loss import head_losses, head_losses_naive, token_losses

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


@pytest.mark.parametrize("branches", [True, False])
def test_filled_up_with_rows_that_teach_nothing(model, processor, world, branches) -> None:
    spelt = processor.branches if branches else lambda *a, **k: [processor.sequence(*a, **k)]
    batch = processor.pack([s for x in samples(world, 3) for s in spelt(x.messages, labels=True, chat_format="raw")])
    assert bool(batch.parents) == branches
    more = batch.filled(64)
    assert len(batch.tokens_T) % 64
    assert len(more.tokens_T) == -(-len(batch.tokens_T) // 64) * 64
    assert more.filled(64) is more
    found = []
    for each in (batch, more):
        losses_X, rows_X = token_losses(model, each)
        losses_X.sum().backward()
        found.append((losses_X.detach(), rows_X, gradients(model)))
    (losses, rows, slopes), (more_losses, more_rows, more_slopes) = found
    assert torch.equal(rows, more_rows)
    assert torch.allclose(losses, more_losses, atol=TOLERANCE)
    assert (slopes - more_slopes).abs().max() <= TOLERANCE * slopes.abs().max()


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


VOCABULARY, WIDTH, ROW = 101, 16, 4 * 101
CHUNKS = {"one row a time": (1, 0), "some wait": (5 * ROW, 12 * ROW), "all at once": (1 << 20, 1 << 20)}


def head_and_rows(rows: int) -> tuple[nn.Linear, Tensor, Tensor, Tensor]:
    """A head, hidden states, labels, and how much each loss counts (not the same for all)."""
    torch.manual_seed(0)
    hidden_XD = torch.randn(rows, WIDTH, requires_grad=True)
    labels_X = torch.randint(VOCABULARY, (rows,))
    return nn.Linear(WIDTH, VOCABULARY, bias=False), hidden_XD, labels_X, torch.rand(rows)


@pytest.mark.parametrize("sizes", CHUNKS.values(), ids=list(CHUNKS))
@pytest.mark.parametrize("lower", [False, True], ids=["float32", "autocast"])
def test_head_losses_are_those_of_the_slow_twin(lower: bool, sizes: tuple[int, int]) -> None:
    head, hidden_XD, labels_X, weight_X = head_and_rows(37)
    found = []
    for losses in (head_losses_naive, lambda *args: head_losses(*args, chunk_bytes=sizes[0], kept_bytes=sizes[1])):
        with torch.autocast("cpu", torch.bfloat16, enabled=lower):
            losses_X = losses(head, hidden_XD, labels_X)
        grads = torch.autograd.grad((losses_X * weight_X).sum(), [hidden_XD, head.weight])
        found.append((losses_X.detach(), *grads))
    # Measured worst cases: float32 5e-7; autocast 7e-3 (the gradient of a logit is rounded to bfloat16 in both).
    for slow, fast in zip(*found, strict=True):
        assert slow.dtype == fast.dtype
        assert (slow - fast).abs().max() <= (2e-2 if lower else 5e-6) * slow.abs().max()


def test_head_losses_hold_few_logits() -> None:
    """No tensor on the way has more values than a chunk of logits or the head itself."""
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            largest = max([largest, *(x.numel() for x in (out if isinstance(out, tuple) else (out,)) if _is_tensor(x))])
            return out

    head, hidden_XD, labels_X, _ = head_and_rows(60)
    with Watch():
        head_losses(head, hidden_XD, labels_X, chunk_bytes=7 * ROW, kept_bytes=0).sum().backward()
    assert largest == VOCABULARY * WIDTH
    with Watch():
        head_losses_naive(head, hidden_XD, labels_X).sum().backward()
    assert largest == 60 * VOCABULARY


def _is_tensor(x: object) -> bool:
    return isinstance(x, Tensor)


def test_backward_twice_gives_the_same() -> None:
    head, hidden_XD, labels_X, _ = head_and_rows(20)
    total = head_losses(head, hidden_XD, labels_X).sum()
    first = torch.autograd.grad(total, head.weight, retain_graph=True)[0]
    assert torch.allclose(first, torch.autograd.grad(total, head.weight)[0], atol=1e-6)


def test_a_frozen_head_and_no_rows() -> None:
    head, hidden_XD, labels_X, _ = head_and_rows(20)
    head.requires_grad_(False)
    head_losses(head, hidden_XD, labels_X).sum().backward()
    assert hidden_XD.grad is not None
    assert head.weight.grad is None
    head.requires_grad_(True)
    nothing = head_losses(head, hidden_XD[:0], labels_X[:0])
    assert nothing.shape == (0,)
    nothing.sum().backward()
    assert head.weight.grad is not None
    assert not head.weight.grad.any()
