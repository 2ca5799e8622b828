"""The tokenizer files of a checkpoint folder in the Hugging Face layout.

Knows: tokenizer.json, tokenizer_config.json, chat_template.jinja.
Does not know: how text is encoded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qvl.text.template import CHAT_TEMPLATE

_FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}


def read_folder(path: str | Path) -> tuple[str, dict[str, int]]:
    """Reads `path`/tokenizer.json and takes its added tokens out.

    Returns:
        The JSON of a backend that holds ordinary tokens only, and spelling -> id of every added token.

    Raises:
        FileNotFoundError: the folder or its tokenizer.json is missing.
        ValueError: the file is not JSON, or not byte-level BPE.
    """
    file = Path(path) / "tokenizer.json"
    if not file.is_file():
        raise FileNotFoundError(
            f"no tokenizer.json in {Path(path)}; give a checkpoint folder in the Hugging Face layout "
            "(Tokenizer.save writes one; vocab.json with merges.txt is not read)"
        )
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        kind, vocab = content["model"]["type"], content["model"]["vocab"]
        specials = {token["content"]: token["id"] for token in content["added_tokens"]}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is not a tokenizer.json ({type(error).__name__}: {error})") from error
    if kind != "BPE" or (content.get("decoder") or {}).get("type") != "ByteLevel":
        raise ValueError(f"{file} holds a {kind} tokenizer; only byte-level BPE is read")
    for name in specials:
        vocab.pop(name, None)
    content["added_tokens"] = []
    return json.dumps(content), specials


def write_folder(folder: str | Path, backend_json: str, specials: Mapping[str, int]) -> None:
    """Writes the three files; makes the folder if it is missing, replaces files of these names.

    Args:
        backend_json: as `read_folder` returns it.
        specials: spelling -> id, in id order.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    content = json.loads(backend_json)
    content["added_tokens"] = [{"id": i, "content": name, **_FLAGS} for name, i in specials.items()]
    config = json.dumps(_config(specials), indent=2, ensure_ascii=False) + "\n"
    (folder / "tokenizer.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(config, encoding="utf-8")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")


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
