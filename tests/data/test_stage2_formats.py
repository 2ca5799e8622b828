"""The seven formats of Qwen-VL's multi-task stage (arXiv 2308.12966, appendix B.1), from the embedded world.

Checked on the ids that are trained on: rendered raw, decoded with Qwen-VL's own spelling. Where the published examples
do not settle the blanks, these rules hold: a prompt follows `</img>` directly (as in the official evaluation prompts,
`<img>{}</img>{question} Answer:`), English answers that are words start with a space, a place follows its reference
directly and has no blanks inside.
"""

from __future__ import annotations

import re

import pytest

from qvl.batch import IGNORE
from qvl.data.fitting import prepare
from qvl.data.world import World, WorldConfig
from qvl.inputs.processor import Processor, ProcessorConfig
from qvl.text.family import QWEN_VL
from qvl.text.tokenizer import Tokenizer

NAME = r"[\w -]+"
BOX = r"<box>\(\d+,\d+\),\(\d+,\d+\)</box>"
QUAD = r"<quad>\(\d+,\d+\),\(\d+,\d+\),\(\d+,\d+\),\(\d+,\d+\)</quad>"
END = re.escape("<|endoftext|>")

FORMATS = {  # task of the world: (paper's task, context, learned)
    "caption": (
        r"<img></img>(Generate the caption in English|Describe the picture in detail in English):",
        rf" {NAME}.*",
    ),
    "exists": (r"<img></img>Is there .+\? Answer:", r" (yes|no)"),
    "caption_grounded": (
        r"<img></img>Generate the caption in English with grounding:",
        rf" (?:<ref>{NAME}</ref>{BOX}[^<]*)+",
    ),
    "grounding": (rf"<img></img><ref>the {NAME}</ref>", BOX),
    "referring": (rf"<img></img><ref>the {NAME}</ref>", BOX),
    "box_to_name": (rf"<img></img><ref>This</ref>{BOX} is", rf" {NAME}"),
    "ocr": (r"<img></img>OCR with grounding:", rf" (?:<ref>[^<]+</ref>{QUAD})+"),
    "text": (r"A picture of .+", r".+"),
}


@pytest.fixture(scope="module")
def processor() -> Processor:
    world = World(WorldConfig())
    return Processor(Tokenizer.reduced(world.lexicon(), 0, QWEN_VL), ProcessorConfig.qwen_vl(56, 4))


@pytest.mark.parametrize("task", FORMATS)
def test_format(processor: Processor, task: str) -> None:
    world = World(WorldConfig(zh=0.0, turns=1, style="pretrain"))
    context_form, answer_form = FORMATS[task]
    seen = 0
    for index in range(40):
        sample = world.sample("train", index, task)
        if task == "ocr" and not sample.meta["turns"][0]["about"]["grounded"]:
            continue
        (sequence,) = prepare(sample, processor, "raw")
        context, learned = spelled(processor.tokenizer, sequence.tokens_T.tolist(), sequence.labels_T.tolist())
        assert re.fullmatch(context_form, context), context
        assert re.fullmatch(answer_form + END, learned), learned
        seen += 1
    assert seen >= 10


def spelled(tokenizer: Tokenizer, ids: list[int], labels: list[int]) -> tuple[str, str]:
    """Context and target as text with every special token, slots left out."""
    pad = tokenizer.special("<imgpad>")
    parts: dict[bool, bytes] = {False: b"", True: b""}
    for previous, token in zip([IGNORE, *labels], ids, strict=False):
        parts[previous != IGNORE] += b"" if token == pad else tokenizer.token_bytes(token)
    return parts[False].decode(), parts[True].decode()


def test_chinese_and_chat_styles_keep_the_marks(processor: Processor) -> None:
    world = World(WorldConfig(zh=1.0, turns=1, style="pretrain"))
    (sequence,) = prepare(world.sample("train", 0, "caption_grounded"), processor, "raw")
    context, learned = spelled(processor.tokenizer, sequence.tokens_T.tolist(), sequence.labels_T.tolist())
    assert context == "<img></img>用中文描述图片并给出位置："
    assert re.fullmatch(rf"(?:<ref>[^<]+</ref>{BOX}[^<]*)+{END}", learned)
    (sequence,) = prepare(
        World(WorldConfig(zh=0.0, turns=1, style="chat")).sample("train", 3, "grounding"), processor, "chatml"
    )
    text = "".join(spelled(processor.tokenizer, sequence.tokens_T.tolist(), [IGNORE] * len(sequence.tokens_T)))
    assert re.search(r"user\nPicture 1: <img></img>\nGive the box of .+\.<\|im_end\|>\n", text)
    assert re.search(rf"assistant\n<ref>.+</ref>{BOX}<\|im_end\|>\n$", text)
