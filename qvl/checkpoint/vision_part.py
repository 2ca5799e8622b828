"""A pretrained vision tower, whatever its file, as the tower of a Qwen2-VL.

Knows: DINOv2 and CLIP (OpenAI's, DFN's) as Hugging Face folders, OpenCLIP folders, DINOv2 inside an ONNX file; how what
they compute is written with this package's tower.
Does not know: the merger's two matrices (they begin at random), the language half.

What is exact: a convolution over one picture is one over two equal frames with half the weights; its bias goes into the
position table; the scale of a block's output (LayerScale) goes into the projection before it; the last norm is the
merger's. What is not: the class token is left out, and CLIP's norms add 1e-5 to the variance, this tower's 1e-6.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import isqrt
from pathlib import Path
from typing import Literal, cast, final

import torch
from torch import Tensor

from qvl.checkpoint.jsonfile import Fields
from qvl.checkpoint.onnx import ONNX
from qvl.checkpoint.parts import check_shapes
from qvl.checkpoint.tensor_files import TensorFile, open_tensors
from qvl.checkpoint.vision_names import CLIP, DINO, ONNX_POSITIONS, OPEN_CLIP, Names
from qvl.checkpoint.weights import WeightFiles
from qvl.models.keys import stored_tensors
from qvl.models.qwen2_vl.config import VisionConfig
from qvl.models.qwen2_vl.model import Qwen2VL

Channels = tuple[float, float, float]
IMAGENET_PIXELS: tuple[Channels, Channels] = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and deviation of pixels, as DINOv2 was trained."""
CLIP_PIXELS: tuple[Channels, Channels] = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
_MERGER = ("visual.merger.fc1.", "visual.merger.fc2.")
_DINO_HEAD = 64


@final
@dataclass(frozen=True)
class VisionPart:
    """A vision tower that was not read yet: its sizes as ours, how it wants its pixels, where its tensors lie."""

    source: str
    config: VisionConfig
    """With the tower's own table of positions and without rope, so that it computes what the original does."""
    mean: Channels
    std: Channels
    tensors: Callable[[], Iterator[tuple[str, Tensor]]]
    """Values by our parameter names (`visual.*`, the merger's matrices left out)."""


def read_vision_part(path: str | Path) -> VisionPart:
    """Sizes and whereabouts of a vision tower: a Hugging Face or OpenCLIP folder, or an ONNX file with a DINOv2.

    Raises:
        FileNotFoundError: no such file or folder, or it holds no weights.
        ValueError: another kind of tower, or something that is not implemented.
    """
    path = Path(path)
    if path.is_file() and path.suffix == ".onnx":
        return _from_onnx(path)
    if (path / "open_clip_config.json").is_file() and not (path / "config.json").is_file():
        return _from_open_clip(path)
    fields = Fields.read(path / "config.json")
    kind = fields.data.get("model_type")
    if kind == "dinov2":
        return _from_dino(path, fields)
    if kind in ("clip", "clip_vision_model"):
        return _from_clip(path, fields.child("vision_config") if fields.has("vision_config") else fields)
    raise ValueError(f"{fields.source}: model_type {kind!r} is not one of: dinov2, clip, clip_vision_model")


@torch.no_grad()
def fill_vision(model: Qwen2VL, part: VisionPart) -> None:
    """Copies the tower into `model`; the merger's matrices and the language half stay as they are.

    A model without a position table or without a norm before the first block leaves those of the part out (so the
    published Qwen2-VL began: DFN's tower with rope in the table's place); it must then learn to see anew.

    Raises:
        ValueError: the sizes of `model` are not the part's, or tensors are missing or of another shape.
    """
    ours, theirs = model.config.vision, part.config
    same = ("width", "layers", "heads", "mlp_hidden", "patch", "temporal_patch", "channels", "activation")
    different = [
        f"{k} {vars(theirs)[k]} (the model: {vars(ours)[k]})" for k in same if vars(theirs)[k] != vars(ours)[k]
    ]
    if ours.table_side not in (0, theirs.table_side):
        different.append(f"table_side {theirs.table_side} (the model: {ours.table_side})")
    if different:
        raise ValueError(f"{part.source} is another vision tower than the model's: {', '.join(different)}")
    own = {n: t for n, t in stored_tensors(model).items() if n.startswith("visual.") and not n.startswith(_MERGER)}
    found = {name: tensor for name, tensor in part.tensors() if name in own}
    check_shapes(
        {n: tuple(t.shape) for n, t in own.items()}, {n: tuple(t.shape) for n, t in found.items()}, part.source
    )
    for name, tensor in found.items():
        own[name].copy_(tensor)


