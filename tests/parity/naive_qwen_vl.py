"""Qwen-VL written out plainly: one sequence, one picture, one head at a time, straight from official tensors.

The slow twin of `qvl.models.qwen_vl`: no packing, no fused or permuted weights, a real convolution, torch's own
multi-head attention in the adapter. It shares no code with the package.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qvl.inputs.sequence import Sequence
from qvl.models.qwen_vl.config import QwenVLConfig

Weights = Mapping[str, Tensor]


def logits(w: Weights, config: QwenVLConfig, s: Sequence, length: int | None = None, training: bool = False) -> Tensor:
    """[T, V] of one sequence; `length` decides the rotary base (the prompt's, if the sequence goes on after it)."""
    x = w["transformer.wte.weight"][torch.from_numpy(s.tokens_T)].clone()
    queries = config.adapter.queries
    for i, v in enumerate(s.visuals):
        rows = s.vision_rows_M[i * queries : (i + 1) * queries]
        x[torch.from_numpy(rows)] = see(w, config, v.patches_PC, v.grid[1:])
    for layer in range(config.text.layers):
        x = _block(w, config, f"transformer.h.{layer}.", x, length or len(x), training)
    head = w.get("lm_head.weight", w["transformer.wte.weight"])
    return _rms(x, w["transformer.ln_f.weight"]) @ head.T


def see(w: Weights, config: QwenVLConfig, patches: Tensor, hw: tuple[int, int]) -> Tensor:
    """The vision tokens [Q, D] of one picture, its patches in raster order."""
    c = config.vision
    h, width = hw
    picture = (
        patches.view(h, width, 3, c.patch, c.patch).permute(2, 0, 3, 1, 4).reshape(3, h * c.patch, width * c.patch)
    )
    p = "transformer.visual."
    x = F.conv2d(picture[None], w[p + "conv1.weight"], stride=c.patch)[0].flatten(1).T
    x = _norm(x + _resized(w[p + "positional_embedding"], hw), w, p + "ln_pre")
    for layer in range(c.layers):
        b = f"{p}transformer.resblocks.{layer}."
        x = x + _vision_attention(_norm(x, w, b + "ln_1"), w, b + "attn.", c.heads)
        hidden = F.gelu(_linear(_norm(x, w, b + "ln_2"), w, b + "mlp.c_fc"))
        x = x + _linear(hidden, w, b + "mlp.c_proj")
    return _norm(_adapter(w, config, p + "attn_pool.", x, hw), w, p + "ln_post") @ w[p + "proj"]


def _vision_attention(x: Tensor, w: Weights, prefix: str, heads: int) -> Tensor:
    size = x.shape[1] // heads
    fused = _linear(x, w, prefix + "in_proj")
    outs = []
    for n in range(heads):
        q, k, v = fused[:, 3 * n * size : 3 * (n + 1) * size].split(size, dim=1)
        outs.append(((q / math.sqrt(size)) @ k.T).softmax(-1) @ v)
    return _linear(torch.cat(outs, dim=1), w, prefix + "out_proj")


def _adapter(w: Weights, config: QwenVLConfig, prefix: str, x: Tensor, hw: tuple[int, int]) -> Tensor:
    width = config.text.width
    attention = nn.MultiheadAttention(width, config.adapter.heads)
    with torch.no_grad():
        attention.in_proj_weight.copy_(w[prefix + "attn.in_proj_weight"])
        attention.in_proj_bias.copy_(w[prefix + "attn.in_proj_bias"])
        attention.out_proj.weight.copy_(w[prefix + "attn.out_proj.weight"])
        attention.out_proj.bias.copy_(w[prefix + "attn.out_proj.bias"])
    if prefix + "kv_proj.weight" in w:
        x = x @ w[prefix + "kv_proj.weight"].T
    value = _norm(x, w, prefix + "ln_kv")
    table = w[prefix + "pos_embed"]
    query = _norm(w[prefix + "query"], w, prefix + "ln_q") + table
    return attention(query[:, None], (value + _resized(table, hw))[:, None], value[:, None])[0][:, 0]


def _block(w: Weights, config: QwenVLConfig, prefix: str, x: Tensor, length: int, training: bool) -> Tensor:
    c = config.text
    fused = _linear(_rms(x, w[prefix + "ln_1.weight"]), w, prefix + "attn.c_attn")
    q, k, v = fused.split(c.width, dim=1)
    hidden = torch.ones(len(x), len(x), dtype=torch.bool).triu(1)
    outs = []
    for n in range(c.heads):
        part = slice(n * c.head_size, (n + 1) * c.head_size)
        q_n, k_n = (_rotated(y[:, part], config, length, training) for y in (q, k))
        q_n = q_n * _growth(config, len(x), training)
        scores = (q_n @ k_n.T / math.sqrt(c.head_size)).masked_fill(hidden, -math.inf)
        outs.append(scores.softmax(-1) @ v[:, part])
    x = x + torch.cat(outs, dim=1) @ w[prefix + "attn.c_proj.weight"].T
    y = _rms(x, w[prefix + "ln_2.weight"])
    first, second = y @ w[prefix + "mlp.w1.weight"].T, y @ w[prefix + "mlp.w2.weight"].T
    return x + (first * F.silu(second)) @ w[prefix + "mlp.c_proj.weight"].T


def _rotated(x: Tensor, config: QwenVLConfig, length: int, training: bool) -> Tensor:
    assert config.text.beyond is not None
    size = config.text.head_size
    alpha = 1.0
    if not training:
        alpha = max(2 ** math.ceil(math.log(length / config.text.beyond.trained_len, 2) + 1) - 1, 1)
    base = 10000 * alpha ** (size / (size - 2))
    out = torch.empty_like(x)
    for j in range(size // 2):
        angle = torch.arange(len(x), dtype=torch.float64) * base ** (-2 * j / size)
        cos, sin = angle.cos().float(), angle.sin().float()
        a, b = x[:, j], x[:, j + size // 2]
        out[:, j], out[:, j + size // 2] = a * cos - b * sin, a * sin + b * cos
    return out


def _growth(config: QwenVLConfig, length: int, training: bool) -> Tensor:
    assert config.text.beyond is not None
    trained = config.text.beyond.trained_len
    return torch.tensor([1.0 if training or p < trained else math.log(p + 1, trained) for p in range(length)])[:, None]


def _resized(table: Tensor, hw: tuple[int, int]) -> Tensor:
    side = round(math.sqrt(len(table)))
    image = table.view(side, side, -1).permute(2, 0, 1)[None]
    return F.interpolate(image, size=hw, mode="bicubic", align_corners=False)[0].flatten(1).T


def _linear(x: Tensor, w: Weights, name: str) -> Tensor:
    return x @ w[name + ".weight"].T + w[name + ".bias"]


def _norm(x: Tensor, w: Weights, name: str) -> Tensor:
    return F.layer_norm(x, x.shape[1:], w[name + ".weight"], w[name + ".bias"], 1e-6)


def _rms(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight
