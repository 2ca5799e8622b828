"""The web page's files, with headers that let it load nothing from anywhere else.

Knows: names and media types. Does not know: what the page does.
"""

from __future__ import annotations

from importlib.resources import files

from starlette.responses import Response

from qvl.serve.errors import ApiError

_TYPES = {
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "svg": "image/svg+xml",
}
_NAMES = (
    "index.html",
    "style.css",
    "icon.svg",
    "app.js",
    "view.js",
    "marks.js",
    "server.js",
    "snippets.js",
    "store.js",
)
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data: blob:; "
        "media-src blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def page_response(name: str) -> Response:
    """
    Raises:
        ApiError: there is no such file.
    """
    if name not in _NAMES:
        raise ApiError(f"there is no {name[:100]!r} here", status=404)
    content = (files("qvl.serve") / "page" / name).read_bytes()
    return Response(content, headers=_HEADERS, media_type=_TYPES[name.rpartition(".")[2]])
