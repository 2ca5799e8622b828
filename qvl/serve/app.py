"""The application: routes, and what becomes of errors.

Knows: paths. Does not know: models (an `api.LiveEngine` answers), sockets (`server`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from qvl.engine.api import LiveEngine
from qvl.runtime import trim_memory
from qvl.serve.chat import CLIENT_GONE, ChatEndpoint
from qvl.serve.config import ServeConfig
from qvl.serve.errors import ApiError, error_body
from qvl.serve.gate import Gate
from qvl.serve.metrics import Metrics
from qvl.serve.page import page_response
from qvl.serve.schema import ChatRequest
from qvl.serve.sources import Sources
from qvl.serve.uploads import Upload, Uploads

_TRIM_S = 20.0
"""Seconds between two times that freed memory is given back."""


def create_app(engine: LiveEngine, config: ServeConfig | None = None) -> FastAPI:
    """An ASGI application that answers with `engine`, and closes it when it is shut down."""
    config = config or ServeConfig()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        trimming = asyncio.create_task(_trim_now_and_then())
        yield
        trimming.cancel()
        # Requests under way had their time before this (uvicorn waits for them): what still runs is given up.
        await run_in_threadpool(engine.close, drain_s=0.0)

    # No pages of FastAPI's own: they would load scripts from elsewhere.
    app = FastAPI(title="qvl", docs_url=None, redoc_url=None, lifespan=lifespan)
    metrics = Metrics()
    uploads = Uploads(config.limits.uploads_total_bytes, config.limits.upload_keep_s)
    app.add_middleware(Gate, config=config, metrics=metrics)  # pyrefly: ignore[bad-argument-type]
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _invalid_body)
    app.add_exception_handler(ClientDisconnect, _gone)
    app.add_exception_handler(Exception, _own_error)
    chat = ChatEndpoint(engine, config, Sources(config, uploads), metrics)
    _add_chat(app, engine, chat)
    _add_files(app, config, uploads)

    # Not in the thread pool, whose threads may all be busy with pictures: whoever watches the server gets an answer.
    @app.api_route("/health", methods=["GET", "HEAD"])
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/metrics")
    async def metrics_text() -> Response:
        return PlainTextResponse(
            metrics.text(engine.stats(), uploads.used_bytes), media_type="text/plain; version=0.0.4"
        )

    @app.api_route("/", methods=["GET", "HEAD"])
    async def page() -> Response:
        return page_response("index.html")

    @app.get("/page/{name}")
    async def page_file(name: str) -> Response:
        return page_response(name)

    return app


async def _trim_now_and_then() -> None:
    while True:
        await asyncio.sleep(_TRIM_S)
        await run_in_threadpool(trim_memory)


def _add_chat(app: FastAPI, engine: LiveEngine, chat: ChatEndpoint) -> None:
    model = {"id": engine.model_name, "object": "model", "created": int(time.time()), "owned_by": "qvl"}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [model]}

    @app.get("/v1/models/{name:path}")
    async def one_model(name: str) -> dict[str, Any]:
        if name != engine.model_name:
            raise ApiError(f"there is no model {name[:100]!r} here", status=404, code="model_not_found")
        return model

    @app.post("/v1/chat/completions")
    async def completions(body: ChatRequest, request: Request) -> Response:
        return await chat.answer(body, request)


def _add_files(app: FastAPI, config: ServeConfig, uploads: Uploads) -> None:
    @app.post("/v1/files")
    async def upload(request: Request) -> dict[str, Any]:
        async with request.form(max_files=1, max_fields=8) as form:
            file = form.get("file")
            if not isinstance(file, UploadFile):
                raise ApiError("send the file as multipart/form-data, in the field 'file'", param="file")
            limit = config.limits.upload_bytes
            if (file.size or 0) > limit:
                raise ApiError(f"the file has {file.size:,} bytes; the limit is {limit:,}", status=413, param="file")
            data = await file.read()
        try:
            return _told(uploads.add(request.state.owner, (file.filename or "")[:200], data))
        except ValueError as error:
            raise ApiError(str(error), param="file") from error

    @app.get("/v1/files")
    async def files(request: Request) -> dict[str, Any]:
        return {"object": "list", "data": [_told(u) for u in uploads.list(request.state.owner)], "has_more": False}

    @app.get("/v1/files/{file_id}")
    async def one_file(file_id: str, request: Request) -> dict[str, Any]:
        found = uploads.get(request.state.owner, file_id)
        if found is None:
            raise _no_file(file_id)
        return _told(found)

    @app.delete("/v1/files/{file_id}")
    async def delete_file(file_id: str, request: Request) -> dict[str, Any]:
        if not uploads.delete(request.state.owner, file_id):
            raise _no_file(file_id)
        return {"id": file_id, "object": "file", "deleted": True}


def _no_file(file_id: str) -> ApiError:
    return ApiError(f"there is no uploaded file {file_id[:80]!r} (any more)", status=404, code="file_not_found")


def _told(upload: Upload) -> dict[str, Any]:
    told = {"id": upload.id, "object": "file", "bytes": len(upload.data), "created_at": int(upload.created)}
    return told | {"filename": upload.name, "purpose": "vision", "status": "processed"}


async def _http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if isinstance(error, ApiError):
        message, param, code = error.detail, error.param, error.code
    elif isinstance(error.__cause__, ValueError | RecursionError):  # bytes, numbers of 5,000 digits, 10,000 brackets
        message, param, code = f"the body is not JSON in UTF-8: {error.__cause__}", None, "invalid_json"
    else:
        message, param, code = f"{error.detail} (status {error.status_code})", None, None
    headers = dict(error.headers or {}) | ({"Connection": "close"} if error.status_code in (408, 413) else {})
    return JSONResponse(error_body(error.status_code, message, param, code), error.status_code, headers)


async def _invalid_body(_: Request, error: Exception) -> Response:
    """The first thing that is wrong, said once."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = [str(part) for part in first["loc"][1:] if not isinstance(part, str) or part.isidentifier()]
    if first["type"] == "json_invalid":
        return JSONResponse(error_body(400, f"the body is not JSON: {first['ctx']['error']}", code="invalid_json"), 400)
    if isinstance(error.body, bytes):  # FastAPI reads only what is declared as JSON
        message = "the body is not declared as JSON; send it with the header 'Content-Type: application/json'"
        return JSONResponse(error_body(400, message), 400)
    param = ".".join(where) or None
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        message = "is not a field that this server knows; it is refused because it would be without effect"
    return JSONResponse(error_body(400, f"{param or 'body'}: {message}", param), 400)


async def _gone(_: Request, error: Exception) -> Response:
    """Somebody left in the middle of an upload: no failure of the server's."""
    return Response(status_code=CLIENT_GONE)


async def _own_error(_: Request, error: Exception) -> Response:
    return JSONResponse(error_body(500, f"the server failed: {type(error).__name__}; its log says more"), 500)
