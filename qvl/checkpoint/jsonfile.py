"""Json files of a model folder: read whole, fields fetched with their kind checked.

Knows: which file a field came from, so that every message names it. Does not know: what any field means.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final


@final
@dataclass(frozen=True)
class Fields:
    """A json object and where it came from ("folder/config.json", "folder/config.json: vision_config")."""

    data: Mapping[str, Any]
    source: str

    @classmethod
    def read(cls, path: Path) -> Fields:
        """Raises `FileNotFoundError` if there is no such file, `ValueError` if it is not a json object."""
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            there = ", ".join(sorted(p.name for p in path.parent.iterdir())[:8]) if path.parent.is_dir() else ""
            raise FileNotFoundError(
                f"no {path.name} in {path.parent}: this is not a model folder"
                + (f" (it holds {there})" if there else " (there is no such folder)")
            ) from None
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is not valid json ({error}); copy or download it again") from None
        if not isinstance(data, dict):
            raise ValueError(f"{path} must hold a json object, it holds a {type(data).__name__}")
        return cls(data, str(path))

    def has(self, key: str) -> bool:
        """True if the key is there and not null."""
        return self.data.get(key) is not None

    def child(self, key: str) -> Fields:
        """The object under `key`, empty if absent or null."""
        value = self.data.get(key)
        if value is None:
            value = {}
        if not isinstance(value, dict):
            raise ValueError(f"{self.source}: {key} must be a json object, got {value!r}")
        return Fields(value, f"{self.source}: {key}")

    def integer(self, key: str, default: int | None = None) -> int:
        """A whole number; without `default` a missing key is an error."""
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError(f"{self.source}: {key} must be a whole number, got {value!r}")
        return value

    def size(self, key: str, default: int | None = None) -> int:
        """A whole number of at least 1: a width, a count, a length."""
        value = self.integer(key, default)
        if value < 1:
            raise ValueError(f"{self.source}: {key} must be at least 1, got {value}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A finite one (python's json reads NaN and Infinity too)."""
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= sys.float_info.max:
            raise ValueError(f"{self.source}: {key} must be a number, got {value!r}")
        return float(value)

    def positive(self, key: str, default: float | None = None) -> float:
        """A number above 0."""
        value = self.number(key, default)
        if value <= 0:
            raise ValueError(f"{self.source}: {key} must be above 0, got {value:g}")
        return value

    def flag(self, key: str, default: bool) -> bool:
        value = self._value(key, default)
        if not isinstance(value, bool):
            raise ValueError(f"{self.source}: {key} must be true or false, got {value!r}")
        return value

    def integers(self, key: str, default: tuple[int, ...] | None = None) -> tuple[int, ...]:
        """A list of whole numbers, never empty; a single one counts as a list of one (`eos_token_id` comes as both)."""
        value = self._value(key, default)
        items = list(value) if isinstance(value, (list, tuple)) else [value]
        if not items or any(isinstance(item, bool) or not isinstance(item, int) for item in items):
            raise ValueError(f"{self.source}: {key} must be a list of whole numbers, got {value!r}")
        return tuple(items)

    def expect(self, key: str, wanted: object, why: str) -> None:
        """An absent or null key passes; another value raises `ValueError` with both values and the reason."""
        if self.has(key) and self.data[key] != wanted:
            raise ValueError(f"{self.source}: {key} is {self.data[key]!r}, only {wanted!r} is implemented ({why})")

    def _value(self, key: str, default: object) -> Any:
        if self.has(key):
            return self.data[key]
        if default is None:
            raise ValueError(f"{self.source}: {key} is missing; a complete file states it (no default is assumed)")
        return default


def dump(data: Mapping[str, Any]) -> str:
    """Json text as model folders have it: two spaces, non-ASCII kept, newline at the end."""
    return json.dumps(data, indent=2, ensure_ascii=False) + "\n"
