"""How much an engine does at once.

Knows: the numbers a user can set, and what they mean. Does not know: who obeys them.
"""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Limits:
    max_rows: int = 32
    """Requests answered at once; more wait, and take the place of finished ones."""
    max_batch_tokens: int = 2048
    """Tokens computed in one step. Every row that is being answered gets its one, the rest goes to prompts; a longer
    prompt is computed in several steps, so nobody waits longer for the next word than this many tokens take."""
    max_batch_patches: int = 16384
    """Patches seen in one step. A picture with more is seen alone."""
    cache_tokens: int | None = None
    """Tokens whose keys and values are kept: of what runs, and of finished requests while there is room. None = one
    conversation of the model's full length and 1024 for each further row, or what fits into 4 GiB if that is less."""
    page_tokens: int = 32
    """Tokens per page of the cache: what two prompts can share is a number of whole pages."""
    vision_cache_mib: int = 256
    """Vision vectors kept for pictures that are asked about again. 0 = none."""
    max_waiting: int = 256
    """Requests that may wait in a live engine; the next one is turned away."""
    max_held_mib: int = 2048
    """Pixels (as float32 patches: 294 MiB of a picture of 12.8 megapixels) of requests that a live engine has not seen
    yet; a request that comes on top of that is turned away."""
    max_preparing: int = 4
    """Requests whose pictures a live engine opens at the same time."""

    def __post_init__(self) -> None:
        for f in fields(self):
            value, least = getattr(self, f.name), 0 if f.name in ("vision_cache_mib", "max_waiting") else 1
            if value is not None and value < least:
                raise ValueError(f"limits must be at least {least}, got {f.name}={value}")
