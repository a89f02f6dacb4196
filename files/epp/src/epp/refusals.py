# SPDX-License-Identifier: GPL-3.0-or-later
"""What is raised in place of a decision, for :mod:`epp.model`. Never compiled: plugins may have kinds of their own."""

from __future__ import annotations


class BodyError(ValueError):
    """A body that cannot be routed; the text is for the client, who gets it with 400."""


class Immediate(Exception):
    """A request that the picker answers itself; raised in place of a decision."""

    status: int
    """HTTP status."""

    def body(self) -> str:
        """The text that the client receives."""
        raise NotImplementedError

    def headers(self) -> dict[str, str]:
        """Headers of the answer."""
        return {}


class Reply(Immediate):
    """An answer that needs no endpoint."""

    def __init__(self, body: str, content_type: str = "application/json", status: int = 200) -> None:
        super().__init__(f"answered with {status}")
        self.status = status
        self._body, self._content_type = body, content_type

    def body(self) -> str:
        """What was asked for."""
        return self._body

    def headers(self) -> dict[str, str]:
        """What the body is."""
        return {"content-type": self._content_type}


class Rejection(Immediate):
    """A request that will not be sent to any endpoint.

    ``status`` is the HTTP status, ``code`` the reference's error class (``ResourceExhausted``, ``ServiceUnavailable``,
    ``BadRequest`` ...), ``reason`` the value of the dropped-reason header, empty when the reference sends none.
    """

    def __init__(self, status: int, code: str, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.reason = reason

    def body(self) -> str:
        """The text that the client receives, in the reference's form."""
        return f"inference error: {self.code} - {self.message}"
