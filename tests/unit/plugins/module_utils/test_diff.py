# SPDX-License-Identifier: GPL-3.0-or-later
"""What a person sees of a change."""

from __future__ import annotations

import base64
from typing import Any

from ansible_collections.inferops.cluster.plugins.module_utils.diff import entry, mask, shown

VALUE = base64.b64encode(b"s3cret").decode()


def secret(value: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": "s",
            "namespace": "n",
            "uid": "u",
            "resourceVersion": "4",
            "managedFields": [{}],
            "annotations": {"kubectl.kubernetes.io/last-applied-configuration": f'{{"data":{{"k":"{value}"}}}}'},
        },
        "data": {"k": value},
    }


def test_secrets_are_masked_so_that_only_a_change_is_seen() -> None:
    other = base64.b64encode(b"other").decode()
    found = entry(secret(VALUE), secret(other))
    assert VALUE not in str(found)
    assert other not in str(found)
    assert found["before"] != found["after"]
    assert entry(secret(VALUE), secret(VALUE))["before"] == shown(secret(VALUE))


def test_masks_follow_the_value() -> None:
    assert mask("a") == mask("a") != mask("b")


def test_server_fields_are_not_shown() -> None:
    text = shown({**secret(VALUE), "status": {"x": 1}})
    for word in ("uid", "resourceVersion", "managedFields", "status", "last-applied"):
        assert word not in text


def test_headers_tell_what_exists() -> None:
    created = entry(None, secret(VALUE))
    assert (created["before_header"], created["before"]) == ("Secret n/s (absent)", "")
    deleted = entry(secret(VALUE), None)
    assert (deleted["after_header"], deleted["after"]) == ("Secret n/s (absent)", "")
