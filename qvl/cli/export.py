"""`qvl export`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal


def export(
    run: Path,
    folder: Path,
    *,
    merge: bool = False,
    dtype: Literal["float32", "bfloat16"] | None = None,
) -> None:
    """Writes the model of a training run, as last saved, into a folder that transformers, vLLM and qvl load.

    The run may go on meanwhile. A run with adapters gives an adapter folder in PEFT's layout, with --merge the whole
    model with the adapters in its weights.

    Args:
        run: folder of the run, its checkpoint folder, or one of the states in that.
        folder: where to write.
        merge: add the adapters to the weights and write the whole model.
        dtype: of the written weights (default: as trained).
    """
    import torch

    from qvl.checkpoint.adapter import CONFIG_FILE, save_adapter
    from qvl.cli.start import restore
    from qvl.engine.vlm import VLM
    from qvl.models.lora import merge_lora

    config, built, where = restore(run)
    if config.lora is not None and not merge:
        _refuse_beside(folder, "config.json", "a model")
        if dtype is not None:
            built.model.to(getattr(torch, dtype))
        save_adapter(built.model, folder, config.lora, base=config.model)
        print(f"Adapter of {run} ({where}): {folder}")
        print(f"In Python: qvl.load({config.model!r}, lora={str(folder)!r})")
        return
    _refuse_beside(folder, CONFIG_FILE, "an adapter")
    merge_lora(built.model)
    if dtype is not None:
        built.model.to(getattr(torch, dtype))
    VLM(built.model, built.processor).save(folder)
    print(f"Model of {run} ({where}): {folder}")
    print(f"Next: qvl chat --model {folder}")


def _refuse_beside(folder: Path, file: str, what: str) -> None:
    """A model and an adapter in one folder: transformers would put the adapter around the merged model again."""
    if (folder / file).exists():
        raise ValueError(f"{folder} holds {what} ({file}); choose another folder, or delete that one")
