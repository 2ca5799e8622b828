"""Every kernel against its twin in plain torch; rows that do not depend on other rows, to the last bit."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from quick_model import needs_kernels

from qvl.batch import Batch
from qvl.engine.native import build, ops
from qvl.engine.native.packing import Packed, pack
from qvl.engine.native.pages import CellStore
from qvl.engine.paged import PagedStore, Row
from qvl.layers.attention import attend_naive
from qvl.layers.decoder import DecoderConfig
from qvl.layers.norm import RMSNorm
from qvl.layers.rope import rotate
from qvl.models.qwen2_vl.vit import quick_gelu

pytestmark = needs_kernels
_SHAPES = [(1, 50, 70), (3, 64, 192), (7, 130, 1176), (13, 96, 1536), (31, 33, 256), (50, 21, 320)]
"""(rows, outputs, inputs): tails of every kind, few rows and many."""


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def _weights(matrix_OI: torch.Tensor) -> Iterator[torch.Tensor | Packed]:
    yield matrix_OI
    yield pack(matrix_OI, "int8")
    for group in (32, 64, 128):
        yield pack(matrix_OI, "int4", group)


@pytest.mark.parametrize("shape", _SHAPES)
def test_products(shape: tuple[int, int, int]) -> None:
    rows, outputs, inputs = shape
    x_TI, bias_O = torch.randn(rows, inputs).bfloat16(), torch.randn(outputs).bfloat16()
    for weight in _weights(torch.randn(outputs, inputs).bfloat16()):
        matrix = weight.unpacked(dtype=torch.float32) if isinstance(weight, Packed) else weight.float()
        exact = F.linear(x_TI.double(), matrix.double(), bias_O.double())
        out = ops.linear(x_TI, weight, bias_O, wide=True)
        # worst seen 5e-7 of the largest: float32 sums of up to 1536 products
        assert (out - exact).abs().max() < 2e-6 * exact.abs().max()
        assert torch.equal(ops.linear(x_TI, weight, bias_O), out.bfloat16())
        for t in range(rows):
            assert torch.equal(ops.linear(x_TI[t : t + 1], weight, bias_O, wide=True), out[t : t + 1])
        for few in (2, 5, 9, 20, 25):
            assert torch.equal(ops.linear(x_TI[:few], weight, bias_O, wide=True), out[:few])


@pytest.mark.parametrize("shape", [*_SHAPES, (16, 8, 2), (47, 9, 1280), (49, 16, 34), (97, 3, 63)])
def test_products_of_many_rows(shape: tuple[int, int, int]) -> None:
    rows, outputs, inputs = shape
    x_TI, weight_OI = torch.randn(rows, inputs).bfloat16(), torch.randn(outputs, inputs).bfloat16()
    for bias_O in (None, torch.randn(outputs).bfloat16()):
        exact = F.linear(x_TI.double(), weight_OI.double(), None if bias_O is None else bias_O.double())
        out = ops.linear_many(x_TI, weight_OI, bias_O)
        # the result's rounding to bfloat16: half a step, 2^-9 of the number itself, beside sums that nearly cancel
        torch.testing.assert_close(out.double(), exact, rtol=2**-8, atol=2e-6 * float(exact.abs().max()))
        for few in (1, 2, 5, 16, 17, 33, 48):
            assert torch.equal(ops.linear_many(x_TI[-few:], weight_OI, bias_O), out[-few:])


@pytest.mark.parametrize("linear", [ops.linear, ops.linear_many])
def test_rows_with_a_stride_and_no_rows(linear: Callable[..., torch.Tensor]) -> None:
    wide_TX, weight = torch.randn(6, 200).bfloat16(), torch.randn(12, 96).bfloat16()
    part = wide_TX[:, 40:136]
    assert torch.equal(linear(part, weight), linear(part.contiguous(), weight))
    assert linear(wide_TX[:0, :96], weight).shape == (0, 12)
    room = torch.full((7, 12), 3.0).bfloat16()
    linear(part, weight, out=room[:6])
    assert torch.equal(room[:6], linear(part, weight))
    assert torch.equal(room[6], torch.full((12,), 3.0).bfloat16())


@pytest.mark.parametrize("width", [16, 72, 1536])
def test_rows_between_products(width: int) -> None:
    x_TD = 3 * torch.randn(33, width).bfloat16()
    norm = RMSNorm(width, 1e-6).bfloat16()
    torch.nn.init.normal_(norm.weight)
    with torch.no_grad():
        # a rounding step of bfloat16 where the twin rounds to the other side
        torch.testing.assert_close(ops.rms_norm(x_TD, norm.weight, norm.eps), norm(x_TD), rtol=2**-7, atol=0)
        gate, up = x_TD.chunk(2, dim=1)
        exact = F.silu(gate.float()) * up.float()
        torch.testing.assert_close(ops.swiglu(x_TD), exact.bfloat16(), rtol=2**-7, atol=1e-30)
        exact = quick_gelu(x_TD.float())
        torch.testing.assert_close(ops.quick_gelu_(x_TD.clone()), exact.bfloat16(), rtol=2**-7, atol=1e-30)


@pytest.mark.parametrize("size", [16, 32, 80, 128])
def test_rotation(size: int) -> None:
    both_TXH = torch.randn(20, 5, size).bfloat16()
    angles_TF = 10 * torch.randn(20, size // 2)
    cos, sin = angles_TF.cos(), angles_TF.sin()
    wanted = rotate(both_TXH, cos[:, None], sin[:, None])
    kept = both_TXH.clone()
    ops.rotate_(both_TXH[:, 1:4], cos, sin)  # some heads of a row
    torch.testing.assert_close(both_TXH[:, 1:4], wanted[:, 1:4], rtol=2**-7, atol=1e-4)
    assert torch.equal(both_TXH[:, 0], kept[:, 0])
    assert torch.equal(both_TXH[:, 4], kept[:, 4])


@pytest.mark.parametrize(
    ("size", "lens"), [(80, (100, 37, 16, 1)), (128, (300,)), (64, (5, 600)), (48, (20,)), (16, (7,))]
)
def test_segments(size: int, lens: tuple[int, ...]) -> None:
    q, k, v = torch.randn(sum(lens), 3, 2, size).bfloat16().unbind(1)
    q = 3 * q
    out = ops.attend_segments(q, k, v, lens)
    exact = attend_naive(q.double(), k.double(), v.double(), lens, causal=False)
    # worst seen 0.0023 of the largest: weights and results are rounded to bfloat16
    assert (out - exact).abs().max() < 0.005 * exact.abs().max()
    at = 0
    for length in lens:
        own = slice(at, at + length)
        assert torch.equal(ops.attend_segments(q[own], k[own], v[own], (length,)), out[own])
        at += length


def _context(store: CellStore | PagedStore, rows: list[Row]):
    none = torch.zeros(0, dtype=torch.long)
    tokens = sum(row.new for row in rows)
    lens = tuple(row.new for row in rows)
    tokens_T, positions_RT = torch.zeros(tokens, dtype=torch.long), torch.zeros(3, tokens, dtype=torch.long)
    batch = Batch(tokens_T, positions_RT, lens, torch.zeros(0, 0), none.expand(2, 0), (), (), none)
    return store.context(batch, rows)


@pytest.mark.parametrize(("heads", "kv_heads", "size", "page"), [(12, 2, 128, 32), (4, 4, 16, 16), (7, 1, 80, 48)])
def test_pages(heads: int, kv_heads: int, size: int, page: int) -> None:
    """Sequences of 700, 40 and 1 tokens in scattered pages, in pieces: each as the naive twin, and in any pieces and
    company the same bits."""
    config = DecoderConfig(heads * size, 1, heads, kv_heads, size, 64)
    pages = np.random.default_rng(0).permutation(64)
    lens = (700, 40, 1)
    counts = [-(-n // page) for n in lens]
    owned = np.split(pages[: sum(counts)], np.cumsum(counts)[:-1])
    q, k, v = (torch.randn(sum(lens), n, size).bfloat16() for n in (heads, kv_heads, kv_heads))
    q = 2 * q
    exact = attend_naive(q.double(), k.double(), v.double(), lens, causal=True).split(lens)
    parts = [x.split(lens) for x in (q, k, v)]

    def attended(cuts: list[tuple[int, ...]]) -> list[torch.Tensor]:
        """Piece i of every sequence together, then piece i + 1, ..."""
        store = CellStore(config, 64, page, torch.bfloat16, torch.device("cpu"))
        done, outs = [0, 0, 0], [[], [], []]
        for turn in range(max(map(len, cuts))):
            who = [s for s in range(3) if turn < len(cuts[s])]
            rows = [Row(owned[s], done[s], cuts[s][turn], lens[s]) for s in who]
            own = [slice(done[s], done[s] + cuts[s][turn]) for s in who]
            q_, k_, v_ = (torch.cat([x[s][o] for s, o in zip(who, own, strict=True)]) for x in parts)
            pieces = _context(store, rows).text(0, q_, k_, v_).split([row.new for row in rows])
            for s, piece in zip(who, pieces, strict=True):
                outs[s].append(piece)
                done[s] += len(piece)
        return [torch.cat(out) for out in outs]

    whole = attended([(700,), (40,), (1,)])
    for out, wanted in zip(whole, exact, strict=True):
        # worst seen 0.0024 of the largest
        assert (out - wanted).abs().max() < 0.005 * wanted.abs().max()
    for cuts in ([(1, 300, 1, 398), (39, 1), (1,)], [(255, 257, 188), (16, 16, 8), (1,)]):
        for a, b in zip(whole, attended(cuts), strict=True):
            assert torch.equal(a, b)


def test_what_is_not_a_number_stays_so() -> None:
    q, k, v = torch.randn(40, 3, 1, 16).bfloat16().unbind(1)
    k = k.clone()
    k[17] = float("nan")
    assert ops.attend_segments(q, k, v, (40,)).isnan().all()
    x_TI, weight = torch.randn(3, 64).bfloat16(), torch.randn(8, 64).bfloat16()
    x_TI[1, 5] = float("nan")
    assert ops.linear(x_TI, weight).isnan().any(1).tolist() == [False, True, False]


@pytest.fixture
def _fresh_library() -> Iterator[None]:
    build.library.cache_clear()
    yield
    build.library.cache_clear()


@pytest.mark.usefixtures("_fresh_library")
@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("cpu_flags", lambda: frozenset({"avx2"}), "this processor has no fma;"),
        ("cpu_flags", lambda: frozenset({"fma", "avx512f"}), "this processor has no avx2;"),
        ("_compiler", lambda: None, r"there is no compiler \(g\+\+, c\+\+, clang\+\+\)"),
        ("kernels_wanted", lambda: "0", "QVL_KERNELS=0"),
        ("_FLAGS", ["--no-such-flag"], "they could not be compiled"),
    ],
)
def test_without_kernels_one_line_says_why(
    name: str, value: object, reason: str, monkeypatch, caplog, tmp_path
) -> None:
    monkeypatch.setattr(build, name, value)
    monkeypatch.setattr(build, "cache_folder", lambda: tmp_path)
    with caplog.at_level(logging.INFO):
        assert build.library() is None
        assert build.library() is None
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("compiled kernels are not used: ")
    assert re.search(reason, line)


@pytest.mark.usefixtures("_fresh_library")
def test_a_set_of_instructions_that_there_is_not(monkeypatch) -> None:
    monkeypatch.setenv("QVL_KERNELS", "sse")
    with pytest.raises(ValueError, match="QVL_KERNELS=sse: it may be 0, avx512, avx2 or unset"):
        build.library()


@pytest.mark.slow
@pytest.mark.usefixtures("_fresh_library")
def test_compiled_once(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(build, "cache_folder", lambda: tmp_path)
    assert build.library() is not None
    (file,) = (tmp_path / "kernels").iterdir()
    assert file.suffix == ".so"
    made = file.stat().st_mtime_ns
    build.library.cache_clear()
    assert build.library() is not None
    assert file.stat().st_mtime_ns == made
