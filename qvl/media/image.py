"""Opening a picture, whatever it comes in, as upright 8-bit RGB.

Knows: the accepted sources, the raster formats that may be decoded, the pixel cap before decoding, EXIF
orientation, transparency, greyscale depths. Turns Pillow's (width, height) round; nobody else has to.
Does not know: target sizes, patches, tensors, the network (remote addresses are refused here).
"""

from __future__ import annotations

import base64
import binascii
import io
import re
import struct
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
"""Raster formats only: no vector or document format that would start an interpreter (SVG, EPS, PDF, WMF)."""

MAX_SOURCE_PIXELS = 178_956_970
"""Default cap on a picture as stored (width x height read from its header), the size at which Pillow too refuses."""

_EXIF_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_PNG_ORIENTATION = (b"eXIf", b"Raw profile type exif", b"XML:com.adobe.xmp")
"""Where a PNG may say that it is turned: one of these is in its bytes, or it does not."""
_SCHEME = re.compile(r"^[A-Za-z][A-Za-z0-9+.\-]+://")
_DATA_URI = re.compile(r"^data:(?P<type>[^;,]*)(?P<options>(?:;[^;,]*)*),", re.IGNORECASE)


def open_image(source: Any, *, max_source_pixels: int = MAX_SOURCE_PIXELS) -> Image.Image:
    """Decodes `source` completely and returns it upright, in RGB, transparency laid on white.

    Args:
        source: local path, encoded bytes, `data:` URI (base64), `PIL.Image.Image`, or uint8 array
            [height, width, 3]. Of an animation the first frame is taken.
        max_source_pixels: pictures whose header claims more pixels (height * width) are refused undecoded.

    Returns:
        A picture of its own: no metadata (so opening it again turns nothing twice), memory shared with nobody.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: everything else that can be wrong with a picture; the message names it.
    """
    own = view_image(source, max_source_pixels=max_source_pixels).copy()
    own.info = {}
    return own


def view_image(source: Any, *, max_source_pixels: int = MAX_SOURCE_PIXELS) -> Image.Image:
    """`open_image` for a reader who changes nothing: the result may be `source` itself, metadata included."""
    if isinstance(source, np.ndarray):
        return _from_array(source)
    if isinstance(source, Image.Image):
        _check_size(source, "picture object", max_source_pixels)
        with _blame("picture object"):
            return _to_upright_rgb(source)
    data, name = read_source(source, kind="picture", media_type="image/")
    with _blame(name):
        picture = _open_header(data)
    with picture:
        _check_size(picture, name, max_source_pixels)
        with _blame(name):
            return _to_upright_rgb(picture)


def image_hw(source: Any, *, max_source_pixels: int = MAX_SOURCE_PIXELS) -> tuple[int, int]:
    """(height, width) that `open_image` would return, read from the header: no pixel is decoded.

    Raises: as `open_image`, except for damage that only decoding can find.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source).size[::-1]
    if isinstance(source, Image.Image):
        _check_size(source, "picture object", max_source_pixels)
        return _upright_hw(source)
    data, name = read_source(source, kind="picture", media_type="image/")
    with _blame(name):
        picture = _open_header(data)
    with picture:
        _check_size(picture, name, max_source_pixels)
        if picture.format == "PNG" and not any(mark in data for mark in _PNG_ORIENTATION):
            return picture.height, picture.width  # Pillow would decode it all to look behind the pixels
        return _upright_hw(picture)


def read_source(source: Any, *, kind: str, media_type: str) -> tuple[bytes, str]:
    """The encoded bytes of a path, bytes or `data:` URI, and a short name for messages.

    `kind` ("picture", "video") words the messages; `media_type` is the prefix a data URI has to declare.
    """
    if isinstance(source, bytes | bytearray | memoryview):
        data, name = bytes(source), f"{kind} given as {len(source)} bytes"
    elif isinstance(source, str) and source[:5].lower() == "data:":
        data, name = _from_data_uri(source, kind, media_type), f"{kind} given as a data URI"
    else:
        path = local_path(source, kind=kind)
        data, name = path.read_bytes(), str(path)
    if not data:
        raise ValueError(f"{name} is empty (0 bytes)")
    return data, name


def local_path(source: Any, *, kind: str) -> Path:
    """`source` as the path of an existing regular file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: an address instead of a path, a folder, a device, or an object of another type.
    """
    if not isinstance(source, str | Path):
        raise ValueError(
            f"cannot open a {kind} from {type(source).__name__}; give a local path, encoded bytes, a data URI"
            + (", a PIL picture or a uint8 array [height, width, 3]" if kind == "picture" else " or a list of frames")
        )
    if isinstance(source, str) and (scheme := _SCHEME.match(source)):
        raise ValueError(
            f"{source[:200]!r} is an address: {scheme.group()} sources are off here, only local files are opened; "
            f"download the {kind} and give its plain path, its bytes or a data URI"
        )
    path = Path(source)
    try:
        there = path.exists()
    except OSError as error:  # a name that no file can have, or a folder that may not be looked into
        raise ValueError(
            f"{str(source)[:80]!r} ({len(str(source))} characters) cannot be the path of a {kind}: {error.strerror}; "
            f"base64 needs data:{kind if kind == 'video' else 'image'}/...;base64, before it"
        ) from None
    if not there:
        raise FileNotFoundError(f"no such {kind} file: {str(source)[:400]}")
    if not path.is_file():
        raise ValueError(f"{path} is not a regular file, so it cannot be a {kind}")
    return path


def _from_data_uri(uri: str, kind: str, media_type: str) -> bytes:
    head = _DATA_URI.match(uri)
    if head is None:
        raise ValueError(f"malformed data URI {uri[:40]!r}...; expected data:{media_type}...;base64,<data>")
    declared = head["type"].lower()
    if declared and not declared.startswith(media_type) and declared != "application/octet-stream":
        raise ValueError(f"data URI declares {declared!r}, which is not a {kind}; expected {media_type}...")
    if ";base64" not in head["options"].lower():
        raise ValueError(f"data URI of a {kind} must be base64: expected data:{media_type}...;base64,<data>")
    try:
        return base64.b64decode("".join(uri[head.end() :].split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"data URI of a {kind} holds invalid base64: {error}") from error


def _from_array(pixels: np.ndarray) -> Image.Image:
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape:
        raise ValueError(
            f"a picture array must be uint8 of shape [height, width, 3], got {pixels.dtype} {list(pixels.shape)}"
        )
    return Image.fromarray(np.ascontiguousarray(pixels))


def _open_header(data: bytes) -> Image.Image:
    """Reads the header only. Pillow's own size limit is a global of Pillow: where it fires, the header is read
    again by the format's plugin, so that the size is known and our cap (an argument) alone decides."""
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        for name in FORMATS:
            factory, accept = Image.OPEN[name]
            if accept is None or accept(data[:16]) is True:
                return factory(io.BytesIO(data), "")
        raise


