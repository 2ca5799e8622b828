"""`qvl serve`: a model behind OpenAI's API and a web page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from qvl.engine.limits import Limits as Bounds
    from qvl.serve.config import ServeConfig


def serve(
    model: str,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    name: str | None = None,
    api_key_file: Path | None = None,
    max_tokens: int = 256,
    temperature: float = 0.0,
    max_rows: int = 32,
    max_waiting: int = 64,
    cache_tokens: int | None = None,
    vision_cache_mib: int = 256,
    requests_per_minute: int = 0,
    concurrent: int = 0,
    max_body_mib: int = 64,
    request_s: float = 600.0,
    drain_s: float = 30.0,
    allowed_media_domains: str | list[str] | None = None,
    allowed_local_media_path: Path | None = None,
    device: str = "cpu",
    dtype: Literal["float32", "bfloat16", "float16"] | None = None,
    quantize: Literal["int8", "int4"] | None = None,
) -> None:
    """Answers OpenAI's clients at http://HOST:PORT/v1, and people at http://HOST:PORT in a browser.

    Stops on Ctrl-C or SIGTERM after requests under way are finished. docs/serving.md says more.

    Args:
        model: model folder, or a hub id such as Qwen/Qwen2-VL-2B-Instruct
        host: address to listen on; 0.0.0.0 opens the server to the network (set keys first)
        port: 0 = any free one
        name: the model's name for clients (default: the folder's name, or the hub id)
        api_key_file: file of Bearer keys, one per line; without it nobody is asked for a key
        max_tokens: longest reply where a request does not say
        temperature: of requests that do not say; 0 = always the most likely token
        max_rows: requests answered at the same time
        max_waiting: requests that may wait; more are told to come again (503)
        cache_tokens: tokens whose keys and values are kept; by default one conversation of the model's full length and
            1024 for each further row, or what fits into 4 GiB
        vision_cache_mib: memory for pictures that are asked about again
        requests_per_minute: of each key; 0 = any number
        concurrent: requests of each key under way at once; 0 = any number
        max_body_mib: largest request, and largest upload
        request_s: longest time for one request; what is there by then is the reply
        drain_s: time for requests under way once the server is told to stop
        allowed_media_domains: hosts that pictures may be fetched from (several as '[a.com, b.com]', * = any public
            one); by default none
        allowed_local_media_path: folder whose files requests may name
        device: cpu, cuda, cuda:1 ...
        dtype: number format of the weights (default: float32; with quantize, bfloat16)
        quantize: int8 or int4 = weights of the language model rounded to integers: less memory, faster, less exact
    """
    from qvl.engine.limits import Limits as Bounds
    from qvl.media.remote import RemotePolicy
    from qvl.serve.config import MIB, Limits, ServeConfig

    domains = [allowed_media_domains] if isinstance(allowed_media_domains, str) else allowed_media_domains or []
    limits = Limits(
        body_bytes=max_body_mib * MIB,
        upload_bytes=max_body_mib * MIB,
        requests_per_minute=requests_per_minute,
        concurrent=concurrent,
        request_s=request_s,
    )
    config = ServeConfig(
        host=host,
        port=port,
        api_keys=_read_keys(api_key_file),
        default_max_tokens=max_tokens,
        default_temperature=temperature,
        allowed_local_path=allowed_local_media_path,
        remote=RemotePolicy(tuple(domains), max_bytes=max_body_mib * MIB),
        limits=limits,
        drain_s=drain_s,
    )
    bounds = Bounds(max_rows, cache_tokens=cache_tokens, vision_cache_mib=vision_cache_mib, max_waiting=max_waiting)
    _run(model, name, config, bounds, device, dtype, quantize)


def _run(
    model: str,
    name: str | None,
    config: ServeConfig,
    bounds: Bounds,
    device: str,
    dtype: Literal["float32", "bfloat16", "float16"] | None,
    quantize: Literal["int8", "int4"] | None,
) -> None:
    try:
        from qvl.serve.server import listen, make_server, run
    except ImportError as error:
        raise ValueError(
            f"serving needs the package {error.name}; install it with: pip install 'qvl[serve]'"
        ) from error
    import qvl
    from qvl.runtime import console

    notes = console()
    sock = listen(config)  # before the model: a taken port is told at once
    try:
        with notes.status(f"loading {model} ..."):
            vlm = qvl.load(model, device=device, dtype=dtype, quantize=quantize)
        called = name or (Path(model).resolve().name if Path(model).is_dir() else model)
        engine = vlm.live(called, bounds)
        server = make_server(engine, config)
        host, port = sock.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        address = f"http://{shown}:{port}"
        notes.print(f"{engine.model_name} answers at {address}/v1; a page to try it: {address}", soft_wrap=True)
        if config.host not in ("127.0.0.1", "localhost", "::1") and not config.api_keys:
            notes.print("Anybody who reaches this address can use it: --api-key-file asks for keys.", style="yellow")
        run(server, sock)
    finally:
        sock.close()


def _read_keys(file: Path | None) -> tuple[str, ...]:
    if file is None:
        return ()
    keys = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    keys = [key for key in keys if key and not key.startswith("#")]
    if not keys:
        raise ValueError(f"{file} holds no key; write one per line")
    return tuple(keys)
