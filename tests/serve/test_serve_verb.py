"""`qvl serve` with a small random model, from the command to the client."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import openai
import pytest
from live_server import data_uri, picture, png

from qvl.cli.arguments import parse
from qvl.cli.serve import _read_keys, serve
from qvl.engine.vlm import VLM
from qvl.inputs.processor import Processor
from qvl.layers.decoder import DecoderConfig
from qvl.models.qwen2_vl.config import Qwen2VLConfig, VisionConfig, with_vocabulary
from qvl.models.qwen2_vl.model import Qwen2VL
from qvl.text.tokenizer import Tokenizer
from qvl.train.build import token_ids


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tokenizer = Tokenizer.reduced(["Where is the cat?"], 64)
    sizes = Qwen2VLConfig(
        DecoderConfig(48, 1, 4, 2, 12, 64, rope_sections=(2, 2, 2)),
        VisionConfig(width=32, layers=1, heads=2, mlp_hidden=64),
        max_positions=512,
    )
    model = Qwen2VL(with_vocabulary(sizes, tokenizer.vocab_size, token_ids(tokenizer))).eval()
    model.init_weights(0)
    VLM(model, Processor(tokenizer)).save(tmp_path / "small-model")
    return tmp_path / "small-model"


@pytest.mark.slow
def test_from_the_command_to_the_client(folder: Path):
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "qvl", "serve", str(folder), "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=root) as process:
        assert process.stderr is not None
        told = ""
        while "/v1" not in told:
            line = process.stderr.readline()
            assert line, told
            told += line
        address = re.search(r"http://127\.0\.0\.1:\d+/v1", told)
        assert address is not None
        with openai.OpenAI(base_url=address.group(), api_key="none", max_retries=5) as client:
            assert [model.id for model in client.models.list()] == ["small-model"]
            content = [picture(data_uri(png())), {"type": "text", "text": "Where is the cat?"}]
            ask = {"model": "small-model", "messages": [{"role": "user", "content": content}], "max_tokens": 6}
            reply = client.chat.completions.create(**ask)
            stream = client.chat.completions.create(**ask, stream=True)
            pieces = "".join(c.choices[0].delta.content or "" for c in stream if c.choices)
            assert pieces == reply.choices[0].message.content
            assert reply.usage.completion_tokens <= 6
            assert reply.usage.model_extra["resized_to"] == [[56, 84]]  # 40 x 60 pixels, at least 3,136 of them
            with pytest.raises(openai.BadRequestError, match="context is 512"):
                client.chat.completions.create(**ask | {"max_tokens": 600})
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


def test_the_model_is_given_by_place():
    options = parse("serve", "", serve, ["runs/demo/model", "--port", "9", "--allowed-media-domains", "[a.com, b.com]"])
    assert options is not None
    assert (options["model"], options["port"], options["host"]) == ("runs/demo/model", 9, "127.0.0.1")
    assert options["allowed_media_domains"] == ["a.com", "b.com"]


def test_keys_come_from_a_file(tmp_path: Path):
    file = tmp_path / "keys"
    file.write_text("# people\nkey-1\n\n key-2 \n")
    assert _read_keys(file) == ("key-1", "key-2")
    file.write_text("\n")
    with pytest.raises(ValueError, match="holds no key"):
        _read_keys(file)