def _check_size(picture: Image.Image, name: str, max_source_pixels: int) -> None:
    width, height = picture.size
    if height < 1 or width < 1:
        raise ValueError(f"{name} is {height} high and {width} wide: it has no pixels")
    if height * width > max_source_pixels:
        raise ValueError(
            f"{name} is {height} x {width} = {height * width:,} pixels (height x width, from its header), more than "
            f"max_source_pixels={max_source_pixels:,}; scale the file down, or pass a larger max_source_pixels"
        )


@contextmanager
def _blame(name: str):
    """Names the source in every error of the decoder: on hostile bytes Pillow's plugins raise nearly anything."""
    try:
        yield
    except MemoryError:
        raise
    except Image.UnidentifiedImageError as error:
        raise ValueError(f"{name} is not a picture in any accepted format ({', '.join(FORMATS)})") from error
    except Exception as error:
        raise ValueError(f"cannot decode {name}: {error or type(error).__name__} (truncated or damaged?)") from error


def _orientation(picture: Image.Image) -> int:
    """EXIF orientation 1..8; 1 (upright) also where the EXIF block is absent, unreadable or says another number, and
    for TIFF, which Pillow turns upright itself while it decodes."""
    if picture.format == "TIFF":
        return 1
    try:
        told = int(picture.getexif().get(_EXIF_ORIENTATION, 1))
    except (SyntaxError, ValueError, TypeError, KeyError, OSError, IndexError, OverflowError, struct.error):
        return 1  # damaged EXIF says nothing about orientation; the pixels are still good
    return told if told in _UPRIGHT else 1


def _upright_hw(picture: Image.Image) -> tuple[int, int]:
    width, height = picture.size
    return (width, height) if _orientation(picture) >= 5 else (height, width)


def _to_upright_rgb(picture: Image.Image) -> Image.Image:
    turn = _UPRIGHT.get(_orientation(picture))
    picture.load()
    has_alpha = picture.has_transparency_data  # also of a palette's colours
    if picture.mode in _DEEP_GREY:
        rgb = Image.fromarray(_DEEP_GREY[picture.mode](np.asarray(picture))).convert("RGB")
    elif has_alpha:
        rgba = (picture.convert("LA") if picture.mode == "La" else picture).convert("RGBA")
        rgb = Image.new("RGB", rgba.size, (255, 255, 255))
        rgb.paste(rgba, mask=rgba.getchannel("A"))
    else:
        rgb = picture if picture.mode == "RGB" else picture.convert("RGB")
    return rgb if turn is None else rgb.transpose(turn)


def _grey16(values: np.ndarray) -> np.ndarray:
    """16-bit grey 0..65535 -> uint8, rounded (65535 = 255 * 257)."""
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise ValueError(f"greyscale values {low}..{high} are outside 0..65535; convert the picture to 8 or 16 bits")
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _grey_float(values: np.ndarray) -> np.ndarray:
    """Floating grey 0..1 -> uint8, rounded."""
    low, high = float(values.min()), float(values.max())
    if not (low >= 0.0 and high <= 1.0):
        raise ValueError(f"floating greyscale values {low}..{high} are outside 0..1; convert the picture to 8 bits")
    return np.rint(values * 255.0).astype(np.uint8)


_DEEP_GREY: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "I;16": _grey16,
    "I;16L": _grey16,
    "I;16B": _grey16,
    "I;16N": _grey16,
    "I": _grey16,
    "F": _grey_float,
}
