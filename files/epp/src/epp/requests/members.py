# SPDX-License-Identifier: GPL-3.0-or-later
"""Single members of a body by their names, as texts: what body-based routing copies into headers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from epp.model import BodyError
from epp.requests import form
from epp.requests.fields import ABSENT
from epp.requests.parse import is_json
from epp.requests.scan import members, text


class MemberReader:
    """Reads some members of JSON objects, and fields of forms."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = tuple(dict.fromkeys(names))
        keys = {f"f{index}": name for index, name in enumerate(self._names)}
        fields = [(key, msgspec.Raw, ABSENT) for key in keys]
        self._decoder = msgspec.json.Decoder(msgspec.defstruct("Members", fields, rename=keys))
        self._keys = keys

    def read(self, content_type: str, body: bytes, truncated: bool = False) -> dict[str, str]:
        """The texts of those members that are there: strings, numbers, true and false; others count as absent.

        ``truncated``: the body may go on beyond what is here. A body of another content type has no members. Raises
        BodyError for what is not a JSON object although it should be.
        """
        edge = form.boundary(content_type)
        if edge is not None:
            found = (field for field in form.fields(body, edge) if field.complete and not field.is_file)
            values = {field.name: body[field.start : field.end].decode("utf-8", "replace") for field in found}
            return {name: values[name] for name in self._names if name in values}
        if not body or not is_json(content_type):
            return {}
        raws = self._partial(body) if truncated else self._whole(body)
        texts = {name: scalar(raw) for name, raw in raws.items()}
        return {name: value for name, value in texts.items() if value is not None}

    def _whole(self, body: bytes) -> Mapping[str, bytes]:
        try:
            decoded = self._decoder.decode(body)
        except (msgspec.DecodeError, RecursionError) as error:
            raise BodyError(f"failed to parse request body: {error}") from None
        return {name: bytes(getattr(decoded, key)) for key, name in self._keys.items()}

    def _partial(self, body: bytes) -> Mapping[str, bytes]:
        if not body.lstrip().startswith(b"{"):
            raise BodyError("failed to parse request body: expected an object")
        wanted = set(self._names)
        return {each.key: body[each.start : each.end] for each in members(body) if each.complete and each.key in wanted}


def scalar(raw: bytes) -> str | None:
    """The text of a JSON string, number or truth value; None for anything else."""
    if raw.startswith(b'"'):
        return text(raw)
    if not raw or raw == b"null" or raw[:1] in (b"{", b"["):
        return None
    return raw.decode("latin-1")
