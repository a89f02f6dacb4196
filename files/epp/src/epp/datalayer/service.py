# SPDX-License-Identifier: GPL-3.0-or-later
"""Asks a service that decisions depend on: JSON by POST, bounded in time and in number, given a rest when it fails.

A decision must not wait again and again for a service that is down. After a failure nobody asks for a moment; whoever
wants to know meanwhile is told at once that it rests.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import time

import aiohttp

log = logging.getLogger(__name__)

MAX_ANSWER = 64 * 1024 * 1024
"""Bytes of an answer: the token ids of a prompt of several million tokens."""
REST_SECONDS = 1.0
WARNING_SECONDS = 30.0
"""Between two warnings about the same service."""


class ServiceError(Exception):
    """No usable answer; the text says why. ``status`` is the HTTP status, 0 when there was no answer."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class Service:
    """One kind of service, at one or more base URLs. Belongs to one event loop."""

    def __init__(self, what: str, connections: int, tls: ssl.SSLContext | None = None) -> None:
        """``what`` names it in the log; ``connections`` is how many requests may be on their way at once."""
        self._what, self._connections, self._tls = what, connections, tls
        self._session: aiohttp.ClientSession | None = None
        self._rests_until: dict[str, float] = {}
        self._warned = -WARNING_SECONDS

    def resting(self, base: str) -> bool:
        """The one at this base URL has just failed: do not ask it."""
        until = self._rests_until.get(base)
        if until is None:
            return False
        if time.monotonic() < until:
            return True
        del self._rests_until[base]
        return False

    async def post(
        self,
        base: str,
        path: str,
        body: bytes,
        seconds: float,
        *,
        good: tuple[int, ...] = (200,),
        authorization: str = "",
    ) -> bytes:
        """The answer's body. Raises ServiceError for anything but an answer with one of the ``good`` statuses within
        ``seconds``; unless the service itself has refused (status below 500), it rests then."""
        headers = {"content-type": "application/json"}
        if authorization:
            headers["authorization"] = authorization
        if self._session is None:
            connector = aiohttp.TCPConnector(limit=self._connections, ssl=self._tls or True)
            self._session = aiohttp.ClientSession(connector=connector)
        try:
            async with asyncio.timeout(seconds):
                async with self._session.post(base + path, data=body, headers=headers) as response:
                    answer = await _read(response)
        except TimeoutError:
            raise self._failed(base, f"no answer within {seconds:g} s") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise self._failed(base, str(error) or type(error).__name__) from None
        if response.status in good:
            return answer
        text = f"status {response.status}: {answer[:200].decode('utf-8', 'replace')}"
        if response.status >= 500:
            raise self._failed(base, text, response.status)
        raise ServiceError(text, response.status)

    async def close(self) -> None:
        """Give the connections back."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _failed(self, base: str, why: str, status: int = 0) -> ServiceError:
        now = time.monotonic()
        self._rests_until[base] = now + REST_SECONDS
        if now - self._warned >= WARNING_SECONDS:
            self._warned = now
            log.warning("%s at %s does not help: %s", self._what, base, why)
        return ServiceError(why, status)


async def _read(response: aiohttp.ClientResponse) -> bytes:
    parts, size = [], 0
    async for chunk in response.content.iter_any():
        size += len(chunk)
        if size > MAX_ANSWER:
            raise ValueError(f"the answer is longer than {MAX_ANSWER} bytes")
        parts.append(chunk)
    return b"".join(parts)
