"""The front door: a model, its processor and an engine, loaded from a folder and saved into one.

Knows: what makes a folder whole. Does not know: how replies are computed (`qvl.engine.generate`), which processor
belongs to which model (`qvl.engine.pairing`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack, final, get_args

import torch

from qvl.checkpoint.adapter import load_adapter
from qvl.checkpoint.configs import read_config
from qvl.checkpoint.folder import load_model, save_model
from qvl.checkpoint.hub import resolve
from qvl.checkpoint.stage import staged_folder
from qvl.checkpoint.weights import OLD_FILES
from qvl.engine.api import Reply, Request, Sampling
from qvl.engine.generate import Engine
from qvl.engine.limits import Limits
from qvl.engine.live import Live
from qvl.engine.native.packing import Quantize
from qvl.engine.pairing import PROCESSOR_FILES, check_match, processor_for, save_processor
from qvl.engine.quicken import Packer, is_packed, quicken
from qvl.inputs.processor import Processor, Resize
from qvl.models.lora import merge_lora
from qvl.models.vlm import VisionLanguageModel
from qvl.text.messages import Message
from qvl.text.tokenizer import Tokenizer

Messages = Sequence[Mapping[str, Any] | Message]
Dtype = Literal["float32", "bfloat16", "float16"]
_DTYPES: dict[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class SamplingOptions(TypedDict, total=False):
    """What can be asked of a reply besides its length and temperature (`qvl.engine.api.Sampling`)."""

    top_k: int
    """Only the k most likely tokens; 0 = all."""
    top_p: float
    """Of these the fewest that reach this probability; 1 = all."""
    repetition_penalty: float
    """1 = none."""
    seed: int | None
    """The same seed gives the same sample; None = another each time."""
    stop: str | Sequence[str] | None
    """Text (or texts) that ends the reply."""
    logprobs: bool
    """Record `Reply.token_logprobs`."""
    top_logprobs: int
    """... with so many alternatives, 0 to 20."""
    json_schema: str | Mapping[str, Any] | None
    """The reply must be JSON that fits; {} = any object."""
    stop_on_repetition: bool
    """End a reply that repeats itself for ever (the default)."""


@final
class VLM:
    """A vision-language model that can be talked to.

    `processor([messages], generation_prompt=True)` is a packed `Batch`, `model(batch)` its logits [T, V].
    """

    def __init__(self, model: VisionLanguageModel, processor: Processor, limits: Limits | None = None) -> None:
        """
        Raises:
            ValueError: the processor's vocabulary or geometry is not the model's.
        """
        check_match(model.config, processor)
        self.model = model
        self.processor = processor
        self.engine = Engine(model, processor, limits)

    @property
    def tokenizer(self) -> Tokenizer:
        return self.processor.tokenizer

    def chat(
        self,
        messages: Messages,
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        **options: Unpack[SamplingOptions],
    ) -> Reply:
        """Answers one conversation.

        Args:
            messages: OpenAI-style: `[{"role": "user", "content": [{"type": "image", "image": "cat.jpg"}, ...]}]`.
            temperature: 0 = always the most likely token.
            options: see `SamplingOptions`.

        Raises:
            ValueError, FileNotFoundError: what cannot be answered, and why.
        """
        return self.engine.generate([Request(messages, _sampling(max_new_tokens, temperature, options))])[0]

    def chat_batch(
        self,
        conversations: Sequence[Messages],
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        **options: Unpack[SamplingOptions],
    ) -> list[Reply]:
        """Answers several conversations together; each gets what it would get alone."""
        sampling = _sampling(max_new_tokens, temperature, options)
        return self.engine.generate([Request(messages, sampling) for messages in conversations])

    def stream(
        self,
        messages: Messages,
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        **options: Unpack[SamplingOptions],
    ) -> ReplyStream:
        """Text as it is generated: `for piece in vlm.stream(messages): ...`; afterwards `.reply` holds the whole."""
        sampling = _sampling(max_new_tokens, temperature, options)
        return ReplyStream(self.engine.stream(Request(messages, sampling)))

    def live(self, model_name: str = "qvl", limits: Limits | None = None) -> Live:
        """An engine in a thread of its own, for many callers at once; with caches of its own. Close it in the end."""
        return Live(self.model, self.processor, limits or self.engine.limits, model_name)

    def save(self, folder: str | Path) -> None:
        """Writes everything into `folder`, so that `load`, transformers and vLLM read it. Whole or not at all.

        Raises:
            OSError: the disk is full; nothing is changed then.
            ValueError: the format cannot express the model's configuration, or its weights were packed.
        """
        if is_packed(self.model):
            raise ValueError("the model's weights were rounded to integers by quantize: load it without, and save that")
        with staged_folder(Path(folder), replaces=(*OLD_FILES, *PROCESSOR_FILES)) as stage:
            save_model(self.model, stage)
            save_processor(self.processor, stage)


@final
class ReplyStream:
    """Iterates over pieces of text; their concatenation is the reply's text."""

    def __init__(self, pieces: Iterator[str | Reply]) -> None:
        self._pieces = pieces
        self.reply: Reply | None = None
        """The whole reply, once the pieces are used up."""

    def __iter__(self) -> Iterator[str]:
        for piece in self._pieces:
            if isinstance(piece, Reply):
                self.reply = piece
            else:
                yield piece


