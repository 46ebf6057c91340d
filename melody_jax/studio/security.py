"""What a request must pass before anything of the studio sees it: an ASGI middleware.

    Host      one of the served names, so that no other site's name can be pointed at this server
    Origin    the page's, if there is one: pages of other sites can neither change nor read anything
    client    limits on its requests (client_limits.py), and on what is read of their bodies
    token     on every address but the loopback: `Authorization: Bearer`, or a cookie that the first visit with
              `?token=` sets
    path      those of the API and the few that the page needs; the others of gradio, which read files, are closed

Every answer gets the headers that forbid browsers to embed it, to guess its type and to load what is of other sites.
"""

import asyncio
import hashlib
import hmac
import ipaddress
import json
import re
import secrets
import time
import urllib.parse
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from typing import Any

from melody_jax.errors import UserError
from melody_jax.studio.client_limits import ClientLimits, OpenRequests, TokenBuckets, client_name

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
COOKIE = "melody_studio"
MIN_TOKEN = 16
"""Characters of the shortest token."""
MAX_BODY = 1 << 18
"""Bytes of the largest body that is no upload."""
UPLOAD_PATH = "/api/uploads"
UPLOAD_FRAME = 1 << 16
"""Bytes that a multipart body may have besides the file."""
IDLE_SECONDS = 30.0
"""Seconds in which the next part of a body must come."""
BODY_SECONDS = 900.0
"""Seconds in which a whole body must come."""
FAILED_TOKENS_PER_MINUTE = 10
BURST_SECONDS = 20.0
"""Seconds of `requests_per_second` that may come at once: a page loads many files."""
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
API_PATHS = re.compile(r"/api/.*|/healthz|/metrics", re.DOTALL)
PAGE_PATHS = re.compile(
    r"/|/config|/theme\.css|/favicon\.ico|/manifest\.json|/(assets|static|studio|svelte)/(?!.*\.\.)[A-Za-z0-9_./-]+"
)
"""Paths of gradio that the page needs; none of them reads a file that its client names."""
OPEN_PATHS = ("/healthz",)
"""Paths without a token, for the probes of a cluster."""
NOTHING = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
API_POLICY = f"{NOTHING}; img-src 'self'; media-src 'self'"
PAGE_POLICY = f"{NOTHING}; script-src 'self'; style-src 'self'; img-src 'self'; font-src 'self'"
"""Of the files of the page; the page itself has its own (page_policy.py)."""
HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "microphone=(self), camera=(), geolocation=(), payment=(), usb=()",
}
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:\d{1,5})?")


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What the server lets in."""

    names: frozenset[str] = frozenset(LOOPBACK_NAMES)
    """Names and addresses that the Host header may have, besides the address that the client has connected to."""
    token: str | None = field(default=None, repr=False)
    """What clients must show; None: nothing, on the loopback only."""
    clients: ClientLimits = field(default_factory=ClientLimits)
    """Limits of each address."""
    upload_bytes: int = 64 << 20
    """Size of the largest upload."""


class Refused(Exception):
    """A request is not let in: the answer's status, its one line and its headers."""

    def __init__(self, status: int, message: str, **headers: str) -> None:
        super().__init__(message)
        self.status = status
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


