"""Packed equals unpacked: logits, loss and gradients; and what does not fit together is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from parity.handmade import batch_of, randomise, relative, sequence, small_config
from torch import Tensor

from qvl.batch import IGNORE, Batch
from qvl.inputs.sequence import Sequence
from qvl.layers.attention import PackedContext
from qvl.models.qwen2_vl.model import Qwen2VL

PARTS = [
    [9],
    [3, ("image", (1, 4, 6)), 5],
    [2, ("image", (1, 2, 2)), 3, ("image", (1, 8, 4)), 6],
    [1, ("video", (3, 4, 4)), ("image", (1, 2, 6)), 7],
    [30],
]


@pytest.fixture(scope="module", params=[3, 1], ids=["three axes", "one axis"])
def model(request: pytest.FixtureRequest) -> Qwen2VL:
    made = Qwen2VL(small_config(sections=(2, 3, 3) if request.param == 3 else ()))
    randomise(made, 0)
    return made


def sequences(model: Qwen2VL) -> list[Sequence]:
    axes = model.config.text.rope_axes
    return [sequence(i, parts, model.config, labels=True, rope_axes=axes) for i, parts in enumerate(PARTS)]


def summed_loss(model: Qwen2VL, batch: Batch) -> Tensor:
    assert batch.labels_T is not None
    return F.cross_entropy(model(batch), batch.labels_T, ignore_index=IGNORE, reduction="sum")


def test_loss_and_gradients(model: Qwen2VL) -> None:
    every = sequences(model)
    parameters = list(model.parameters())
    packed = summed_loss(model, batch_of(every, model.config))
    packed_grads = torch.autograd.grad(packed, parameters)
    alone = sum(summed_loss(model, batch_of([s], model.config)) for s in every)
    alone_grads = torch.autograd.grad(alone, parameters)
    assert abs(packed - alone) < 1e-5 * alone  # measured: 8e-8
    for (name, _), a, b in zip(model.named_parameters(), packed_grads, alone_grads, strict=True):
        assert relative(a, b) < 1e-5, name  # measured worst: 7e-7


def test_order_does_not_matter(model: Qwen2VL) -> None:
    every = sequences(model)
    there = batch_of(every, model.config)
    back = batch_of(every[::-1], model.config)
    with torch.no_grad():
        rows = model(there).split(there.seq_lens)
        for a, b in zip(rows, reversed(model(back).split(back.seq_lens)), strict=True):
            assert relative(a, b) < 1e-5


def test_nothing_is_left_of_an_earlier_call(model: Qwen2VL) -> None:
    """A model that keeps positions from one call to the next answers differently after a picture or a long text."""
    alone, others = batch_of(sequences(model)[:1], model.config), batch_of(sequences(model)[1:], model.config)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        first = model(alone)
        model(others)
        assert torch.equal(model(alone), first)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_branches_equal_whole_conversations(model: Qwen2VL) -> None:
    """A shared beginning with a picture and two goings-on, against the two whole sequences."""
    c, axes = model.config, model.config.text.rope_axes
    beginning = sequence(1, [3, ("image", (1, 4, 6))], c, rope_axes=axes)
    ends = [sequence(10 + i, [n], c, rope_axes=axes) for i, n in enumerate((4, 7))]
    packed = batch_of([beginning, *(end.after(beginning) for end in ends)], c)
    with torch.no_grad():
        shared, *branches = model(packed).split(packed.seq_lens)
        for end, branch in zip(ends, branches, strict=True):
            parts = [3, ("image", (1, 4, 6)), len(end.tokens_T)]
            whole = sequence(1, parts, c, rope_axes=axes)
            whole.tokens_T[-len(end.tokens_T) :] = end.tokens_T
            assert relative(torch.cat((shared, branch)), model(batch_of([whole], c))) < 1e-5


def test_chosen_rows_are_rows_of_the_whole(model: Qwen2VL) -> None:
    batch = batch_of(sequences(model), model.config)
    with torch.no_grad():
        assert relative(model(batch, rows=batch.last_rows), model(batch)[batch.last_rows]) < 1e-6


def test_text_only(model: Qwen2VL) -> None:
    """No picture anywhere: the tower runs on nothing, and its parameters get zero gradients (not none at all)."""
    c = model.config
    batch = batch_of([sequence(0, [5], c, True, c.text.rope_axes), sequence(1, [8], c, True, c.text.rope_axes)], c)
    assert batch.patches_PC.shape == (0, c.vision.patch_values)
    loss = summed_loss(model, batch)
    grads = torch.autograd.grad(loss, list(model.visual.parameters()))
    assert torch.isfinite(loss)
    assert all(not g.any() for g in grads)


def test_more_pictures_than_placeholders(model: Qwen2VL) -> None:
    batch = batch_of(sequences(model), model.config)
    wrong = replace(batch, vision_rows_M=batch.vision_rows_M[:-1])
    count = len(batch.vision_rows_M)
    with pytest.raises(ValueError, match=f"{count} vision tokens for {count - 1} placeholder rows"):
        model(wrong)


@torch.no_grad()
def test_chosen_rows(model: Qwen2VL) -> None:
    """Of the rows that are not wanted, the last layer computes keys and values only."""
    batch = batch_of(sequences(model), model.config)
    attn = PackedContext(batch)
    vision_MD = model.see(batch, attn)
    everything_TD = model.hidden(batch, vision_MD, attn)
    seen: list[list[int]] = [[], []]
    hooks = [
        layer.mlp.register_forward_pre_hook(lambda _, given, rows=rows: rows.append(len(given[0])))
        for layer, rows in zip(model.decoder.layers, seen, strict=True)
    ]
    for rows in (batch.last_rows, torch.tensor([5, 2]), torch.zeros(0, dtype=torch.long)):
        chosen_XD = model.hidden(batch, vision_MD, attn, rows)
        torch.testing.assert_close(chosen_XD, everything_TD[rows], rtol=1e-5, atol=1e-5)
    for hook in hooks:
        hook.remove()
    assert seen == [[len(batch.tokens_T)] * 3, [len(PARTS), 2, 0]]
