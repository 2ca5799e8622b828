"""Charts, boxes, grids, masks: well-formed, in the right place, nothing unescaped."""

import re
import xml.etree.ElementTree as ET

import pytest
import torch

from qvl.batch import IGNORE, Batch
from qvl.viz.boxes import Drawn, boxes_svg, data_uri
from qvl.viz.curves import Band, Chart, Series, line_chart, standalone
from qvl.viz.loss_mask import Piece, mask_html, mask_pieces, mask_text
from qvl.viz.packing import SIZE, packing_svg
from qvl.viz.patches import grid_svg, rope_cells
from qvl.viz.svg import escape, linear_ticks, log_ticks

SVG = "{http://www.w3.org/2000/svg}"


def texts(svg: str) -> list[str]:
    return ["".join(t.itertext()) for t in ET.fromstring(svg).iter(f"{SVG}text")]


def test_escape_disarms_markup_controls_and_direction_marks():
    assert escape("<b a=\"1\" b='2'>&") == "&lt;b a=&quot;1&quot; b=&#x27;2&#x27;&gt;&amp;"
    assert escape("a\u202eb\x00c\x1b[31m") == "a\ufffdb\ufffdc\ufffd[31m"
    assert escape("猫 👩‍🚀\n") == "猫 👩‍🚀\n"


def test_ticks():
    assert linear_ticks(0, 10) == [0, 2, 4, 6, 8, 10]
    assert linear_ticks(0.12, 0.48, 4) == pytest.approx([0.2, 0.3, 0.4])
    assert linear_ticks(3, 3) == [3]
    assert log_ticks(0.3, 6) == pytest.approx([0.5, 1, 2, 5])


def paths(svg: str) -> list[list[tuple[float, float]]]:
    """Points of the coloured lines."""
    found = [p.get("d") for p in ET.fromstring(svg).iter(f"{SVG}path") if p.get("stroke") == "var(--accent)"]
    return [[tuple(map(float, xy.split())) for xy in re.split("[ML]", d) if xy.strip()] for d in found]


def test_a_line_chart_goes_where_its_values_are():
    chart = Chart("t", width=100, height=100, margins=(0, 0, 0, 0))
    ((first, middle, last),) = paths(line_chart([Series("a", [0, 5, 10], [0, 10, 5])], chart))
    assert (first, last[0]) == ((0.0, 100.0), 100.0)
    assert middle[0] == 50
    assert middle[1] < last[1] < first[1]  # bigger is higher
    log = Chart("t", log_y=True, width=100, height=100, margins=(0, 0, 0, 0))
    ((a, b, c),) = paths(line_chart([Series("a", [0, 1, 2], [1, 10, 100])], log))
    assert b[1] - a[1] == pytest.approx(c[1] - b[1], abs=0.02)  # equal factors, equal steps


def test_gaps_bands_and_thinning():
    nan = float("nan")
    svg = line_chart([Series("a", [0, 1, 2, 3, 4], [1, 1, nan, 2, 2])], Chart("t", bands=[Band("<text>", 0, 4)]))
    assert len(paths(svg)) == 2
    assert "&lt;text&gt;" in svg
    assert "<text>" not in svg
    long = line_chart([Series("a", range(10_000), [1.0] * 10_000)], Chart("t"))
    assert len(paths(long)[0]) <= 600
    rare = [2.0 if i % 10 == 0 else nan for i in range(10_000)]
    ((first, *_),) = paths(line_chart([Series("rare", range(10_000), rare)], Chart("t", log_y=True, height=100)))
    assert first[1] == pytest.approx((26 + 100 - 34) / 2), "a task of few packs: half way between the ends of the axis"
    assert "circle" in line_chart([Series("a", [1], [2])], Chart("t"))


def test_chart_mistakes_are_named():
    with pytest.raises(ValueError, match="'a' has 1 x values but 2"):
        line_chart([Series("a", [1], [1, 2])], Chart("t"))
    with pytest.raises(ValueError, match="'t' has no value"):
        line_chart([Series("a", [1], [0.0])], Chart("t", log_y=True))


def test_standalone_chart_carries_its_colours():
    svg = standalone(line_chart([Series("a", [0, 1], [1, 2]), Series("b", [0, 1], [1, 3], "second")], Chart("t")))
    assert ET.fromstring(svg)[0].tag == f"{SVG}style"
    assert {"a", "b"} <= set(texts(svg))


def test_boxes_lie_in_the_pictures_own_pixels():
    drawn = [Drawn((10, 20, 40, 60), "true"), Drawn((0, 0, 5, 5), "predicted", "<dog>"), Drawn((1, 1, 2, 2), "asked")]
    root = ET.fromstring(boxes_svg(drawn, (80, 120), "data:image/png;base64,AA==", 'a "dog"'))
    assert root.get("viewBox") == "0 0 120 80"  # SVG wants width first
    assert root.get("aria-label") == 'a "dog"'
    rects = root.findall(f"{SVG}rect")[1::2]
    assert [rects[0].get(k) for k in ("x", "y", "width", "height")] == ["10", "20", "30", "40"]
    dashes = [r.get("stroke-dasharray") for r in rects]
    assert dashes[0] is None  # true is solid
    assert dashes[1] is not None  # predicted is dashed
    assert dashes[1] != dashes[2]
    assert root.find(f"{SVG}text").text == "<dog>"
    with pytest.raises(ValueError, match="at least 1 pixel"):
        boxes_svg([], (0, 5))
    with pytest.raises(ValueError, match="a box is x1"):
        boxes_svg([Drawn((1, 2, 3))], (5, 5))


