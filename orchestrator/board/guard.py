"""Who may use the board: one token, one origin, and pages that load nothing from elsewhere."""

from __future__ import annotations

import hmac
from urllib.parse import urlencode

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

COOKIE = "orchestrator-board"
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
        "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",  # with no-referrer a form would send no origin
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_UNKNOWN = (
    "The board was asked without its token. Open the whole address that `python -m orchestrator "
    "board` printed when it was started.\n"
)


class Guard:
    """Checks every request before the board sees it: name, token, and the origin of a change."""

    def __init__(self, app: ASGIApp, token: str, hosts: tuple[str, ...]) -> None:
        """Guard an application.

        Args:
            app: what answers the requests that pass.
            token: who knows it may use the board.
            hosts: names under which the board may be asked, all where there is none. A page of
                another site cannot reach the board under a name of its own.
        """
        self.app = app
        self.token = token
        self.hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        answer = self._refusal(Request(scope)) or self.app
        await answer(scope, receive, send_with_headers)

    def _refusal(self, request: Request) -> Response | None:
        if self.hosts and request.url.hostname not in self.hosts:
            return PlainTextResponse("The board was asked by a name that is not its own.\n", 421)
        is_reading = request.method in {"GET", "HEAD"}
        token = request.query_params.get("token")
        if token is not None and is_reading and self._is_right(token):
            return self._entrance(request)
        if not self._is_right(request.cookies.get(_cookie_name(request), "")):
            return PlainTextResponse(_UNKNOWN, 401)
        own = f"{request.url.scheme}://{request.url.netloc}"
        if not is_reading and request.headers.get("origin") != own:
            text = f"A change is taken from the board's own pages alone ({own}).\n"
            return PlainTextResponse(text, 403)
        return None

    def _is_right(self, token: str) -> bool:
        return hmac.compare_digest(token.encode(), self.token.encode())

    def _entrance(self, request: Request) -> Response:
        """Put the token into a cookie, and take it out of the address."""
        parts = [item for item in request.query_params.multi_items() if item[0] != "token"]
        query = f"?{urlencode(parts)}" if parts else ""
        response = RedirectResponse(f"/{request.url.path.lstrip('/')}{query}", 303)
        response.set_cookie(
            _cookie_name(request), self.token, httponly=True, samesite="strict", path="/"
        )
        return response


def _cookie_name(request: Request) -> str:
    """Return the name of the cookie; browsers share cookies between the ports of a machine."""
    return f"{COOKIE}-{request.url.port or 80}"
