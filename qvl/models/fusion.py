"""Where vision enters text: rows named by the batch are overwritten by vision tokens."""

from __future__ import annotations

from torch import Tensor


def place_vision(text_TD: Tensor, vision_MD: Tensor, rows_M: Tensor) -> Tensor:
    """Returns `text_TD` with row `rows_M[m]` replaced by `vision_MD[m]`; differentiable in both.

    Raises:
        ValueError: the number of vision tokens and of placeholder rows differ.
    """
    if vision_MD.shape[0] != rows_M.shape[0]:
        raise ValueError(
            f"{vision_MD.shape[0]} vision tokens for {rows_M.shape[0]} placeholder rows: "
            "the prompt and its pictures were not made by the same processor"
        )
    return text_TD.index_copy(0, rows_M, vision_MD.to(text_TD.dtype))
