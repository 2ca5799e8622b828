"""Opening pictures: every source and pixel format ends as upright RGB, everything wrong as one clear message."""

from __future__ import annotations

import base64
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from qvl.media.image import FORMATS, image_hw, open_image


def encoded(picture: Image.Image, format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format, **options)
    return buffer.getvalue()


def photo(height: int = 20, width: int = 30) -> Image.Image:
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def pixels(source, **options) -> np.ndarray:
    picture = open_image(source, **options)
    assert picture.mode == "RGB"
    return np.asarray(picture)


def chunk(kind: bytes, body: bytes) -> bytes:
    """Of a PNG."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds no pixels."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("as_text", [True, False])
def test_every_source_gives_the_same_pixels(tmp_path, as_text):
    data = encoded(photo())
    path = tmp_path / "picture.png"
    path.write_bytes(data)
    uri = "data:image/png;base64," + base64.b64encode(data).decode()
    expected = np.asarray(photo())
    for source in (str(path) if as_text else path, data, bytearray(data), uri, photo(), expected):
        assert np.array_equal(pixels(source), expected)
        assert image_hw(source) == (20, 30)


def test_the_callers_picture_is_not_touched():
    given = photo()
    opened = open_image(given)
    opened.putpixel((0, 0), (1, 2, 3))
    assert given == photo()
    as_array = np.asarray(photo()).copy()
    open_image(as_array).putpixel((0, 0), (1, 2, 3))
    assert np.array_equal(as_array, np.asarray(photo()))


def test_alpha_is_laid_on_white():
    half = np.zeros((4, 4, 4), np.uint8)
    half[..., 0], half[..., 3] = 255, 128
    rgba = Image.fromarray(half, "RGBA")
    clear = Image.fromarray(np.zeros((4, 4, 4), np.uint8), "RGBA")
    grey = Image.fromarray(np.dstack([np.zeros((4, 4)), np.full((4, 4), 128)]).astype(np.uint8), "LA")
    assert tuple(pixels(encoded(rgba))[0, 0]) == (255, 127, 127)
    assert (pixels(encoded(clear)) == 255).all()
    assert (pixels(encoded(grey)) == 127).all()
    assert (pixels(grey.convert("La")) == 127).all()
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([0, 0, 0] * 256)
    palette.putalpha(128)
    assert palette.mode == "PA"
    assert (pixels(palette) == 127).all()


def test_a_transparent_palette_colour_becomes_white():
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30] + [0] * 762)
    palette.putpixel((0, 0), 0)
    shown = pixels(encoded(palette, transparency=0))
    assert tuple(shown[0, 0]) == (255, 255, 255)
    assert tuple(shown[1, 1]) == (10, 20, 30)
    clear = Image.new("RGBA", (4, 4), (10, 20, 30, 0)).quantize()
    assert clear.mode == "P"
    assert clear.palette.mode == "RGBA"
    assert (pixels(clear) == 255).all()


def test_a_transparent_rgb_or_grey_colour_becomes_white():
    colour = Image.new("RGB", (4, 4), (9, 9, 9))
    assert (pixels(encoded(colour, transparency=(9, 9, 9))) == 255).all()
    assert (pixels(encoded(Image.new("L", (4, 4), 7), transparency=7)) == 255).all()


def test_sixteen_bit_grey_is_scaled_not_clipped():
    ramp = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    expected = np.rint(ramp / 257).astype(np.uint8)
    for data in (encoded(Image.fromarray(ramp)), encoded(Image.fromarray(ramp), "TIFF")):
        assert np.array_equal(pixels(data)[..., 0], expected)
    as_int = Image.fromarray(ramp.astype(np.int32))
    assert as_int.mode == "I"
    assert np.array_equal(pixels(as_int)[..., 1], expected)


def test_integer_and_floating_grey_out_of_range_is_refused():
    with pytest.raises(ValueError, match=r"-5\.\.70000"):
        open_image(Image.fromarray(np.array([[-5, 70000]], np.int32)))
    with pytest.raises(ValueError, match=r"outside 0\.\.1"):
        open_image(Image.fromarray(np.array([[0.0, 3.0]], np.float32)))
    assert (pixels(Image.fromarray(np.array([[0.0, 1.0]], np.float32)))[0, :, 0] == [0, 255]).all()


def test_other_modes():
    assert (pixels(Image.new("1", (3, 3), 1)) == 255).all()
    assert (pixels(encoded(Image.new("1", (3, 3), 0))) == 0).all()
    assert (pixels(encoded(Image.new("CMYK", (8, 8), (0, 0, 0, 0)), "JPEG")) == 255).all()
    assert (pixels(encoded(Image.new("L", (3, 3), 77))) == 77).all()


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF"])
def test_every_format_of_the_list_opens(format):
    assert format in FORMATS
    assert pixels(encoded(Image.new("RGB", (16, 12), (200, 30, 30)), format)).shape == (12, 16, 3)


@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation, format):
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(photo(), format, exif=exif)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert np.array_equal(pixels(data), np.asarray(expected))
    assert image_hw(data) == (expected.height, expected.width)
    assert np.array_equal(pixels(Image.open(io.BytesIO(data))), np.asarray(expected))
    assert np.array_equal(pixels(open_image(data)), np.asarray(expected)), "turned twice"


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("exif", [b"MM\x00*\xff\xff\xff\xff junk", b"II*\x00"])
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_damaged_exif_does_not_cost_the_picture(exif, format):
    data = encoded(photo(), format, exif=b"Exif\x00\x00" + exif)
    assert pixels(data).shape == (20, 30, 3)
    assert image_hw(data) == (20, 30)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_an_orientation_that_does_not_exist_turns_nothing(format):
    exif = Image.Exif()
    exif[0x0112] = 9
    data = encoded(photo(), format, exif=exif)
    assert image_hw(data) == pixels(data).shape[:2] == (20, 30)


def test_the_size_of_a_png_needs_no_pixels(monkeypatch):
    """Pillow decodes a PNG without EXIF to look for it behind the pixels."""
    exif = Image.Exif()
    exif[0x0112] = 6
    end = chunk(b"IEND", b"")
    behind = encoded(photo()).removesuffix(end) + chunk(b"eXIf", exif.tobytes()[6:]) + end
    assert image_hw(behind) == pixels(behind).shape[:2] == (30, 20)

    def decode(self):
        raise AssertionError("decoded")

    monkeypatch.setattr(PngImageFile, "load", decode)
    assert image_hw(encoded(photo())) == (20, 30)
    assert image_hw(encoded(photo(), exif=exif)) == (30, 20)


def test_the_size_cap_is_checked_before_decoding(tmp_path):
    huge = tmp_path / "huge.png"
    huge.write_bytes(png_header(20000, 15000))
    for reader in (open_image, image_hw):
        with pytest.raises(ValueError, match=r"huge\.png is 15000 x 20000 = 300,000,000 pixels.*max_source_pixels"):
            reader(huge)
    assert image_hw(huge, max_source_pixels=300_000_000) == (15000, 20000)
    with pytest.raises(ValueError, match=r"20 x 30 = 600 pixels.*max_source_pixels=599"):
        open_image(photo(), max_source_pixels=599)
    before = Image.MAX_IMAGE_PIXELS
    assert image_hw(png_header(100, 100)) == (100, 100)
    assert before == Image.MAX_IMAGE_PIXELS


def test_damaged_files_name_the_file(tmp_path):
    data = encoded(photo(200, 300), "JPEG")
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"cut\.jpg.*truncated"):
        open_image(cut)
    with pytest.raises(ValueError, match="cannot decode"):
        open_image(png_header(100, 100))
    text = tmp_path / "text.png"
    text.write_text("not a picture")
    with pytest.raises(ValueError, match=r"text\.png is not a picture"):
        open_image(text)
    empty = tmp_path / "empty.png"
    empty.touch()
    with pytest.raises(ValueError, match=r"empty\.png is empty"):
        open_image(empty)
    with pytest.raises(ValueError, match="0 bytes"):
        open_image(b"")


def test_document_and_vector_formats_are_not_opened(tmp_path):
    svg = b'<svg xmlns="http://www.w3.org/2000/svg" width="10" height="10"></svg>'
    for data in (svg, b"%PDF-1.7\n", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", encoded(photo(), "ICO")):
        with pytest.raises(ValueError, match="not a picture in any accepted format"):
            open_image(data)


def test_paths_and_addresses(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.png"):
        open_image(tmp_path / "nowhere.png")
    with pytest.raises(ValueError, match="not a regular file"):
        open_image(tmp_path)
    for address in ("http://x.org/a.png", "https://x.org/a.png", "file:///etc/passwd", "FTP://x/y", "s3://b/k"):
        with pytest.raises(ValueError, match="only local files are opened"):
            open_image(address)
    with pytest.raises(ValueError, match=r"\(5000 characters\) cannot be the path .* base64 needs data:image"):
        open_image("iVBOR" * 1000)
    for wrong in (None, 3, [photo()]):
        with pytest.raises(ValueError, match="cannot open a picture from"):
            open_image(wrong)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("data:image/png;base64,@@@", "invalid base64"),
        ("data:image/png;base64,abc", "invalid base64"),
        ("data:image/png,abc", "must be base64"),
        ("data:text/html;base64,aGk=", "text/html"),
        ("data:nonsense", "malformed"),
        ("data:image/png;base64,", "0 bytes"),
        ("data:image/png;base64,aGk=", "not a picture"),
    ],
)
def test_bad_data_uris(uri, message):
    with pytest.raises(ValueError, match=message):
        open_image(uri)


@pytest.mark.parametrize("shape", [(4, 4), (4, 4, 4), (3, 4, 5), (0, 4, 3), (1, 4, 4, 3)])
def test_arrays_must_be_height_width_three(shape):
    with pytest.raises(ValueError, match=r"\[height, width, 3\]"):
        open_image(np.zeros(shape, np.uint8))
    with pytest.raises(ValueError, match="float32"):
        open_image(np.zeros((4, 4, 3), np.float32))
