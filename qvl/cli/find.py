"""A model by the name that a person gives: a preset, a folder, a hub id.

Knows: how presets may be shortened. Does not know: weights; of a hub repository only the small json files are fetched.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qvl.checkpoint.hf_settings import Preprocessing
    from qvl.models.qwen2_vl.config import Qwen2VLConfig


def find_qwen2_vl(name: str) -> tuple[Qwen2VLConfig, Preprocessing]:
    """Sizes and pixel settings of a Qwen2-VL: `tiny`, `qwen2-vl-2b` or `2b`, a folder, or a hub id.

    Raises:
        FileNotFoundError: none of these.
        ValueError: a folder of another family, or one that is damaged.
    """
    from qvl.checkpoint.hf_config import read_config
    from qvl.checkpoint.hf_settings import Preprocessing, read_preprocessing
    from qvl.checkpoint.hub import resolve
    from qvl.models.qwen2_vl.config import PRESETS, preset

    full = f"qwen2-vl-{name.lower()}"
    if name in PRESETS or full in PRESETS:
        return preset(name if name in PRESETS else full), Preprocessing()
    try:
        folder = resolve(name, weights=False)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}. Presets: {', '.join(PRESETS)}") from None
    return read_config(folder), read_preprocessing(folder)