def test_data_uri(tmp_path):
    (tmp_path / "a.png").write_bytes(b"abc")
    assert data_uri(tmp_path / "a.png") == "data:image/png;base64,YWJj"
    with pytest.raises(FileNotFoundError, match="run the evaluation again"):
        data_uri(tmp_path / "b.png")
    with pytest.raises(ValueError, match="must be one of"):
        data_uri(tmp_path / "a.svg")


def test_grid_has_a_text_per_vision_token():
    svg = grid_svg((4, 6), [f"{i}" for i in range(6)])
    assert ET.fromstring(svg).get("viewBox") == "0 0 84 56"
    assert texts(svg) == ["0", "1", "2", "3", "4", "5"]
    positions = [(float(t.get("x")), float(t.get("y"))) for t in ET.fromstring(svg).iter(f"{SVG}text")]
    assert [x for x, _ in positions] == [14, 42, 70] * 2
    with pytest.raises(ValueError, match="5 texts for 2 x 3 = 6"):
        grid_svg((4, 6), ["x"] * 5)
    with pytest.raises(ValueError, match="3 x 6 patches cannot be merged"):
        grid_svg((3, 6))


@pytest.fixture
def batch():
    """Sequence 0: a b [4 vision tokens of a 4x4 grid] e F; sequence 1, a branch of 0: g H (capitals supervised)."""
    tokens = torch.tensor([1, 2, 9, 9, 9, 9, 5, 6, 7, 8])
    labels = torch.full((10,), IGNORE)
    labels[6], labels[8] = 6, 8
    positions = torch.stack([torch.arange(10), torch.arange(10) * 10, torch.arange(10) * 100])
    return Batch(
        tokens_T=tokens,
        positions_RT=positions,
        seq_lens=(8, 2),
        patches_PC=torch.zeros(16, 3),
        patch_hw_2P=torch.zeros(2, 16, dtype=torch.long),
        segment_lens=(16,),
        grids=((1, 4, 4),),
        vision_rows_M=torch.tensor([2, 3, 4, 5]),
        parents=(-1, 0),
        labels_T=labels,
        names=("first", "second"),
    )


def letters(ids):
    return "".join("?abcdefgh"[i] for i in ids)


def test_rope_cells_read_the_rows_that_vision_fills(batch):
    assert rope_cells(batch, 0) == ["2 20 200", "3 30 300", "4 40 400", "5 50 500"]
    with pytest.raises(ValueError, match="no picture 1: the batch has 1"):
        rope_cells(batch, 1)
    with pytest.raises(ValueError, match="no temporal patch 1"):
        rope_cells(batch, 0, frame=1)


def test_rope_cells_skip_earlier_pictures_and_frames():
    rows = torch.arange(1 + 2 * 2)  # a picture of one token, a video of two frames with two tokens each
    batch = Batch(
        torch.zeros(5, dtype=torch.long), torch.arange(5)[None], (5,), torch.zeros(20, 1),
        torch.zeros(2, 20, dtype=torch.long), (4, 8, 8), ((1, 2, 2), (2, 2, 4)), rows,
    )  # fmt: skip
    assert rope_cells(batch, 0) == ["0"]
    assert rope_cells(batch, 1, frame=0) == ["1", "2"]
    assert rope_cells(batch, 1, frame=1) == ["3", "4"]


def test_loss_mask_shows_what_is_supervised(batch):
    assert mask_pieces(batch, 0, letters) == [
        Piece("ab", 2, False),
        Piece("[4 vision tokens]", 4, False, True),
        Piece("e", 1, False),
        Piece("f", 1, True),
    ]
    assert mask_pieces(batch, 1, letters) == [Piece("g", 1, False), Piece("h", 1, True)]
    text = mask_text(mask_pieces(batch, 0, letters))
    assert text.plain == "ab[4 vision tokens]ef"
    assert [(span.start, span.end, str(span.style)) for span in text.spans][-1] == (20, 21, "bold green")
    page = mask_html([Piece("<|im_end|>", 1, True), Piece("x", 2, False)])
    assert '<mark title="1 tokens, supervised">&lt;|im_end|&gt;</mark>' in page
    assert '<span title="2 tokens, not supervised">x</span>' in page


def test_loss_mask_mistakes_are_named(batch):
    with pytest.raises(ValueError, match="no sequence 2: the batch has 2"):
        mask_pieces(batch, 2, letters)
    fields = {name: getattr(batch, name) for name in batch.__dataclass_fields__}
    with pytest.raises(ValueError, match="labels=True"):
        mask_pieces(Batch(**{**fields, "labels_T": None}), 0, letters)


def test_packing_draws_triangles_and_the_beginning_of_a_branch(batch):
    root = ET.fromstring(packing_svg(batch))
    triangles = [p.get("points").split() for p in root.iter(f"{SVG}polygon")]
    unit = SIZE / 10
    assert triangles == [["0,0", f"0,{8 * unit:g}", f"{8 * unit:g},{8 * unit:g}"], ["384,384", "384,480", "480,480"]]
    parent = next(r for r in root.iter(f"{SVG}rect") if r.get("fill") == "#b4590b")
    assert [parent.get(k) for k in ("x", "y", "width", "height")] == ["0", "384", "384", "96"]
    stripes = [r for r in root.iter(f"{SVG}rect") if r.get("fill") == "#7a7f87"]
    assert [(s.get("y"), s.get("height")) for s in stripes] == [("96", "192")]
    assert {t.text for t in root.iter(f"{SVG}title")} == {"first: 8 tokens", "second: 2 tokens"}
