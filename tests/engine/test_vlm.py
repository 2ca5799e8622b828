from __future__ import annotations

import inspect
import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_vlm import picture, user

import qvl
from qvl.engine import session
from qvl.engine.sampler import Choice
from qvl.engine.vlm import VLM
from qvl.inputs.processor import Processor, ProcessorConfig
from qvl.media.resize import Geometry, PixelBudget
from qvl.models.qwen2_vl.config import TokenIds
from qvl.models.qwen2_vl.model import Qwen2VL
from qvl.text.grounding import box, ref

MESSAGES = user(picture(60, 120), "the red circle")


@pytest.fixture(scope="module")
def folder(vlm, tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "model"
    vlm.save(path)
    return path


def test_saved_and_loaded_answers_the_same(vlm, folder):
    again = qvl.load(folder)
    assert isinstance(again, qvl.VLM)
    assert again.chat(MESSAGES, 10).token_ids == vlm.chat(MESSAGES, 10).token_ids
    assert again.processor.config == vlm.processor.config
    assert not any(m.training for m in again.model.modules())


def test_settings_survive_the_folder(model, tokenizer, tmp_path):
    config = ProcessorConfig(pixels=PixelBudget(28 * 28, 50 * 784), chat_format="raw")
    VLM(model, Processor(tokenizer, config)).save(tmp_path / "m")
    again = qvl.load(tmp_path / "m", resize="fast")
    assert again.processor.config == ProcessorConfig(pixels=config.pixels, chat_format="raw", resize="fast")
    again.processor = again.processor.with_options(chat_format="chatml")
    again.save(tmp_path / "m")  # over the old one
    assert qvl.load(tmp_path / "m").processor.config.chat_format == "chatml"
    assert len(list((tmp_path / "m").iterdir())) == 7


def test_folders_of_others_are_chatml(folder, tmp_path, vlm):
    vlm.save(tmp_path / "m")
    (tmp_path / "m/generation_config.json").unlink()
    assert qvl.load(tmp_path / "m").processor.config.chat_format == "chatml"
    (tmp_path / "m/generation_config.json").write_text('{"chat_format": "alpaca"}')
    with pytest.raises(ValueError, match="chat_format is 'alpaca'; known are chatml, raw"):
        qvl.load(tmp_path / "m")


def test_public_surface(vlm):
    batch = vlm.processor([MESSAGES, user("blue")], generation_prompt=True)
    with torch.no_grad():
        assert vlm.model(batch).shape == (len(batch.tokens_T), vlm.model.config.vocab_size)
    replies = vlm.chat_batch([MESSAGES, user("blue")], max_new_tokens=5)
    assert [r.token_ids for r in replies] == [vlm.chat(m, 5).token_ids for m in (MESSAGES, user("blue"))]
    stream = vlm.stream(MESSAGES, 5)
    assert stream.reply is None
    assert "".join(stream) == stream.reply.text == replies[0].text
    assert vlm.tokenizer is vlm.processor.tokenizer
    stopped = vlm.chat(MESSAGES, 5, stop=replies[0].text[1:])
    assert stopped.text == replies[0].text[:1]


def test_boxes_of_a_reply_are_pixels_of_the_picture_as_given(vlm, tokenizer, monkeypatch):
    """The model is made to say a box; the picture is 60 x 120 and is seen as 56 x 112."""
    said = [*tokenizer.encode(ref("circle") + box((250, 500, 750, 999)), markup=True), tokenizer.special("<|im_end|>")]
    script = iter(said)
    monkeypatch.setattr(session, "choose_tokens", lambda logits_BV, samplers: [Choice(next(script), 0.0)])
    reply = vlm.chat(MESSAGES)
    assert reply.text == "<|object_ref_start|>circle<|object_ref_end|><|box_start|>(250,500),(750,999)<|box_end|>"
    assert [(b.label, b.xyxy, b.image) for b in reply.boxes] == [("circle", (30, 30, 90, 60), 0)]
    assert reply.finish_reason == "stop"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "int8"}, "dtype 'int8' is unknown; choose one of float32, bfloat16, float16"),
        ({"dtype": "float16"}, "float16 on the CPU is refused"),
        ({"device": "toaster"}, "device 'toaster' is unknown"),
        ({"quantize": "int3"}, "quantize 'int3' is unknown; choose one of int8, int4, or None"),
        ({"quantize": "int8", "dtype": "float32"}, "quantize='int8' computes in bfloat16, not in float32"),
        ({"resize": "lanczos"}, "resize 'lanczos' is unknown"),
    ],
)
def test_options_that_cannot_be_met_are_refused(folder, options, message):
    with pytest.raises(ValueError, match=message):
        qvl.load(folder, **options)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        qvl.load(tmp_path / "nowhere")


