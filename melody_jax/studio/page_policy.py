"""The policy of the page: an ASGI middleware that allows the inline scripts that gradio writes, and no others.

gradio puts the settings of the page into inline scripts. Each is allowed by its hash, so that a text that reached the
document as HTML could not run. Functions from texts, which gradio makes of the events, need 'unsafe-eval'.
"""

import base64
import hashlib
import re
from typing import Any

from melody_jax.studio.security import App, Message, Receive, Scope, Send

INLINE_SCRIPT = re.compile(rb"<script(?![^>]*\ssrc=)[^>]*>(.*?)</script>", re.DOTALL)
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-eval'{hashes}; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' blob:; font-src 'self' data:; connect-src 'self'; "
    "worker-src 'self' blob:; object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)


class PagePolicy:
    """The middleware; it changes the answers at / alone."""

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hands the request on; the page is held back until its scripts are known."""
        if scope["type"] != "http" or scope["path"] != "/":
            await self.app(scope, receive, send)
            return
        plain = [(name, value) for name, value in scope["headers"] if name.lower() != b"accept-encoding"]
        start: Message = {}
        parts: list[bytes] = []

        async def hold(message: Message) -> None:
            if message["type"] == "http.response.start":
                start.update(message)
                return
            parts.append(message.get("body", b""))
            if not message.get("more_body", False):
                body = b"".join(parts)
                await send(_with_policy(start, body))
                await send({"type": "http.response.body", "body": body})

        await self.app({**scope, "headers": plain}, receive, hold)


def page_policy(page: bytes) -> str:
    """The policy of a page: its inline scripts may run."""
    hashes = [base64.b64encode(hashlib.sha256(script).digest()) for script in INLINE_SCRIPT.findall(page)]
    return POLICY.format(hashes="".join(f" 'sha256-{value.decode()}'" for value in hashes))


def _with_policy(start: Message, body: bytes) -> dict[str, Any]:
    """The beginning of an answer with the policy of its body."""
    header = (b"content-security-policy", page_policy(body).encode())
    return {**start, "headers": [*start["headers"], header]}
