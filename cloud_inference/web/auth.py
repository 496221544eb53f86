"""Who is looking: the API's tokens, in a cookie that no script reads; nothing that another site asked for."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from aiohttp import web

from cloud_inference.access import Grant
from cloud_inference.api.auth import Authenticator
from cloud_inference.api.errors import Refusal
from cloud_inference.config import is_loopback

# Browsers keep at most 4096 bytes of a cookie, its name and attributes included.
_MOST_TOKEN_CHARS: Final = 3800


@dataclass(frozen=True, slots=True)
class Visitor:
    """Whoever sent a request: the token they showed, empty where none is needed, and what it grants."""

    token: str
    grant: Grant


class Door:
    """Lets visitors in. tls: whether the page is served encrypted."""

    def __init__(self, auth: Authenticator, tenants: list[str], *, tls: bool) -> None:
        self._auth, self._tenants, self._tls = auth, tenants, tls
        # The prefix makes browsers refuse a cookie of this name from a neighbouring host.
        self._cookie = "__Host-eyeline" if tls else "eyeline"

    @property
    def open(self) -> bool:
        """Whether everybody on this machine may look."""
        return self._auth.open

    def visitor(self, request: web.Request) -> Visitor:
        """Raises 401 without a token that is good for reading, 403 for a request of another site's."""
        self.check_origin(request)
        if self.open:
            return Visitor("", Grant(self._tenants[0]))
        return self._known(request.cookies.get(self._cookie, ""))

    def _known(self, token: str) -> Visitor:
        if not token:
            raise web.HTTPUnauthorized(text="log in first")
        try:
            grant = self._auth.of_token(token)
        except Refusal as refusal:
            raise web.HTTPUnauthorized(text=str(refusal)) from None
        if grant.tenant not in self._tenants:
            raise web.HTTPUnauthorized(text="this token is for a tenant not served here")
        if "read" not in grant.methods:
            raise web.HTTPUnauthorized(text="this token does not allow reading")
        return Visitor(token, grant)

    def log_in(self, request: web.Request, token: str, response: web.Response) -> Visitor:
        """Take a token and remember it in a cookie; raises 401 or 403."""
        self.check_origin(request)
        token = token.strip()
        if len(token) > _MOST_TOKEN_CHARS or not (token.isascii() and token.isprintable()) or ";" in token:
            raise web.HTTPUnauthorized(text="this is not a token of ours")
        visitor = self._known(token)
        expires = visitor.grant.expires_s
        response.set_cookie(
            self._cookie,
            token,
            max_age=max(1, int(expires - time.time())) if expires is not None else None,
            path="/",
            secure=self._tls,
            httponly=True,
            samesite="Strict",
        )
        return visitor

    def log_out(self, request: web.Request, response: web.Response) -> None:
        """Forget the cookie."""
        self.check_origin(request)
        response.del_cookie(self._cookie, path="/", secure=self._tls, httponly=True, samesite="Strict")

    def check_origin(self, request: web.Request) -> None:
        """Raise 403 for what a page of another site asked for, or asks for under a name that is not ours."""
        if self.open and not is_loopback(urlsplit(f"//{request.host}").hostname or ""):
            # A name that was made to point here, so that a page elsewhere seems to be of the same site.
            raise web.HTTPForbidden(text="open this page as localhost or 127.0.0.1")
        if request.headers.get("Sec-Fetch-Site", "none") not in {"same-origin", "none"} and (
            request.method != "GET" or request.path.startswith("/api/")
        ):
            raise web.HTTPForbidden(text="asked for by another site")
        origin = request.headers.get("Origin")
        if origin is not None and urlsplit(origin).netloc != request.host:
            raise web.HTTPForbidden(text="asked for by another site")
