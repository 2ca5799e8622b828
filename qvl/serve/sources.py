"""Where the pictures and clips of a request come from: data URI, upload, allowed folder, allowed host.

Knows: which of these a client may use, and that a picture's header is looked at before anything is admitted.
Does not know: messages, HTTP.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, final
from urllib.parse import unquote, urlsplit

from qvl.media.clip import scan_clip
from qvl.media.image import image_hw, read_source
from qvl.media.remote import fetch
from qvl.serve.config import ServeConfig
from qvl.serve.uploads import PREFIX, Uploads

Kind = Literal["picture", "video"]


@final
class Sources:
    """Turns what a client wrote into encoded bytes. Blocking: call it in a worker thread."""

    def __init__(self, config: ServeConfig, uploads: Uploads) -> None:
        self._config = config
        self._uploads = uploads

    def load(self, url: object, kind: Kind, owner: str) -> bytes:
        """The encoded bytes, of which nothing is decoded: a picture's header and a clip's packets are fit to be.

        Raises:
            ValueError: not allowed, not there, not a picture, too many pixels.
        """
        if not isinstance(url, str) or not url:
            raise ValueError(f"the address of a {kind} must be a text, got {type(url).__name__}")
        data = self._bytes(url, kind, owner)
        if kind == "picture":
            image_hw(data, max_source_pixels=self._config.limits.source_pixels)
        else:
            self._check_clip(data)
        return data

    def _check_clip(self, data: bytes) -> None:
        limits = self._config.limits
        try:
            clip = scan_clip(data, max_source_pixels=limits.source_pixels)
        except ImportError as error:
            raise ValueError(f"this server cannot read clips: {error}") from error
        (height, width), frames = clip.stored_hw, len(clip.pts)
        if height * width * frames > limits.clip_pixels:
            raise ValueError(
                f"{clip.name} has {frames:,} frames of {height} x {width} pixels, together "
                f"{height * width * frames:,}; the limit is {limits.clip_pixels:,}. Cut it, or scale it down"
            )

    def _bytes(self, url: str, kind: Kind, owner: str) -> bytes:
        if url[:5].lower() == "data:":
            return read_source(url, kind=kind, media_type="image/" if kind == "picture" else "video/")[0]
        if url.startswith(PREFIX):
            upload = self._uploads.get(owner, url)
            if upload is None:
                raise ValueError(f"there is no uploaded file {url[:80]!r} (any more); upload it again at /v1/files")
            return upload.data
        if url.startswith(("http://", "https://")):
            return fetch(url, self._config.remote)
        return self._local(url, kind)

    def _local(self, url: str, kind: Kind) -> bytes:
        folder = self._config.allowed_local_path
        if folder is None:
            raise ValueError(
                f"{url[:80]!r}: files of the server are not open to requests; send the {kind} as a data URI or upload "
                "it at /v1/files (the server's owner can allow a folder with --allowed-local-media-path)"
            )
        if "\0" in url:
            raise ValueError("a path holds a zero byte")
        path = Path(unquote(urlsplit(url).path) if url.startswith("file:") else url)
        try:
            file = (folder / path).resolve()  # links followed: what counts is where the file lies
            if not file.is_relative_to(folder.resolve()) or not file.is_file():
                raise ValueError(f"{url[:200]!r} is not a file in the folder that requests may use")
            if (size := file.stat().st_size) > self._config.limits.upload_bytes:
                raise ValueError(f"{url[:200]!r} has {size:,} bytes; the limit is {self._config.limits.upload_bytes:,}")
            return read_source(str(file), kind=kind, media_type="")[0]
        except (OSError, RuntimeError) as error:  # a name too long, links in a circle, a file that may not be read
            raise ValueError(f"{url[:200]!r} cannot be opened: {type(error).__name__}") from error
