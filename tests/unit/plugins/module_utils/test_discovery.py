# SPDX-License-Identifier: GPL-3.0-or-later
"""Kinds of a server, and the objects of a kind."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.inferops.cluster.plugins.module_utils.discovery import Resource, objects_of
from ansible_collections.inferops.cluster.plugins.module_utils.errors import ApiError

WIDGETS = Resource("w.example/v1", "Widget", "widgets", True)


class Server:
    """Answers a LIST with these items, or refuses with a status."""

    def __init__(self, status: int = 200, items: tuple[dict[str, Any], ...] = ()) -> None:
        self.status, self.items = status, items

    def snapshot(self, path: str, **query: str) -> tuple[list[dict[str, Any]], str]:
        assert (path, query) == ("/apis/w.example/v1/namespaces/here/widgets", {"labelSelector": "a=b"})
        if self.status != 200:
            raise ApiError(self.status, {"message": "404 page not found"}, "GET", path)
        return list(self.items), "7"


def asked(server: Server) -> Any:
    return objects_of(server, WIDGETS, "here", labelSelector="a=b")  # type: ignore[arg-type]


def test_the_objects_of_a_kind_say_what_they_are() -> None:
    item = {"metadata": {"name": "a"}}
    assert asked(Server(items=(item,))) == ([{"apiVersion": "w.example/v1", "kind": "Widget", **item}], "7")


def test_a_kind_that_is_gone_since_the_kinds_were_read_has_no_objects() -> None:
    assert asked(Server(404)) == ([], "")
    with pytest.raises(ApiError):
        asked(Server(403))
