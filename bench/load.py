"""From a folder to the first token, beside the time that only reading the file takes; and the most memory held.

    python -m bench.load [--layers 4 --dry]

Qwen2-VL-2B's real shape with random weights. Every turn is a process of its own; the clock starts after the imports
(their time is told beside). The file is in the system's cache for both, or with `--cold` for neither (that needs root).
Weights are mapped, and count as memory once they are used: our peak is taken after a picture too was seen (when the
clock has stopped), so that every weight was. The other side's is not.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from bench.peers import FULL, options, random_folder, ratio, show
from bench.record import record

_CHILD = """
import json, sys, time
begin = time.perf_counter()
import torch, qvl, qvl.engine.vlm
imported = time.perf_counter()
quantize = sys.argv[2] if sys.argv[2] != "bf16" else None
vlm = qvl.load(sys.argv[1], dtype="bfloat16", quantize=quantize)
loaded = time.perf_counter()
vlm.chat([{"role": "user", "content": "Hello"}], max_new_tokens=1)
done = time.perf_counter()
import numpy
picture = numpy.zeros((112, 112, 3), numpy.uint8)
vlm.chat([{"role": "user", "content": [{"type": "image", "image": picture}]}], max_new_tokens=1)
from qvl.runtime import peak_memory_bytes
from qvl.engine.native.modules import PackedLinear
weights = sum(p.nbytes for p in vlm.model.parameters())
weights += sum(m.packed.nbytes for m in vlm.model.modules() if isinstance(m, PackedLinear))
print(json.dumps({"import": imported - begin, "load": loaded - imported, "first": done - imported,
                  "peak": peak_memory_bytes(), "weights": weights}))
"""
_PEER = """
import json, sys, time
begin = time.perf_counter()
import torch
from transformers import Qwen2VLForConditionalGeneration
imported = time.perf_counter()
model = Qwen2VLForConditionalGeneration.from_pretrained(sys.argv[1], dtype=torch.bfloat16).eval()
loaded = time.perf_counter()
ids = torch.arange(1000, 1020)[None]
with torch.inference_mode():
    model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), mm_token_type_ids=torch.zeros_like(ids),
                   max_new_tokens=1, do_sample=False)
done = time.perf_counter()
import resource
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps({"import": imported - begin, "load": loaded - imported, "first": done - imported, "peak": peak}))
"""


def child(code: str, folder: Path, how: str) -> dict[str, float]:
    done = subprocess.run([sys.executable, "-c", code, str(folder), how], check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def read_file(folder: Path) -> float:
    """Seconds that it takes to read the weights once, into a buffer that is used again and again."""
    buffer = bytearray(16 << 20)
    begin = time.perf_counter()
    for file in folder.glob("*.safetensors"):
        with file.open("rb", buffering=0) as opened:
            while opened.readinto(buffer):
                pass
    return time.perf_counter() - begin


def chill() -> None:
    """Empties the system's cache of files."""
    subprocess.run(["sync"], check=True)
    Path("/proc/sys/vm/drop_caches").write_text("3")


def measure(folder: Path, how: str, rounds: int, cold: bool) -> dict[str, Any]:
    reading: list[float] = []
    ours: list[dict[str, float]] = []
    theirs: list[dict[str, float]] = []
    if not cold:
        read_file(folder)
    for _ in range(rounds):
        for call in (
            lambda: reading.append(read_file(folder)),
            lambda: ours.append(child(_CHILD, folder, how)),
            lambda: theirs.append(child(_PEER, folder, how)),
        ):
            if cold:
                chill()
            call()
    first = [o["first"] for o in ours]
    return {
        "case": f"{how}, {'nothing' if cold else 'the file'} in the system's cache",
        "reading s": show(reading, 1, 2),
        "load s": show([o["load"] for o in ours], 1, 2),
        "load to first token s": show(first, 1, 2),
        "over reading": ratio(first, reading),
        "transformers load to first token s": show([t["first"] for t in theirs], 1, 2),
        "import s": show([o["import"] for o in ours], 1, 2),
        "transformers import s": show([t["import"] for t in theirs], 1, 2),
        "weights GB": round(ours[0]["weights"] / 1e9, 2),
        "peak GB": round(max(o["peak"] for o in ours) / 1e9, 2),
        "peak over weights": round(max(o["peak"] for o in ours) / ours[0]["weights"], 3),
        "transformers peak GB": round(max(t["peak"] for t in theirs) / 1e9, 2),
    }


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--cold", action="store_true", help="also with an empty cache of files (root)")
    parser.add_argument("--how", nargs="+", choices=["bf16", "int8", "int4"], default=["bf16", "int8"])
    given = parser.parse_args()
    folder = random_folder(given.layers)
    for how in given.how:
        for cold in (False, True) if given.cold else (False,):
            row = measure(folder, how, given.rounds, cold)
            print("\n".join(f"{key:>34}: {value}" for key, value in row.items()), end="\n\n", flush=True)
            if not given.dry and given.layers == FULL:
                record("load", row)


if __name__ == "__main__":
    main()
