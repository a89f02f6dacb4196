# SPDX-License-Identifier: GPL-3.0-or-later
"""Who may read metrics: the API server says, by TokenReview and SubjectAccessReview, as for every Kubernetes component.

A reader shows a bearer token. The review of the token gives a user, the review of the access says whether this user may
``get`` the path (a ClusterRole with ``nonResourceURLs: [/metrics]``). Both are remembered for a while: a scraper comes
every few seconds, and an API server that is away for a moment should not blind the monitoring.
"""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Protocol

TOKEN_SECONDS = 60.0
ALLOWED_SECONDS = 60.0
DENIED_SECONDS = 10.0
MAX_REMEMBERED = 1024

_TOKEN_REVIEWS = "/apis/authentication.k8s.io/v1/tokenreviews"
_ACCESS_REVIEWS = "/apis/authorization.k8s.io/v1/subjectaccessreviews"


class Reviewer(Protocol):
    """Creates objects on an API server."""

    async def send(self, method: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """The server's answer; raises an exception whose text says what went wrong."""


@dataclass(frozen=True)
class Refusal:
    """Why a request is not served."""

    status: int
    text: str


@dataclass(frozen=True)
class _User:
    name: str
    uid: str
    groups: tuple[str, ...]
    extra: tuple[tuple[str, tuple[str, ...]], ...]


class _Memory[V]:
    """Answers that are believed for a while; the oldest go first."""

    def __init__(self) -> None:
        self._known: OrderedDict[Any, tuple[float, V]] = OrderedDict()

    def get(self, key: Any) -> V | None:
        """The answer, if it is still good."""
        found = self._known.get(key)
        return found[1] if found is not None and time.monotonic() < found[0] else None

    def put(self, key: Any, value: V, seconds: float) -> None:
        """Remember an answer."""
        self._known.pop(key, None)
        self._known[key] = (time.monotonic() + seconds, value)
        while len(self._known) > MAX_REMEMBERED:
            self._known.popitem(last=False)


class AccessGuard:
    """Asks the API server about readers."""

    def __init__(self, reviewer: Reviewer) -> None:
        self._reviewer = reviewer
        self._users: _Memory[_User] = _Memory()
        self._allowed: _Memory[bool] = _Memory()

    async def refusal(self, authorization: str, path: str) -> Refusal | None:
        """Why a GET of ``path`` with this Authorization header is refused; None when it is allowed."""
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            return Refusal(401, "Unauthorized: send a bearer token")
        try:
            user = await self._user(token.strip())
        except Exception as error:
            return Refusal(500, f"Authentication failed: {error}")
        if user is None:
            return Refusal(401, "Unauthorized: the API server does not know this token")
        try:
            allowed = await self._may(user, path)
        except Exception as error:
            return Refusal(500, f"Authorization for user {user.name} failed: {error}")
        if allowed:
            return None
        return Refusal(403, f"Authorization denied for user {user.name}: grant get of the nonResourceURL {path}")

    async def _user(self, token: str) -> _User | None:
        # The token itself is not kept: whoever reads this process's memory should not find it.
        key = hashlib.sha256(token.encode()).digest()
        user = self._users.get(key)
        if user is not None:
            return user
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token}}
        status = (await self._reviewer.send("POST", _TOKEN_REVIEWS, body)).get("status") or {}
        if not status.get("authenticated"):
            return None
        found = status.get("user") or {}
        extra = tuple(sorted((key, tuple(values)) for key, values in (found.get("extra") or {}).items()))
        user = _User(found.get("username", ""), found.get("uid", ""), tuple(found.get("groups") or ()), extra)
        self._users.put(key, user, TOKEN_SECONDS)
        return user

    async def _may(self, user: _User, path: str) -> bool:
        known = self._allowed.get((user, path))
        if known is not None:
            return known
        spec = {
            "user": user.name,
            "uid": user.uid,
            "groups": list(user.groups),
            "extra": {key: list(values) for key, values in user.extra},
            "nonResourceAttributes": {"path": path, "verb": "get"},
        }
        body = {"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": spec}
        status = (await self._reviewer.send("POST", _ACCESS_REVIEWS, body)).get("status") or {}
        allowed = bool(status.get("allowed")) and not status.get("denied")
        self._allowed.put((user, path), allowed, ALLOWED_SECONDS if allowed else DENIED_SECONDS)
        return allowed