class Security:
    """The middleware. One event loop calls it."""

    def __init__(self, app: App, policy: Policy) -> None:
        limits = policy.clients
        self.app = app
        self.policy = policy
        self._requests = TokenBuckets(limits.requests_per_second, limits.requests_per_second * BURST_SECONDS)
        self._changes = TokenBuckets(limits.changes_per_minute / 60, limits.changes_per_minute / 2)
        self._uploads = TokenBuckets(limits.uploads_per_minute / 60, limits.uploads_per_minute / 2)
        self._failures = TokenBuckets(FAILED_TOKENS_PER_MINUTE / 60, FAILED_TOKENS_PER_MINUTE)
        self._open = OpenRequests(limits.open_requests)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a refused request, and hands the others on. There are no web sockets."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            await self._handle(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008})

    async def _handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = Answer(scope, send)
        client = client_name(scope["client"][0] if scope.get("client") else "local")
        scope["melody_client"] = client
        try:
            self._check(scope, client)
            limit = body_limit(scope, self.policy.upload_bytes)
            if not self._open.enter(client):
                raise Refused(
                    429, f"{self._open.most} of your requests are being answered; end one", retry_after="1"
                )
        except Refused as refusal:
            await answer.refuse(refusal)
            return
        body = Body(receive, limit)
        try:
            await self.app(scope, body.receive, answer.sender(body))
        except Exception:
            if body.refusal is None or answer.started:
                raise
        finally:
            self._open.leave(client)
        if body.refusal is not None and not answer.started:
            await answer.refuse(body.refusal)

    def _check(self, scope: Scope, client: str) -> None:
        """Raises `Refused` for what is wrong with the head of a request."""
        headers = _headers(scope)
        host = check_host(scope, headers, self.policy.names)
        check_origin(headers, host)
        self._check_rates(scope, client)
        path = scope["path"]
        if not API_PATHS.fullmatch(path) and not PAGE_PATHS.fullmatch(path):
            raise Refused(404, "there is no such address")
        if self.policy.token is not None and path not in OPEN_PATHS:
            self._check_token(scope, headers, client, self.policy.token)

    def _check_rates(self, scope: Scope, client: str) -> None:
        now = time.monotonic()
        wait = self._requests.take(client, now)
        if not wait and scope["method"] not in SAFE_METHODS:
            buckets = self._uploads if scope["path"] == UPLOAD_PATH else self._changes
            wait = buckets.take(client, now)
        if wait:
            raise Refused(429, f"too many requests; try again in {wait} s", retry_after=str(wait))

    def _check_token(self, scope: Scope, headers: dict[str, list[str]], client: str, token: str) -> None:
        """Raises `Refused` unless the request shows the token; for one in the address, with a cookie for the next."""
        now = time.monotonic()
        if wait := self._failures.wait(client, now):
            raise Refused(429, f"too many wrong tokens; try again in {wait} s", retry_after=str(wait))
        query = urllib.parse.parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        given = [value for name, value in query if name == "token"]
        if given and scope["method"] == "GET" and _equal(given[0], token):
            rest = urllib.parse.urlencode([pair for pair in query if pair[0] != "token"])
            location = urllib.parse.quote(scope["path"]) + (f"?{rest}" if rest else "")
            raise Refused(303, "go on without the token", location=location, set_cookie=_cookie(scope, token))
        shown = [
            value.partition(" ")[2].strip()
            for value in headers.get("authorization", [])
            if value.lower().startswith("bearer ")
        ]
        if any(_equal(value, token) for value in shown):
            return
        if any(_equal(value, cookie_value(token)) for value in _cookie_values(headers)):
            return
        if given or shown:
            self._failures.take(client, now)
        raise Refused(
            401,
            "a token is needed: open the address with ?token=... once, or send the header Authorization: Bearer ...",
            www_authenticate="Bearer",
        )


class Body:
    """Counts what is read of a request's body, and how long that takes."""

    def __init__(self, receive: Receive, limit: int) -> None:
        self.refusal: Refused | None = None
        self._receive = receive
        self._limit = limit
        self._size = 0
        self._ended = False
        self._deadline = time.monotonic() + BODY_SECONDS

    async def receive(self) -> Message:
        """The next message. Raises `Refused` for too large a body, and for one that does not come."""
        if self._ended:
            return await self._receive()
        if self.refusal is not None:
            raise self.refusal
        wait = min(IDLE_SECONDS, self._deadline - time.monotonic())
        try:
            message = await asyncio.wait_for(self._receive(), wait)
        except TimeoutError:
            self.refusal = Refused(408, "the rest of the request does not come", connection="close")
            raise self.refusal from None
        self._size += len(message.get("body", b""))
        if self._size > self._limit:
            self.refusal = _too_large(self._limit)
            raise self.refusal
        self._ended = message["type"] != "http.request" or not message.get("more_body", False)
        return message


