"""The server of the page: it listens on this machine alone, and answers only who has the token.

What keeps strangers out, since any web page that is open in the same browser can send requests to this machine: every
request names this server as its `Host` (a name of another host that resolves to this machine is refused), none comes
from a page of another `Origin`, and every call of the API carries the token in a header of its own, which another page
cannot send without being asked for by the browser first, and is never allowed to. No cookie is set or read.
"""

from __future__ import annotations

import hmac
import logging
import secrets
import socket
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from hrm_agent.environments.checked import EnvironmentFailed
from hrm_agent.names.values import printable
from hrm_agent.playground.commands import decoder
from hrm_agent.playground.game import Game, show
from hrm_agent.playground.world import Refused

if TYPE_CHECKING:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

HOST = "127.0.0.1"
HTTP_PORT = 80
MOST_BYTES = 4096
"""Of a request's body."""
TOKEN_HEADER = "x-token"
PAGE = Path(__file__).parent / "page"
FILES = {
    "app.js": "text/javascript",
    "board.js": "text/javascript",
    "thought.js": "text/javascript",
    "style.css": "text/css",
    "icon.svg": "image/svg+xml",
}
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}
_log = logging.getLogger(__name__)


class Wrong(Exception):
    """A request that is not answered.

    Args:
        status: of HTTP.
        message: one line.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


def check_installed() -> None:
    """Raises: ValueError where the server's libraries are missing."""
    if any(find_spec(name) is None for name in ("starlette", "uvicorn")):
        raise ValueError("the page needs Starlette and uvicorn: pip install 'hrm-agent[play]'")


def make_token() -> str:
    return secrets.token_urlsafe(24)


class Guarded:
    """An application behind the checks of `Host` and `Origin`, with headers that keep pages of others out.

    Args:
        hosts: `HOST:PORT` by which the server may be named.
    """

    def __init__(self, app: ASGIApp, hosts: frozenset[str]) -> None:
        self.app, self.hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message["headers"],
                    *((name.encode(), value.encode()) for name, value in HEADERS.items()),
                ]
            await send(message)

        try:
            self._check(scope["method"], scope["headers"])
        except Wrong as wrong:
            await _refuse(wrong)(scope, receive, send_guarded)
            return
        try:
            await self.app(scope, receive, send_guarded)
        except Exception:  # which has been answered
            _log.exception("a request failed")

    def _check(self, method: str, headers: list[tuple[bytes, bytes]]) -> None:
        values: dict[str, list[str]] = {}
        for name, value in headers:
            values.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))
        if [host.lower() for host in values.get("host", [])] not in [[host] for host in self.hosts]:
            raise Wrong(403, "another host was asked for; open the address that was printed at the start")
        allowed = {f"http://{host}" for host in self.hosts}
        if not set(values.get("origin", [])) <= allowed:
            raise Wrong(403, "asked for by a page of another origin, which may not drive this one")
        # A link to the page, in a terminal that is a web page itself for example, may lead here from anywhere.
        followed = method == "GET" and values.get("sec-fetch-dest") == ["document"]
        if not followed and not set(values.get("sec-fetch-site", [])) <= {"same-origin", "none"}:
            raise Wrong(403, "asked for by a page of another site, which may not drive this one")


def build_app(game: Game, token: str, port: int) -> ASGIApp:
    """The application: the page's files, and `POST /api` with one command, answered with the whole state.

    Where the game refuses a command, the state has one entry more, `refused`. Anything else that is wrong is answered
    by `{"error": ...}` with a status of 400 or more.
    """
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.responses import Response
    from starlette.routing import Route

    async def page(request: Request) -> Response:
        name = request.path_params.get("name", "index.html")
        kind = "text/html" if name == "index.html" else FILES.get(name)
        if kind is None:
            raise Wrong(404, "no such file")
        if name == "index.html":
            _check_token(request.query_params.get("token"), token)
        return Response((PAGE / name).read_bytes(), media_type=kind)

    async def api(request: Request) -> Response:
        _check_token(request.headers.get(TOKEN_HEADER), token)
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise Wrong(415, "expected a body of the type application/json")
        try:
            command = decoder.decode(await _read_body(request))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:  # a ValidationError is a DecodeError
            raise Wrong(400, printable(str(error))) from None
        try:
            game.do(command)
        except Refused as refused:  # a click on what cannot be changed is no error
            return _json({**show(game), "refused": printable(str(refused))}, 200)
        return _json(show(game), 200)

    async def wrong(request: Request, error: Exception) -> Response:
        return _explain(error)

    expected: list[type[Exception]] = [Wrong, EnvironmentFailed, HTTPException, Exception]
    app: Starlette = Starlette(
        routes=[
            Route("/", page, methods=["GET"]),
            Route("/api", api, methods=["POST"]),
            Route("/{name}", page, methods=["GET"]),
        ],
        exception_handlers=dict.fromkeys(expected, wrong),
    )
    ending = "" if port == HTTP_PORT else f":{port}"  # which browsers leave out
    return Guarded(app, frozenset(f"{name}{ending}" for name in (HOST, "localhost")))


def _check_token(given: str | None, token: str) -> None:
    if not hmac.compare_digest((given or "").encode(), token.encode()):
        raise Wrong(401, "no token, or another one; open the address that was printed at the start")


async def _read_body(request: Request) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MOST_BYTES:
            raise Wrong(413, f"expected at most {MOST_BYTES:,} bytes")
    return bytes(body)


def _explain(error: Exception) -> Response:
    """The answer to a request that failed."""
    if isinstance(error, Wrong):
        return _refuse(error)
    if isinstance(error, EnvironmentFailed):
        return _json({"error": printable(str(error))}, 500)
    status = getattr(error, "status_code", 500)  # of Starlette's own, such as 405
    said = getattr(error, "detail", "the server failed; its terminal has the reason")
    return _json({"error": str(said)}, status)


def _refuse(wrong: Wrong) -> Response:
    return _json({"error": wrong.message}, wrong.status)


def _json(content: Any, status: int) -> Response:
    from starlette.responses import Response

    return Response(msgspec.json.encode(content), status, media_type="application/json")


def listen(port: int) -> socket.socket:
    """A socket on this machine's loopback interface; `port` 0 takes a free one.

    Raises:
        ValueError: the port is taken, or may not be used.
    """
    opened = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        opened.bind((HOST, port))
        opened.listen()  # so that a browser that comes at once is answered as soon as the server runs
    except OSError as error:
        opened.close()
        raise ValueError(f"port={port}: {error.strerror}; give another one, or 0 for any that is free") from None
    return opened


def build_server(game: Game, opened: socket.socket, token: str) -> uvicorn.Server:
    """To be run with `sockets=[opened]`, until its `should_exit` is set."""
    import uvicorn

    config = uvicorn.Config(
        build_app(game, token, opened.getsockname()[1]),
        log_config=None,
        access_log=False,
        lifespan="off",
        ws="none",
        server_header=False,
        proxy_headers=False,
        limit_concurrency=64,
        timeout_graceful_shutdown=1,
    )
    return uvicorn.Server(config)


def serve(game: Game, opened: socket.socket, token: str) -> None:
    """Answer until Ctrl-C, which raises KeyboardInterrupt when all connections are closed."""
    build_server(game, opened, token).run(sockets=[opened])