def load(
    path_or_id: str | Path,
    device: str = "cpu",
    dtype: Dtype | None = None,
    quantize: Quantize | None = None,
    lora: str | Path | None = None,
    resize: Resize = "exact",
) -> VLM:
    """Loads a model folder in the Hugging Face layout, or a hub id such as "Qwen/Qwen2-VL-2B-Instruct".

    On the CPU, weights that are stored as `dtype` stay in their files, which are mapped. While the model lives such a
    file may be replaced, as downloads and `save` do, but not written into.

    Args:
        dtype: "float32", "bfloat16" or (not on the CPU) "float16"; None = "float32", with `quantize` "bfloat16".
        quantize: "int8" or "int4" = keep the language model's weights as integers, a half or a quarter of the memory
            of bfloat16 and so much faster to answer with on a CPU; docs/speed.md says what it costs. Cannot be saved.
        lora: folder (or hub id) of an adapter in PEFT's layout; it is added to the weights.
        resize: "exact" = the reference's pixels; "fast" = several times faster, a grey level or two off.

    Raises:
        FileNotFoundError: no such folder, or a file of it is missing.
        ValueError: an option or a file says something that is not implemented, or the adapter is another model's.
    """
    dtype = dtype or ("float32" if quantize is None else "bfloat16")
    if dtype not in _DTYPES:
        raise ValueError(f"dtype {dtype!r} is unknown; choose one of {', '.join(_DTYPES)}")
    if resize not in get_args(Resize):
        raise ValueError(f"resize {resize!r} is unknown; choose one of {', '.join(get_args(Resize))}")
    if quantize is not None and quantize not in get_args(Quantize):
        raise ValueError(f"quantize {quantize!r} is unknown; choose one of {', '.join(get_args(Quantize))}, or None")
    if quantize is not None and dtype != "bfloat16":
        raise ValueError(f"quantize={quantize!r} computes in bfloat16, not in {dtype}; leave dtype out")
    folder = resolve(path_or_id)
    packer = None if quantize is None or lora is not None else Packer(quantize)
    with ThreadPoolExecutor(1, "tokenizer") as beside:  # a large vocabulary takes as long as a small model's weights
        processor = beside.submit(processor_for, read_config(folder), folder, resize)
        model = load_model(folder, device=_device(device), dtype=_DTYPES[dtype], mapped=True, filled=packer).eval()
        if lora is not None:
            load_adapter(model, resolve(lora))
            merge_lora(model)
        quicken(model, quantize)
        return VLM(model, processor.result())


def _sampling(max_new_tokens: int, temperature: float, options: SamplingOptions) -> Sampling:
    given: dict[str, Any] = {**options}
    stop, schema = options.get("stop", ()), options.get("json_schema")
    given["stop"] = (stop,) if isinstance(stop, str) else tuple(stop or ())
    given["json_schema"] = json.dumps(schema) if isinstance(schema, Mapping) else schema
    return Sampling(max_new_tokens, temperature, **given)


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device {name!r} is unknown; use cpu, cuda, cuda:1, mps ...") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {name!r} was asked for, but torch finds no CUDA device here; use device='cpu'")
    return device