class Answer:
    """The answer to one request: adds the headers of security."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self.started = False
        self._send = send
        self._is_head = scope["method"] == "HEAD"
        is_api = API_PATHS.fullmatch(scope["path"]) is not None
        self._defaults = HEADERS | {
            "content-security-policy": API_POLICY if is_api else PAGE_POLICY,
            "cache-control": "no-store" if is_api else "no-cache",
            "x-request-id": secrets.token_hex(8),
        }

    def sender(self, body: Body) -> Send:
        """A function that sends what the application answers, unless the body was refused meanwhile."""

        async def send(message: Message) -> None:
            if body.refusal is not None and not self.started:
                return
            if message["type"] == "http.response.start":
                message = {**message, "headers": self._headers(message.get("headers", ()))}
                self.started = True
            await self._send(message)

        return send

    async def refuse(self, refusal: Refused) -> None:
        """Answers with a refusal."""
        body = json.dumps({"error": str(refusal)}).encode()
        headers = {"content-type": "application/json", "content-length": str(len(body))} | refusal.headers
        encoded = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
        self.started = True
        start = {
            "type": "http.response.start",
            "status": refusal.status,
            "headers": self._headers(encoded),
        }
        await self._send(start)
        await self._send({"type": "http.response.body", "body": b"" if self._is_head else body})

    def _headers(self, headers: Any) -> list[tuple[bytes, bytes]]:
        """The headers of an answer, with those of security that it lacks; it is for no other origin."""
        own_origin = [(n, v) for n, v in headers if not n.lower().startswith(b"access-control-")]
        names = {name.lower() for name, _ in own_origin}
        added = [(name.encode(), value.encode()) for name, value in self._defaults.items()]
        return [*own_origin, *((name, value) for name, value in added if name not in names)]


def check_host(scope: Scope, headers: dict[str, list[str]], names: frozenset[str]) -> str:
    """The Host header. Raises `Refused` unless it is one of the names, or the address that the client connected to."""
    values = headers.get("host", [])
    match = _HOST.fullmatch(values[0]) if len(values) == 1 else None
    if match is None:
        raise Refused(400, "the request must have one Host header")
    name = match[1].strip("[]").rstrip(".").lower()
    local = scope["server"][0] if scope.get("server") else ""
    if name not in names and not _same_address(name, local):
        raise Refused(
            421, f"the studio is not served as {name}; start it with --names {name} if it should be"
        )
    return values[0]


def check_origin(headers: dict[str, list[str]], host: str) -> None:
    """Raises `Refused` for a request that a page of another origin makes. Only browsers send these headers."""
    allowed = (f"http://{host}".lower(), f"https://{host}".lower())
    if any(origin.lower() not in allowed for origin in headers.get("origin", [])):
        raise Refused(403, "requests of pages of other origins are refused")
    is_foreign = headers.get("sec-fetch-site", ["none"])[0] in ("cross-site", "same-site")
    if is_foreign and headers.get("sec-fetch-mode", [""])[0] != "navigate":
        raise Refused(403, "requests of pages of other origins are refused")


def body_limit(scope: Scope, upload_bytes: int) -> int:
    """The largest number of bytes of a body. Raises `Refused` if the request announces more."""
    limit = upload_bytes + UPLOAD_FRAME if scope["path"] == UPLOAD_PATH else MAX_BODY
    for value in _headers(scope).get("content-length", []):
        if not re.fullmatch(r"[0-9]{1,18}", value):
            raise Refused(400, "Content-Length must be a number of bytes")
        if int(value) > limit:
            raise _too_large(limit)
    return limit


def check_token(token: str) -> str:
    """The token. Raises `UserError` for one that is short, or that a header cannot hold."""
    if len(token) < MIN_TOKEN or not re.fullmatch(r"[!-~]+", token):
        raise UserError(
            f"the token has {len(token)} characters; it must have at least {MIN_TOKEN}, all printable ASCII "
            "without spaces, such as the output of `openssl rand -hex 16`"
        )
    return token


def is_loopback(host: str) -> bool:
    """Whether only programs of this machine can connect to a host."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def cookie_value(token: str) -> str:
    """What the cookie holds in place of the token, which cannot be computed from it."""
    return hmac.new(token.encode(), b"melody studio cookie", hashlib.sha256).hexdigest()


def _cookie(scope: Scope, token: str) -> str:
    secure = "; Secure" if scope.get("scheme") == "https" else ""
    return f"{COOKIE}={cookie_value(token)}; Path=/; HttpOnly; SameSite=Strict; Max-Age=31536000{secure}"


def _cookie_values(headers: dict[str, list[str]]) -> list[str]:
    values = []
    for header in headers.get("cookie", []):
        try:
            cookies = SimpleCookie(header)
        except CookieError:
            continue
        values += [cookies[COOKIE].value] if COOKIE in cookies else []
    return values


def _headers(scope: Scope) -> dict[str, list[str]]:
    """Name in lower case -> values."""
    headers: dict[str, list[str]] = {}
    for name, value in scope["headers"]:
        headers.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))
    return headers


def _equal(given: str, expected: str) -> bool:
    """Whether two texts are equal, in a time that does not depend on where they differ."""
    return hmac.compare_digest(given.encode("utf-8", "surrogatepass"), expected.encode())


def _same_address(name: str, local: str) -> bool:
    try:
        return ipaddress.ip_address(name) == ipaddress.ip_address(local)
    except ValueError:
        return False


def _too_large(limit: int) -> Refused:
    return Refused(413, f"the request is too large; at most {limit:,} bytes are read", connection="close")
