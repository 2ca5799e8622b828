"""Qwen-VL in conversations: what the caches give back, also where a conversation grows beyond the trained length."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from tiny_vlm import loud, picture

from qvl.engine.api import Request, Sampling
from qvl.engine.generate import Engine
from qvl.engine.limits import Limits
from qvl.inputs.processor import Processor
from qvl.models.qwen_vl.model import QwenVL
from qvl.train.build import build
from qvl.train.config import StageConfig, TrainConfig

TRAINED = 96
"""Tokens after which angles turn slower: a first turn stays below, a later one does not."""
CLOSE = 2e-5
"""Of log-probabilities; measured worst 6.7e-6."""


@pytest.fixture(scope="module")
def parts() -> tuple[QwenVL, Processor]:
    built = build(TrainConfig("unused", (StageConfig("one", trains=("text",), share=1),), model="tiny-qwen-vl"))
    config = built.model.config
    assert config.text.beyond is not None
    text = replace(config.text, beyond=replace(config.text.beyond, trained_len=TRAINED))
    model = QwenVL(replace(config, text=text, max_positions=1024)).eval()
    model.init_weights(0)
    loud(model)
    return model, built.processor.with_options(resize="exact", chat_format="chatml")


@pytest.fixture
def fresh(parts):
    return lambda **limits: Engine(*parts, Limits(page_tokens=8, **limits))


def turn(*shown: object) -> dict:
    content = [{"type": "text", "text": p} if isinstance(p, str) else {"type": "image", "image": p} for p in shown]
    return {"role": "user", "content": content}


def said(text: str) -> dict:
    return {"role": "assistant", "content": text}


def request(*messages: dict, tokens: int = 12) -> Request:
    return Request(list(messages), Sampling(max_new_tokens=tokens, stop_on_repetition=False))


def same(a, b) -> None:
    assert a.token_ids == b.token_ids
    assert a.text == b.text
    assert a.logprobs == pytest.approx(b.logprobs, abs=CLOSE)


@pytest.mark.slow
def test_a_second_question_about_a_picture_costs_no_vision_time(fresh):
    engine, seen = fresh(), picture(50, 80)
    engine.generate([request(turn(seen, "what?"))])
    second = engine.generate([request(turn(seen, "and where?"))])[0]
    assert second.usage.milliseconds["vision"] == 0
    assert second.usage.cache_hits == 1
    assert second.usage.cached_tokens >= second.usage.vision_tokens
    same(second, fresh().generate([request(turn(seen, "and where?"))])[0])


def test_a_picture_is_known_under_another_name(fresh, tmp_path):
    """The rows under a picture spell its path, but what is kept is told apart by pixels alone."""
    for name in ("a.png", "of another name.png"):
        Image.fromarray(picture(50, 80)).save(tmp_path / name)
    engine = fresh()
    first = engine.generate([request(turn(tmp_path / "a.png", "what?"))])[0]
    second = engine.generate([request(turn(tmp_path / "of another name.png", "what?"))])[0]
    assert second.usage.cache_hits == 1
    assert second.usage.cached_tokens >= first.usage.prompt_tokens - 8
    same(second, first)


@pytest.mark.parametrize("tokens", [7, 2048])
def test_a_conversation_that_outgrows_the_trained_length(fresh, tokens):
    """Within one step of the angles a turn goes on from the pages of the turn before; beyond it nothing is."""
    engine = fresh(max_batch_tokens=tokens)
    talk = [turn(picture(50, 80), "what is it?")]
    lengths, cached = [], []
    for question in (
        "and where is it in the picture?",
        "is there another one beside it, or below it?",
        "sure?",
        "and?",
    ):
        reply = engine.generate([request(*talk)])[0]
        same(reply, fresh().generate([request(*talk)])[0])
        lengths.append(reply.usage.prompt_tokens)
        cached.append(reply.usage.cached_tokens)
        talk += [said("it is a dog, and it stands on the left of the picture"), turn(question)]
    assert lengths[0] <= TRAINED < lengths[-1]
    steps = [int(np.ceil(np.log2(max(1, n / TRAINED)))) for n in lengths]
    for before, now, kept, length in zip(steps, steps[1:], cached[1:], lengths, strict=False):
        assert (kept >= length - 16) if before == now else (kept == 0), (lengths, cached)
    assert 0 in cached[1:]
    assert any(cached[1:])


@pytest.mark.slow
def test_a_reply_that_crosses_the_trained_length_keeps_its_angles(fresh):
    """Its prompt is below; what follows is as if the whole were computed at once with the prompt's angles."""
    ask = turn(picture(50, 80), "what is it?")
    alone = fresh().generate([request(ask, tokens=80)])[0]
    assert alone.usage.prompt_tokens < TRAINED < alone.usage.prompt_tokens + 80
    crowd = [
        request(ask, tokens=80),
        request(turn("a long way to go " * 12), tokens=30),
        request(turn("hi"), tokens=60),
    ]
    for reply, wanted in zip(fresh().generate(crowd), crowd, strict=True):
        same(reply, fresh().generate([wanted])[0])


@pytest.mark.slow
def test_a_full_cache_changes_no_answer(fresh):
    requests = [request(turn(picture(40, 40, i), "what? " * (1 + i)), tokens=40) for i in range(6)]
    engine = fresh(cache_tokens=240)
    replies = engine.generate(requests)
    assert engine.stats().preemptions > 0
    assert engine.stats().pages_used == 0
    for reply, wanted in zip(replies, requests, strict=True):
        same(reply, fresh().generate([wanted])[0])
