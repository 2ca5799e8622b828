"""How fast the embedded world makes scenes and samples, on one core.

    OMP_NUM_THREADS=1 python -m bench.world [--count 2000] [--concepts 112] [--json FILE]

Knows: warm throughput (pictures decoded, most cut-outs cached), as in training after the first second.
Does not know: tokenising, resizing, batching.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from qvl.data.world import World, WorldConfig
from qvl.data.world.catalogue import default_catalogue
from qvl.data.world.compose import Composer


def rate(call: Callable[[int], object], count: int, warm: int) -> float:
    """Calls per second of this process's CPU time (other work on the machine does not count), after `warm` calls."""
    for i in range(warm):
        call(i)
    start = time.process_time()
    for i in range(warm, warm + count):
        call(i)
    return count / (time.process_time() - start)


def measure(count: int, concepts: int) -> dict[str, float]:
    """Name -> scenes or samples per second; a scene is the picture with its boxes, a sample also its questions."""
    config = WorldConfig(concepts=concepts)
    composer = Composer(config, default_catalogue())
    results = {}
    for split in ("train", "test"):
        results[f"scenes/{split}"] = rate(lambda i, s=split: composer.draw(s, np.random.default_rng(i)), count, count)
    world = World(config)
    results["samples/mixed of 6 questions"] = rate(lambda i: world.sample("train", i), count, count)
    for task in World.tasks:
        results[f"samples/{task}"] = rate(lambda i, t=task: world.sample("train", i, t), count // 4, 20)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--concepts", type=int, default=112)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    results = measure(arguments.count, arguments.concepts)
    for name, value in results.items():
        print(f"{name:32s} {value:8.0f} /s")
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
