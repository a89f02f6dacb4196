# SPDX-License-Identifier: GPL-3.0-or-later
"""How the results of several runs become those of one task."""

from __future__ import annotations

from typing import Any

from ansible_collections.inferops.cluster.plugins.action import apply_set


def entry(name: str, action: str, **more: Any) -> dict[str, Any]:
    changed = action in ("created", "updated", "deleted")
    found = {"api_version": "v1", "kind": "Pod", "namespace": "n", "name": name, "action": action, "changed": changed}
    return {**found, "ready": None, "reason": "", **more}


def test_what_an_earlier_run_did_counts() -> None:
    diff = {"before_header": "Pod n/a (live)", "after_header": "Pod n/a (absent)", "before": "x", "after": ""}
    earlier = {"changed": True, "objects": [entry("a", "deleted"), entry("pruned", "deleted")], "diff": [diff]}
    later = {"changed": False, "objects": [entry("a", "absent"), entry("b", "absent")], "diff": []}
    joined = apply_set._joined({**earlier, "failed": True, "waited": {}}, later)
    assert [(one["name"], one["action"]) for one in joined["objects"]] == [
        ("a", "deleted"),
        ("pruned", "deleted"),
        ("b", "absent"),
    ]
    assert (joined["changed"], joined["diff"]) == (True, [diff])
    assert "failed" not in joined
    assert "waited" not in joined


def test_what_was_waited_for_later_replaces_the_failure() -> None:
    whole = {"changed": True, "objects": [entry("a", "created", ready=False, reason="not yet")]}
    whole.update(failed=True, msg="1 of 1", exception="old", waited={"for": "ready", "unmet": []})
    found = {**entry("a", ""), "ready": False, "reason": "still not"}
    unmet = {"for": "ready", "unmet": [{"name": "a", "minimum": 1, "label_selector": None, "state": "present"}]}
    apply_set._settle(whole, {"failed": True, "msg": "m", "objects": [found], "waited": unmet})
    assert (whole["objects"][0]["reason"], whole["waited"]) == ("still not", {"for": "ready", "unmet": [{"name": "a"}]})
    apply_set._settle(whole, {"objects": [{**found, "ready": True, "reason": ""}]})
    assert (whole["objects"][0]["ready"], whole["objects"][0]["action"]) == (True, "created")
    assert set(whole) == {"changed", "objects"}


def test_options_of_the_connection_go_along_with_their_aliases() -> None:
    assert {"kubeconfig", "context", "host", "api_key", "verify_ssl", "ca_cert", "ssl_ca_cert"} <= apply_set.AUTH
    assert not {"name", "namespace", "objects", "wait_timeout"} & apply_set.AUTH