def test_parts_of_different_models_are_refused(model, processor, tokenizer):
    with pytest.raises(ValueError, match=r"tokenizer has \d+ ids but the model's embedding only 64 rows"):
        VLM(Qwen2VL(replace(model.config, vocab_size=64)), processor)
    with pytest.raises(ValueError, match=r"<\|image_pad\|> is id \d+ in the tokenizer and 151655 in config.json"):
        VLM(Qwen2VL(replace(model.config, ids=TokenIds())), processor)
    with pytest.raises(ValueError, match="temporal"):
        VLM(model, Processor(tokenizer, ProcessorConfig(geometry=Geometry(temporal=1))))
    with pytest.raises(ValueError, match="1 axes"):
        VLM(model, Processor(tokenizer, ProcessorConfig(rope_axes=1)))


def test_importing_the_package_brings_in_no_torch():
    code = "import qvl, sys; assert 'torch' not in sys.modules; assert 'load' in dir(qvl)"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        qvl.lod  # noqa: B018


@pytest.mark.slow
def test_transformers_reads_the_folder_and_generates_the_same(vlm, folder):
    """Weights, tokenizer, template, picture processing and three-axis positions while decoding, all at once."""
    transformers = pytest.importorskip("transformers")
    from PIL import Image

    theirs = transformers.Qwen2VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    images = transformers.Qwen2VLImageProcessor.from_pretrained(folder)
    pixels = picture(90, 140)
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "the red circle"}]}]
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    seen = images([Image.fromarray(pixels)], return_tensors="pt")
    count = int(seen["image_grid_thw"].prod()) // 4
    inputs = tokenizer(prompt.replace("<|image_pad|>", "<|image_pad|>" * count), return_tensors="pt")
    extra = {}
    if "mm_token_type_ids" in inspect.signature(theirs.forward).parameters:
        extra["mm_token_type_ids"] = (inputs["input_ids"] == theirs.config.image_token_id).int()
    kept = {"output_logits": True, "return_dict_in_generate": True}
    with torch.no_grad():
        out = theirs.generate(**inputs, **seen, **extra, max_new_tokens=20, do_sample=False, **kept)
    reply = vlm.chat(user(pixels, "the red circle"), max_new_tokens=20)
    ids = out.sequences[0, inputs["input_ids"].shape[1] :].tolist()
    assert list(reply.token_ids) == ids
    logprobs = [float(logits[0].log_softmax(-1)[i]) for logits, i in zip(out.logits, ids, strict=True)]
    # worst seen 4.3e-6
    np.testing.assert_allclose(reply.logprobs, logprobs, atol=5e-5)


def test_the_chat_form_stands_where_official_folders_have_it(folder):
    assert json.loads((folder / "generation_config.json").read_text())["chat_format"] == "chatml"


def test_words_without_end_are_refused_before_they_are_encoded(vlm, monkeypatch):
    short, long = user("word " * 1000), user("word ", "word " * 1_000_000)
    encode = type(vlm.tokenizer).encode
    monkeypatch.setattr(
        type(vlm.tokenizer), "encode", lambda self, text, **k: encode(self, text, **k) if len(text) < 9999 else 1 / 0
    )
    for words in (short, long):
        with pytest.raises(ValueError, match=r"the prompt has at least \d+ tokens .*the model's context is 512"):
            vlm.chat(words)
