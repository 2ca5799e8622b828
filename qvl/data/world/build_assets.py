"""Rebuilds the embedded picture shards from two public npm packages.

    python -m qvl.data.world.build_assets FOLDER

FOLDER holds the unpacked packages `@lobehub/fluent-emoji-3d` 1.1.0 (as `fluent-emoji-3d/`, with `assets/*.webp`)
and `emojibase-data` 17.0.0 (as `emojibase-data/`, with `en/`, `zh/`, `meta/`), as `npm pack` and `tar x` leave them
(their inner `package/` folder may be kept).

Knows: how the two packages name things. The pictures are copied byte for byte, so the shards do not depend on the
image library; the same packages always give the same shards.
Does not know: which concepts a world uses or how it calls them (`catalogue`).
"""

from __future__ import annotations

import io
import json
import logging
import sys
import tarfile
from pathlib import Path
from typing import Any

SHARDS = 4
ASSETS = Path(__file__).parent / "assets"
_log = logging.getLogger(__name__)


def read_concepts(folder: Path) -> list[dict[str, Any]]:
    """One entry per picture without skin-tone duplicates, in emojibase order: {key, picture, en, zh, ...}.

    Raises:
        FileNotFoundError: a package or a file of it is not under `folder`.
    """
    art, labels = _package(folder, "fluent-emoji-3d"), _package(folder, "emojibase-data")
    pictures = {_plain(p.stem): p for p in sorted((art / "assets").glob("*.webp"))}
    english = json.loads((labels / "en" / "data.json").read_text("utf-8"))
    chinese = {e["hexcode"]: e for e in json.loads((labels / "zh" / "data.json").read_text("utf-8"))}
    names = json.loads((labels / "meta" / "groups.json").read_text("utf-8"))
    concepts = []
    for entry in sorted((e for e in english if "group" in e), key=lambda e: e["order"]):
        key = _plain(entry["hexcode"])
        if key in pictures:
            concepts.append(
                {
                    "key": key,
                    "picture": pictures[key],
                    "en": entry["label"],
                    "zh": chinese[entry["hexcode"]]["label"],
                    "group": names["groups"][str(entry["group"])],
                    "subgroup": names["subgroups"][str(entry["subgroup"])],
                    "emoji": entry["emoji"],
                    "tags_en": entry.get("tags", []),
                }
            )
    return concepts


def write_shards(concepts: list[dict[str, Any]], target: Path, shards: int = SHARDS) -> list[Path]:
    """Writes `000000.tar` ... with `KEY.json` and `KEY.webp` for each concept; the same input gives the same bytes."""
    target.mkdir(parents=True, exist_ok=True)
    per_shard = -(-len(concepts) // shards)
    paths = []
    for shard in range(shards):
        path = target / f"{shard:06d}.tar"
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
            for concept in concepts[shard * per_shard : (shard + 1) * per_shard]:
                about = {k: v for k, v in concept.items() if k not in ("key", "picture")}
                _add(tar, f"{concept['key']}.json", json.dumps(about, ensure_ascii=False).encode("utf-8"))
                _add(tar, f"{concept['key']}.webp", concept["picture"].read_bytes())
        paths.append(path)
    return paths


def main(arguments: list[str]) -> int:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if len(arguments) != 1:
        _log.error("usage: python -m qvl.data.world.build_assets FOLDER")
        return 2
    concepts = read_concepts(Path(arguments[0]))
    for path in write_shards(concepts, ASSETS):
        _log.info("%s: %d bytes", path.name, path.stat().st_size)
    _log.info("%d concepts", len(concepts))
    return 0


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)  # owner, mode and time stay at their constants: reproducible
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def _plain(hexcode: str) -> str:
    """Code points joined by "-", without the emoji presentation selector, which the two packages use differently."""
    return "-".join(part for part in hexcode.lower().split("-") if part != "fe0f")


def _package(folder: Path, name: str) -> Path:
    for path in sorted(folder.glob(f"*{name}*")):
        if path.is_dir():
            return path / "package" if (path / "package").is_dir() else path
    raise FileNotFoundError(f"no folder of the package {name} under {folder}; unpack it there first")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
