"""A quick model answers what the slow one would, as far as bfloat16 goes, and the same alone and in a crowd."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy

import pytest
import torch
from quick_model import made, needs_kernels, quick
from tiny_vlm import picture, user

import qvl
from qvl.engine.api import Request, Sampling
from qvl.engine.generate import Engine
from qvl.engine.limits import Limits
from qvl.engine.native import ops
from qvl.engine.native.modules import NativeDecoderLayer, NativeVisionBlock, PackedEmbedding, PackedLinear
from qvl.engine.native.workspace import Workspace
from qvl.engine.vlm import VLM
from qvl.layers.attention import PackedContext
from qvl.models.qwen2_vl.model import Qwen2VL

REQUESTS = [
    Request(user(picture(90, 140), "red circle"), Sampling(max_new_tokens=12)),
    Request(user("blue"), Sampling(max_new_tokens=30)),
    Request(user(picture(60, 60, 1), picture(30, 200, 2), "left of"), Sampling(max_new_tokens=25)),
    Request(user("the square is red " * 30), Sampling(max_new_tokens=20)),
    Request(user("sampled"), Sampling(max_new_tokens=20, temperature=1.0, seed=5)),
]
HOW = [None, "int8", "int4"]


@pytest.fixture(scope="module")
def slow(tokenizer) -> Qwen2VL:
    return made(tokenizer)


@pytest.fixture(scope="module", params=HOW)
def fast(slow, request) -> Qwen2VL:
    return quick(slow, request.param)


@pytest.mark.slow
@needs_kernels
@pytest.mark.parametrize(
    "limits",
    [
        Limits(max_rows=3, max_batch_tokens=60),
        Limits(max_rows=1),
        Limits(max_batch_tokens=23, cache_tokens=512),
        Limits(page_tokens=16),
    ],
)
def test_replies_are_the_same_bits_in_any_company(fast, processor, limits):
    together = Engine(fast, processor, limits).generate(REQUESTS)
    for request, reply in zip(REQUESTS, together, strict=True):
        alone = Engine(fast, processor).generate([request])[0]
        assert reply.token_ids == alone.token_ids
        assert reply.logprobs == alone.logprobs  # not nearly: exactly


@needs_kernels
def test_only_the_last_row_goes_through_the_last_layer(fast, processor):
    rows: dict[int, list[int]] = {0: [], 1: []}
    hooks = [
        fast.decoder.layers[i].mlp.down.register_forward_pre_hook(lambda _, given, i=i: rows[i].append(len(given[0])))
        for i in rows
    ]
    reply = Engine(fast, processor).generate([Request(REQUESTS[1].messages, Sampling(max_new_tokens=2))])[0]
    for hook in hooks:
        hook.remove()
    assert rows == {0: [reply.usage.prompt_tokens, 1], 1: [1, 1]}


@needs_kernels
@torch.no_grad()
def test_chosen_rows_are_the_same_bits(fast, processor):
    batch = processor([r.messages for r in REQUESTS], generation_prompt=True)
    attn = PackedContext(batch)
    vision_MD = fast.see(batch, attn)
    assert torch.equal(
        fast.hidden(batch, vision_MD, attn, batch.last_rows), fast.hidden(batch, vision_MD, attn)[batch.last_rows]
    )


@needs_kernels
def test_several_threads_answer_with_one_model(fast, processor):
    """Each has a workspace of its own; so has a copy of the model."""
    alone = [Engine(fast, processor).generate([r])[0].logprobs for r in REQUESTS]
    with ThreadPoolExecutor(3) as threads:
        together = list(threads.map(lambda r: Engine(fast, processor).generate([r])[0].logprobs, REQUESTS))
    assert together == alone
    assert deepcopy(fast).decoder.layers[0].room is not fast.decoder.layers[0].room


def test_memory_is_used_again():
    room = Workspace()
    first, other = room.take("a", 3, 5), room.take("b", 3, 5)
    assert first.shape == (3, 5)
    assert first.dtype == torch.bfloat16
    assert room.take("a", 7, 2).data_ptr() == first.data_ptr() != other.data_ptr()
    larger = room.take("a", 100)
    assert room.take("a", 2).data_ptr() == larger.data_ptr()
    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(lambda: room.take("a", 2).data_ptr()).result() != larger.data_ptr()
    assert pickle.loads(pickle.dumps(room)).take("a", 1).data_ptr() != larger.data_ptr()


@torch.no_grad()
def test_error_against_float32(slow, processor):
    """Of the logits, relative. Kernels round no more often than torch does in bfloat16."""
    batch = processor([r.messages for r in REQUESTS], generation_prompt=True)
    exact = slow(batch)

    def error(model: Qwen2VL) -> float:
        return float((model(batch).float() - exact).norm() / exact.norm())

    plain = error(deepcopy(slow).to(torch.bfloat16))
    assert plain < 0.03  # 0.0165 measured
    assert error(quick(slow)) < 1.1 * plain  # 0.0160
    assert error(quick(slow, "int8")) < 2.5 * plain  # 0.031
    assert error(quick(slow, "int4")) < 0.5  # 0.37: loud random weights are the worst case for four bits


@torch.no_grad()
@pytest.mark.parametrize("how", HOW)
def test_without_kernels_the_same_up_to_rounding(slow, processor, how, monkeypatch):
    batch = processor([r.messages for r in REQUESTS], generation_prompt=True)
    with_kernels = quick(slow, how)(batch)
    monkeypatch.setattr(ops, "available", lambda: False)
    without = quick(slow, how)
    assert not any(isinstance(m, NativeDecoderLayer) for m in without.modules())
    if how:
        assert isinstance(without.head, PackedLinear)
    difference = (without(batch).float() - with_kernels.float()).norm() / with_kernels.float().norm()
    assert difference < 0.03  # worst seen 0.015: two ways of rounding to bfloat16


@needs_kernels
def test_which_layers_are_exchanged(slow):
    model = quick(slow, "int8")
    assert isinstance(model.embed, PackedEmbedding)
    assert model.embed.packed is model.head.packed  # tied, and packed once
    assert all(isinstance(layer, NativeDecoderLayer) for layer in model.decoder.layers)
    assert all(isinstance(block, NativeVisionBlock) for block in model.visual.blocks)
    assert not any(isinstance(m, PackedLinear) for m in model.visual.modules())
    names = {name for name, _ in model.named_parameters()}
    assert names <= {name for name, _ in slow.named_parameters()}
    assert {name for name, _ in quick(slow).named_parameters()} == {name for name, _ in slow.named_parameters()}


@needs_kernels
def test_gradients_flow_as_before(slow, processor):
    """Whoever wants gradients gets torch's."""
    batch = processor([user("blue")], generation_prompt=True)
    model, plain = quick(slow), deepcopy(slow).to(torch.bfloat16)
    for m in (model, plain):
        m(batch).float().logsumexp(-1).sum().backward()
    a, b = (m.decoder.layers[0].qkv.weight.grad for m in (model, plain))
    assert torch.equal(a, b)


def test_folders(slow, processor, tmp_path):
    """Loaded in bfloat16 a model can be saved again, bit for bit; a packed one answers as one packed in memory."""
    VLM(deepcopy(slow).to(torch.bfloat16), processor).save(tmp_path / "m")
    loaded = qvl.load(tmp_path / "m", dtype="bfloat16")
    loaded.save(tmp_path / "again")
    names = "model.safetensors"
    assert (tmp_path / "m" / names).read_bytes() == (tmp_path / "again" / names).read_bytes()
    messages = user(picture(60, 60, 1), "left of")
    for how in ("int8", "int4"):
        vlm = qvl.load(tmp_path / "m", quantize=how)
        assert vlm.model.embed.weight.dtype == torch.bfloat16
        here = VLM(quick(slow, how), processor)
        assert vlm.chat(messages, 10).logprobs == here.chat(messages, 10).logprobs
        with pytest.raises(ValueError, match="rounded to integers by quantize: load it without"):
            vlm.save(tmp_path / "packed")


@needs_kernels
def test_no_parameter_has_two_names(slow):
    names = [name for name, _ in quick(slow).named_parameters(remove_duplicate=False)]
    assert sorted(names) == sorted(name for name, _ in slow.named_parameters(remove_duplicate=False))
