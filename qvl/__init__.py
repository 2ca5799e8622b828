"""Qwen-VL and Qwen2-VL, whole: train, evaluate, inspect and serve.

`qvl.load` and `qvl.VLM` are found on first use, so that `import qvl` (and `qvl --help`) brings in no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qvl.engine.vlm import VLM, load

__all__ = ["VLM", "load"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'qvl' has no attribute {name!r}; it has {', '.join(__all__)}")
    from qvl.engine import vlm

    return getattr(vlm, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