def _from_dino(folder: Path, fields: Fields) -> VisionPart:
    fields.expect("hidden_act", "gelu", "DINOv2's activation")
    fields.expect("use_swiglu_ffn", False, "the giant DINOv2's feed-forward is not implemented")
    weights = _Tensors.of_folder(folder, ("", "dinov2."), DINO)
    width = fields.size("hidden_size")
    mlp_ratio = fields.positive("mlp_ratio", 4)
    config = _tower(weights, fields.size("num_attention_heads"), int(width * mlp_ratio), "gelu")
    return _part(str(folder), config, weights, _pixels(folder, IMAGENET_PIXELS))


def _from_clip(folder: Path, fields: Fields) -> VisionPart:
    activation = fields.data.get("hidden_act") or "quick_gelu"
    if activation not in ("quick_gelu", "gelu"):
        raise ValueError(f"{fields.source}: hidden_act {activation!r} is not one of: quick_gelu, gelu")
    weights = _Tensors.of_folder(folder, ("vision_model.", ""), CLIP)
    heads = fields.size("num_attention_heads")
    config = _tower(weights, heads, fields.size("intermediate_size"), activation)
    return _part(str(folder), config, weights, _pixels(folder, CLIP_PIXELS))


def _from_open_clip(folder: Path) -> VisionPart:
    fields = Fields.read(folder / "open_clip_config.json")
    settings = fields.child("model_cfg")
    vision = settings.child("vision_cfg")
    width = vision.size("width")
    for name in ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin"):
        if (folder / name).is_file():
            weights = _Tensors.of_file(open_tensors(folder / name), ("visual.",), OPEN_CLIP, str(folder / name))
            break
    else:
        raise FileNotFoundError(f"no open_clip_model.safetensors or open_clip_pytorch_model.bin in {folder}")
    heads = width // vision.size("head_width", 64)
    activation = "quick_gelu" if settings.flag("quick_gelu", False) else "gelu"
    config = _tower(weights, heads, int(width * vision.positive("mlp_ratio", 4.0)), activation)
    pixels = fields.child("preprocess_cfg").data
    mean, std = pixels.get("mean", CLIP_PIXELS[0]), pixels.get("std", CLIP_PIXELS[1])
    return _part(str(folder), config, weights, (tuple(mean), tuple(std)))


