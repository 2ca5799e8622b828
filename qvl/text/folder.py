"""The tokenizer files of a checkpoint folder, in the Hugging Face layout (Qwen2-VL) and in Qwen-VL's own.

Knows: tokenizer.json, tokenizer_config.json, chat_template.jinja; qwen.tiktoken.
Does not know: how text is encoded.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from qvl.text.template import CHAT_TEMPLATE
from qvl.text.vocabulary import parse_ranks, write_ranks

TOKENIZER_FILE = "tokenizer.json"
RANKS_FILE = "qwen.tiktoken"

_FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}


def read_folder(path: str | Path) -> tuple[dict[str, Any], dict[str, int]]:
    """Reads `path`/tokenizer.json and takes its added tokens out, and what it says of truncation and padding.

    The tokenizers package keeps the last call's limits in the file (of a training run, say). They are no part of the
    vocabulary: transformers sets them anew for every call too.

    Returns:
        The file's content with ordinary tokens only, and spelling -> id of every added token.

    Raises:
        FileNotFoundError: the folder or its tokenizer.json is missing.
        ValueError: the file is not JSON, or not byte-level BPE.
    """
    file = Path(path) / TOKENIZER_FILE
    if not file.is_file():
        raise FileNotFoundError(
            f"no {TOKENIZER_FILE} in {Path(path)}, and no {RANKS_FILE}; give a checkpoint folder in the Hugging Face "
            "layout or one of Qwen-VL (Tokenizer.save writes both kinds; vocab.json with merges.txt is not read)"
        )
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        model = content["model"]
        kind = model["type"]
        specials = {token["content"]: int(token["id"]) for token in content["added_tokens"]}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is not a tokenizer.json ({type(error).__name__}: {error})") from error
    if kind != "BPE" or (content.get("decoder") or {}).get("type") != "ByteLevel":
        raise ValueError(f"{file} holds a {kind} tokenizer; only byte-level BPE is read")
    vocab = model.get("vocab")
    if not isinstance(vocab, dict) or not all(type(token_id) is int for token_id in vocab.values()):
        raise ValueError(f"{file}: model.vocab must map tokens to whole numbers; copy or download the file again")
    if not isinstance(model.get("merges"), list):
        raise ValueError(f"{file}: model.merges must be a list; copy or download the file again")
    for name in specials:
        vocab.pop(name, None)
    return {**content, "added_tokens": [], "truncation": None, "padding": None}, specials


def write_folder(folder: str | Path, backend_json: str, specials: Mapping[str, int]) -> None:
    """Writes the three files; makes the folder if it is missing, replaces files of these names.

    Args:
        backend_json: a tokenizer.json that holds ordinary tokens only.
        specials: spelling -> id, in id order.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    content = json.loads(backend_json)
    content["added_tokens"] = [{"id": i, "content": name, **_FLAGS} for name, i in specials.items()]
    config = json.dumps(_config(specials), indent=2, ensure_ascii=False) + "\n"
    (folder / TOKENIZER_FILE).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(config, encoding="utf-8")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")


def has_tokenizer(path: str | Path) -> bool:
    """Whether a folder holds a vocabulary that `Tokenizer.from_folder` reads."""
    return (Path(path) / TOKENIZER_FILE).is_file() or has_ranks(path)


def has_ranks(path: str | Path) -> bool:
    """Whether a folder's vocabulary is its qwen.tiktoken: there is one and no tokenizer.json."""
    return (Path(path) / RANKS_FILE).is_file() and not (Path(path) / TOKENIZER_FILE).is_file()


def read_ranks(path: str | Path) -> list[bytes]:
    """The ordinary tokens of `path`/qwen.tiktoken in id order. Special tokens are not in the file: Qwen-VL's
    tokenizer puts its own right behind.

    Raises:
        ValueError: the file is not `base64 rank` lines, or the single bytes are missing.
    """
    file = Path(path) / RANKS_FILE
    try:
        tokens = parse_ranks(file.read_bytes())
    except ValueError as error:
        raise ValueError(f"{file} is not a vocabulary of `base64 rank` lines: {error}") from error
    if len({token for token in tokens[:256] if len(token) == 1}) < 256:
        raise ValueError(f"{file} does not begin with the 256 single bytes; it is not a Qwen vocabulary")
    return tokens


def write_ranks_folder(folder: str | Path, tokens: Iterable[bytes]) -> None:
    """Writes qwen.tiktoken and tokenizer_config.json; makes the folder if it is missing.

    The official tokenizer class is code that the official folders carry; the written settings name it there, so that
    transformers (with `trust_remote_code=True`) finds it.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RANKS_FILE).write_bytes(write_ranks(tokens))
    config = {
        "model_max_length": 8192,
        "tokenizer_class": "QWenTokenizer",
        "auto_map": {"AutoTokenizer": ["Qwen/Qwen-VL--tokenization_qwen.QWenTokenizer", None]},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _config(specials: Mapping[str, int]) -> dict[str, Any]:
    """The fields of an official Qwen2-VL tokenizer_config.json; left padding for batches."""
    return {
        "tokenizer_class": "Qwen2Tokenizer",
        "add_prefix_space": False,
        "added_tokens_decoder": {str(i): {"content": name, **_FLAGS} for name, i in specials.items()},
        "additional_special_tokens": [name for name in specials if name != "<|endoftext|>"],
        "bos_token": None,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": 32768,
        "pad_token": "<|endoftext|>",
        "padding_side": "left",
        "split_special_tokens": False,
        "unk_token": None,
    }
