"""Pictures per second and core from decoded picture to normalised patch rows, against transformers' processors.

    python -m bench.preprocess                 # everything, about four minutes
    python -m bench.preprocess --quick         # small pictures only

Both sides get the same decoded `PIL.Image` objects and the official pixel bounds (4 to 16,384 tokens); decoding is
timed apart. One thread each, and milliseconds of processor time, not of the clock on the wall: "per core" means that,
and other people's jobs on the machine then matter less. The sides take turns (A B C A B C ...), so that a slow minute
hits all; medians, with the lowest and highest in brackets. The content is a photograph of scikit-image, resized.
"""

from __future__ import annotations

import argparse
import gc
import io
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from bench.record import record
from qvl.media.load import Resize, load_images
from qvl.media.resize import Geometry, PixelBudget, resize_exact, resize_fast, smart_resize

GEOMETRY, BUDGET = Geometry(), PixelBudget()
MIXED = [(768, 1024), (224, 224), (480, 640), (1080, 1920), (600, 400), (333, 500), (1024, 768), (896, 896)]
PHOTOS = (
    "astronaut.png",
    "coffee.png",
    "chelsea.png",
    "rocket.jpg",
    "motorcycle_left.png",
    "ihc.png",
    "retina.jpg",
    "hubble_deep_field.jpg",
)


@dataclass(frozen=True)
class Request:
    source: Image.Image
    min_pixels: int | None = None
    max_pixels: int | None = None
    resized_height: int | None = None
    resized_width: int | None = None


@dataclass(frozen=True)
class Case:
    name: str
    sizes: tuple[tuple[int, int], ...]
    repeats: int


CASES = (
    Case("1 x 224x224", ((224, 224),), 41),
    Case("1 x 1024x768", ((768, 1024),), 21),
    Case("8 x 224x224", ((224, 224),) * 8, 21),
    Case("8 x 1024x768", ((768, 1024),) * 8, 11),
    Case("8 mixed sizes", tuple(MIXED), 9),
    Case("1 x 4000x3000", ((3000, 4000),), 5),
    Case("8 x 4000x3000", ((3000, 4000),) * 8, 3),
)


def photographs() -> list[tuple[str, np.ndarray]]:
    """(name, uint8 [H, W, 3]) of the photographs that come with scikit-image."""
    import skimage

    folder = Path(skimage.__file__).parent / "data"
    return [(Path(name).stem, np.asarray(Image.open(folder / name).convert("RGB"))) for name in PHOTOS]


def sides() -> dict[str, Callable[[list[Image.Image]], object]]:
    """What is compared: name -> function of a list of decoded pictures."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    bounds = {"min_pixels": BUDGET.min_pixels, "max_pixels": BUDGET.max_pixels}
    pil = Qwen2VLImageProcessorPil(**bounds)

    def ours(pictures: list[Image.Image], resize: Resize) -> torch.Tensor:
        requests = [Request(picture) for picture in pictures]
        return load_images(requests, geometry=GEOMETRY, budget=BUDGET, resize=resize)[0]

    found: dict[str, Callable[[list[Image.Image]], object]] = {
        "hf_pil": lambda pictures: pil(pictures, return_tensors="pt")["pixel_values"],
        "exact": lambda pictures: ours(pictures, "exact"),
        "fast": lambda pictures: ours(pictures, "fast"),
    }
    try:
        import torchvision  # noqa: F401  # pyrefly: ignore
        from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor
    except ImportError:
        print("torchvision is not importable beside this torch: its processor is left out")
    else:
        vision = Qwen2VLImageProcessor(**bounds)
        found["hf_torchvision"] = lambda pictures: vision(pictures, return_tensors="pt")["pixel_values"]
    return found


def take_turns(functions: dict[str, Callable], argument: object, repeats: int) -> dict[str, list[float]]:
    """Processor milliseconds of each function, each run once per round."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for round_ in range(repeats + 1):
        for name, function in functions.items():
            start = time.process_time()
            result = function(argument)
            elapsed = 1000 * (time.process_time() - start)
            del result
            if round_:  # the first round warms up
                times[name].append(elapsed)
    gc.collect()
    return times


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.1f} ({min(values):.1f}-{max(values):.1f})"


def run_case(case: Case, functions: dict[str, Callable], photo: Image.Image) -> dict[str, object]:
    pictures = [photo.resize((width, height), Image.Resampling.BICUBIC) for height, width in case.sizes]
    encoded = []
    for picture in pictures:
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=90)
        encoded.append(buffer.getvalue())
    times = take_turns(functions, pictures, case.repeats)
    median = {name: statistics.median(values) for name, values in times.items()}
    decode = take_turns(
        {"decode": lambda data: [Image.open(io.BytesIO(d)).convert("RGB") for d in data]}, encoded, min(case.repeats, 5)
    )
    row: dict[str, object] = {"case": case.name}
    row |= {f"{name} ms": spread(values) for name, values in times.items()}
    row["fast pictures/s/core"] = round(1000 * len(pictures) / median["fast"], 1)
    row |= {f"{ours} vs {theirs}, times faster": round(median[theirs] / median[ours], 2)
            for theirs in functions if theirs.startswith("hf_") for ours in ("fast", "exact")}  # fmt: skip
    row["jpeg decode ms"] = spread(decode["decode"])
    row["rounds"] = case.repeats
    return row


def fidelity() -> dict[str, object]:
    """Grey levels between the fast and the exact resizer over real photographs, shrunk, kept and enlarged."""
    means, largest, count = [], 0, 0
    for _, pixels in photographs():
        picture = Image.fromarray(pixels)
        for most in (12845056, 200_704, 50_176):
            hw = smart_resize(*pixels.shape[:2], max_pixels=most)
            for target in {hw, (2 * hw[0], 2 * hw[1]) if most == 50_176 else hw}:
                difference = np.abs(resize_exact(picture, target).astype(int) - resize_fast(picture, target))
                means.append(float(difference.mean()))
                largest = max(largest, int(difference.max()))
                count += 1
    return {
        "case": "fast against exact, real photographs",
        "photographs": len(photographs()),
        "resizings": count,
        "mean difference, grey levels": round(statistics.mean(means), 5),
        "worst mean": round(max(means), 5),
        "largest difference": largest,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="leave out the 12-megapixel cases")
    parser.add_argument("--dry", action="store_true", help="print only, record nothing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    row = fidelity()
    print(row if options.dry else record("preprocess-fidelity", row))
    functions = sides()
    photo = Image.fromarray(dict(photographs())["astronaut"])
    for case in CASES:
        if options.quick and "4000" in case.name:
            continue
        row = run_case(case, functions, photo)
        print(row if options.dry else record("preprocess", row), flush=True)


if __name__ == "__main__":
    main()