def _from_onnx(file: Path) -> VisionPart:
    names = replace(DINO, positions=ONNX_POSITIONS)
    weights = _Tensors.of_file(ONNX(file), ("backbone.", "dinov2.", ""), names, str(file))
    width, mlp_hidden = weights.shape(names.patch + "weight")[0], weights.shape(names.fc1.format(0) + "weight")[0]
    # The graph does not say it, but every DINOv2 has heads of 64.
    return _part(str(file), _tower(weights, width // _DINO_HEAD, mlp_hidden, "gelu"), weights, IMAGENET_PIXELS)


def _pixels(folder: Path, default: tuple[Channels, Channels]) -> tuple[Channels, Channels]:
    """Mean and deviation from the folder's preprocessor_config.json, if it has one."""
    file = folder / "preprocessor_config.json"
    data = Fields.read(file).data if file.is_file() else {}
    return tuple(data.get("image_mean", default[0])), tuple(data.get("image_std", default[1]))


def _tower(weights: _Tensors, heads: int, mlp_hidden: int, activation: str) -> VisionConfig:
    names = weights.names
    width, channels, patch, _ = weights.shape(names.patch + "weight")
    places = sum(weights.shape(name)[-2] for name in names.positions) - 1
    side = isqrt(places)
    if side**2 != places:
        raise ValueError(f"{weights.source} has positions for {places} patches, which is not a square")
    layers = 0
    while weights.has(names.fc1.format(layers) + "weight"):
        layers += 1
    return VisionConfig(
        width=width,
        layers=layers,
        heads=heads,
        mlp_hidden=mlp_hidden,
        patch=patch,
        channels=channels,
        rope=False,
        activation=cast(Literal["quick_gelu", "gelu"], activation),
        table_side=side,
        pre_norm=bool(names.pre_norm),
    )


def _part(source: str, config: VisionConfig, weights: _Tensors, pixels: tuple[Channels, Channels]) -> VisionPart:
    return VisionPart(source, config, *pixels, tensors=lambda: _ours(config, weights))


def _ours(config: VisionConfig, weights: _Tensors) -> Iterator[tuple[str, Tensor]]:
    n, get = weights.names, weights.get
    kernel = get(n.patch + "weight")
    frames = kernel[:, :, None].expand(-1, -1, config.temporal_patch, -1, -1) / config.temporal_patch
    yield "visual.patch_embed.weight", frames.flatten(1)
    table = torch.cat([get(name).flatten(0, -2) for name in n.positions])[1:]
    yield "visual.position_embed", table + get(n.patch + "bias") if weights.has(n.patch + "bias") else table
    norms = {"merger.norm": n.post_norm} | ({"pre_norm": n.pre_norm} if n.pre_norm else {})
    for i in range(config.layers):
        norms |= {f"blocks.{i}.attn_norm": n.attn_norm.format(i), f"blocks.{i}.mlp_norm": n.mlp_norm.format(i)}
    for kind in ("weight", "bias"):
        for ours, theirs in norms.items():
            yield f"visual.{ours}.{kind}", get(theirs + kind)
        for i in range(config.layers):
            block = f"visual.blocks.{i}."
            yield f"{block}qkv.{kind}", torch.cat([get(name.format(i) + kind) for name in n.qkv])
            yield f"{block}fc1.{kind}", get(n.fc1.format(i) + kind)
            for half, (ours, theirs) in enumerate((("out", n.out), ("fc2", n.fc2))):
                value = get(theirs.format(i) + kind)
                if n.scales:
                    scale = get(n.scales[half].format(i))
                    value = scale[:, None] * value if value.ndim == 2 else scale * value
                yield f"{block}{ours}.{kind}", value


@final
class _Tensors:
    """Tensors by the names of `Names`, whatever stands before them."""

    def __init__(
        self,
        shapes: dict[str, tuple[int, ...]],
        read: Callable[[str], Tensor],
        prefixes: tuple[str, ...],
        names: Names,
        source: str,
    ) -> None:
        self.names = names
        self.source = source
        self._shapes = shapes
        self._read = read
        first = names.patch + "weight"
        found = [prefix for prefix in prefixes if prefix + first in shapes]
        if not found:
            raise ValueError(f"{source} holds no {prefixes[0]}{first}: it is not the tower that its settings describe")
        self._prefix = found[0]

    @classmethod
    def of_folder(cls, folder: Path, prefixes: tuple[str, ...], names: Names) -> _Tensors:
        files = WeightFiles.find(folder)
        return cls(dict(files.shapes), lambda name: next(files.read([name])), prefixes, names, str(folder))

    @classmethod
    def of_file(cls, file: TensorFile, prefixes: tuple[str, ...], names: Names, source: str) -> _Tensors:
        return cls(file.shapes(), file.get, prefixes, names, source)

    def has(self, name: str) -> bool:
        return self._prefix + name in self._shapes

    def shape(self, name: str) -> tuple[int, ...]:
        if not self.has(name):
            raise ValueError(f"{self.source} holds no {self._prefix}{name}; it is damaged or another kind of tower")
        return self._shapes[self._prefix + name]

    def get(self, name: str) -> Tensor:
        self.shape(name)
        return self._read(self._prefix + name).float()
