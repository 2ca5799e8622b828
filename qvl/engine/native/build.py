"""The compiled kernels: built by the system's compiler on first use, kept in the cache folder.

Knows: what the processor must be able to do, how to compile, where the result lies. Does not know: tensors.

Nothing here is required: without a compiler, or on another processor, there is one line in the log and everything is
computed by torch.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

from qvl.runtime import cache_folder, cpu_flags, kernels_wanted

_log = logging.getLogger(__name__)
_HERE = Path(__file__).parent


class InstructionSet(NamedTuple):
    """What kernels are written for."""

    name: str
    """Of the values of `QVL_KERNELS`."""
    needs: tuple[str, ...]
    """What the processor must be able to do, in Linux' words."""


SETS = (
    InstructionSet("avx512", ("avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512vbmi", "avx512_bf16", "fma")),
    InstructionSet("avx2", ("avx2", "fma")),
)
"""The fastest first."""
_SOURCES = ("attention.cpp", "rowwise.cpp", "packing.cpp")
_FLAGS = ["-O3", "-std=c++17", "-shared", "-fPIC", "-fopenmp", "-w"]
_COMPILERS = ("g++", "c++", "clang++")

_I, _P, _F = ctypes.c_int64, ctypes.c_void_p, ctypes.c_float
_INT = ctypes.c_int
_SIGNATURES: dict[str, list[type]] = {
    "qvl_linear": [_INT, _P, _I, _I, _P, _P, _P, _I, _P, _P, _I, _INT, _I, _I, _INT],
    "qvl_linear_many": [_P, _I, _I, _P, _P, _P, _I, _I, _INT],
    "qvl_write_pages": [_P, _I, _I, _P, _P, _P, _I, _I, _I, _I, _I, _INT],
    "qvl_attend_pages": [_P, _I, _I, _P, _I, _P, _I, _P, _P, _P, _P, _I, _I, _I, _INT],
    "qvl_attend_segments": [_P, _P, _P, _I, _P, _I, _P, _I, _I, _P, _INT],
    "qvl_rms_norm": [_P, _P, _P, _I, _I, _F, _INT],
    "qvl_rotate": [_P, _I, _P, _P, _I, _I, _I, _INT],
    "qvl_swiglu": [_P, _P, _I, _I, _INT],
    "qvl_quick_gelu": [_P, _I, _INT],
    "qvl_pack8": [_P, _I, _I, _I, _P, _P, _INT],
    "qvl_pack4": [_P, _I, _I, _I, _I, _P, _P, _INT],
}


@functools.cache
def library() -> ctypes.CDLL | None:
    """The kernels for the best this processor can do; None where they cannot be had, after a line in the log that says
    why.

    Raises:
        ValueError: `QVL_KERNELS` is none of those there are.
    """
    wanted = kernels_wanted()
    if wanted not in ("", "0", *(s.name for s in SETS)):
        raise ValueError(f"QVL_KERNELS={wanted}: it may be 0, {', '.join(s.name for s in SETS)} or unset")
    chosen = [s for s in SETS if wanted in ("", s.name)]
    fit = next((s for s in chosen if not _missing(s)), None)
    if wanted == "0":
        reason = "QVL_KERNELS=0"
    elif fit is None:
        reason = f"this processor has no {_missing(chosen[-1])[0]}"
    elif not _compiler():
        reason = f"there is no compiler ({', '.join(_COMPILERS)})"
    else:
        try:
            return _open(_built(fit))
        except (OSError, subprocess.SubprocessError) as error:
            reason = f"they could not be compiled ({_first_line(error)})"
    _log.info("compiled kernels are not used: %s; torch computes instead", reason)
    return None


def _missing(instructions: InstructionSet) -> list[str]:
    return [flag for flag in instructions.needs if flag not in cpu_flags()]


def _compiler() -> str | None:
    return next((path for name in _COMPILERS if (path := shutil.which(name))), None)


def _built(instructions: InstructionSet) -> Path:
    """Compiles, unless the same sources were compiled before. Several processes may do so at once: the file appears
    whole."""
    compiler = _compiler()
    assert compiler is not None, "asked for without a compiler"
    flags = [*_FLAGS, *("-m" + flag.replace("_", "") for flag in instructions.needs)]
    sources = [_HERE / f"linear_{instructions.name}.cpp", *(_HERE / name for name in _SOURCES)]
    key = hashlib.sha256("\0".join([compiler, *flags]).encode())
    for file in (*sources, *sorted(_HERE.glob("*.h"))):
        key.update(file.read_bytes())
    folder = cache_folder() / "kernels"
    file = folder / f"qvl-{instructions.name}-{key.hexdigest()[:16]}.so"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as work:
            made = Path(work) / "kernels.so"
            command = [compiler, *flags, "-o", str(made), *map(str, sources)]
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
            os.replace(made, file)
    return file


def _open(file: Path) -> ctypes.CDLL:
    import torch  # its OpenMP must be there first, so that both use one pool of threads

    assert torch.get_num_threads() > 0
    opened = ctypes.CDLL(str(file))
    for name, arguments in _SIGNATURES.items():
        function = getattr(opened, name)
        function.argtypes, function.restype = arguments, None
    return opened


def _first_line(error: Exception) -> str:
    said = error.stderr if isinstance(error, subprocess.CalledProcessError) and error.stderr else str(error)
    return (said.strip().splitlines() or [type(error).__name__])[0]
