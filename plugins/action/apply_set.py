# Copyright: (c) 2026, inferops.cluster maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The controller's part of apply_set: templates, files of roles, and progress."""

from __future__ import annotations

import json
import os
from typing import Any, Dict, List, Optional

from ansible.errors import AnsibleActionFail, AnsibleError
from ansible.plugins.action import ActionBase
from ansible.plugins.loader import lookup_loader
from ansible_collections.kubernetes.core.plugins.module_utils.args_common import AUTH_ARG_SPEC

from ansible_collections.inferops.cluster.plugins.module_utils.errors import InputError
from ansible_collections.inferops.cluster.plugins.module_utils.load import SUFFIXES, files_of
from ansible_collections.inferops.cluster.plugins.modules import apply_set, cluster_wait
from ansible_collections.inferops.cluster.plugins.plugin_utils import progress
from ansible_collections.inferops.cluster.plugins.plugin_utils.direct import Program
from ansible_collections.inferops.cluster.plugins.plugin_utils.foreseen import Foreseen

Json = Dict[str, Any]
APPLIER = Program("inferops.cluster.apply_set", apply_set.argument_spec(), apply_set.RULES, apply_set.perform)
WAITER = Program("inferops.cluster.cluster_wait", cluster_wait.argument_spec(), {}, cluster_wait.perform)
AUTH = {name for option, spec in AUTH_ARG_SPEC.items() for name in (option, *spec.get("aliases", ()))}


class ActionModule(ActionBase):  # type: ignore[misc]
    """Renders and finds what the module is to apply, and runs it so that long waits show what they wait for."""

    _supports_check_mode = True
    _supports_async = True

    def run(self, tmp: Any = None, task_vars: Optional[Json] = None) -> Json:
        """Bring the set to its state. Raises AnsibleActionFail for templates and files that cannot be had."""
        result: Json = super().run(tmp, task_vars)
        args = dict(self._task.args)
        for option, prepare in (("templates", self._rendered), ("src", self._found)):
            given = args.get(option)
            if given:
                sources = given if isinstance(given, list) else [part.strip() for part in str(given).split(",")]
                args[option] = [part for source in sources for part in prepare(source, task_vars or {})]
        if self._task.check_mode:
            host = str((task_vars or {}).get("inventory_hostname", ""))
            foreseen = Foreseen(host, {name: value for name, value in args.items() if name in AUTH})
            given = args.get("foreseen") or []
            if isinstance(given, list):  # if not, the module says it better
                args["foreseen"] = [*foreseen.kinds(), *given]
            result.update(APPLIER.execute(self, args, task_vars))
            foreseen.add(result.get("foreseen") or [])
            return _told(result) if result.get("failed") else result
        timeout = progress.seconds(args)
        if self._task.async_val or timeout is None:
            result.update(APPLIER.execute(self, args, task_vars))
        else:
            result.update(self._in_parts(args, progress.Clock(timeout), task_vars or {}))
        return _told(result) if result.get("failed") else result

    def _in_parts(self, args: Json, clock: progress.Clock, task_vars: Json) -> Json:
        """The module once or, while something is still being deleted, more often; then waits for what is not ready."""
        subject = f"[{task_vars.get('inventory_hostname', '')}] set {args.get('name')}"
        whole: Json = APPLIER.execute(self, {**args, "wait_timeout": clock.part()}, task_vars)
        while progress.unmet(whole) and whole["waited"]["for"] == "gone" and clock.left():
            progress.tell(subject, whole, 0, clock.elapsed)
            again = APPLIER.execute(self, {**args, "wait_timeout": clock.part()}, task_vars)
            whole = _joined(whole, again)
        total = (whole.get("waited") or {}).get("total", 0)
        while progress.unmet(whole) and clock.left():
            progress.tell(subject, whole, total, clock.elapsed)
            options = {name: value for name, value in args.items() if name in AUTH}
            options["objects"] = [_awaited(entry) for entry in whole["waited"]["unmet"]]
            options["wait_timeout"] = clock.part()
            _settle(whole, WAITER.execute(self, options, task_vars))
        if "waited" in whole:
            progress.retold(whole, total, clock.elapsed, f"set {args.get('name')}: ")
        return whole

    def _rendered(self, source: Any, task_vars: Json) -> List[Json]:
        """The text of a template, or of each in a folder."""
        found = self._path("templates", source)
        paths = [found]
        if os.path.isdir(found):
            try:
                paths = files_of(found, (".j2", *SUFFIXES))
            except InputError as error:
                raise AnsibleActionFail(str(error)) from error
        lookup = lookup_loader.get("ansible.builtin.template", loader=self._loader, templar=self._templar)
        return [{"path": path, "text": _text(lookup.run([path], variables=task_vars)[0])} for path in paths]

    def _found(self, source: Any, _task_vars: Json) -> List[Any]:
        """What the module can read itself stays as it is; files of the controller go along as text."""
        if not isinstance(source, str) or "://" in source or source.startswith(("/", "~")):
            return [source]
        found = self._path("files", source)
        try:
            paths = files_of(found) if os.path.isdir(found) else [found]
        except InputError as error:
            raise AnsibleActionFail(str(error)) from error
        return [{"path": path, "text": self._loader.get_text_file_contents(path)} for path in paths]

    def _path(self, folder: str, source: Any) -> str:
        try:
            return str(self._find_needle(folder, source))
        except AnsibleError as error:
            # What an inventory names has no role and no play to be found by.
            if os.path.exists(source):
                return str(os.path.abspath(source))
            raise AnsibleActionFail(
                f"cannot find {source!r} among the {folder} of the role or play: {error}"
            ) from error


def _told(result: Json) -> Json:
    """A failure as a person can read it: Ansible prints all that it returns, so only objects that matter are left."""
    if "objects" in result:
        result["objects"] = [entry for entry in result["objects"] if entry["changed"] or entry["reason"]]
    return result


def _text(rendered: Any) -> str:
    """A template of a single expression renders to its value, and an empty one to None."""
    if rendered is None:
        return ""
    return rendered if isinstance(rendered, str) else json.dumps(rendered)


def _joined(earlier: Json, later: Json) -> Json:
    """A result as if the two runs had been one: what the earlier one did counts, how it ended is the later one's."""
    result = dict(later)
    entries = {progress.identity(entry): dict(entry) for entry in later.get("objects") or []}
    for entry in earlier.get("objects") or []:
        known = entries.setdefault(progress.identity(entry), dict(entry))
        if entry["changed"]:
            known.update(action=entry["action"], changed=True)
    order = {progress.identity(entry): None for entry in earlier.get("objects") or []}
    result["objects"] = [entries[name] for name in {**order, **entries}]
    result["changed"] = bool(earlier.get("changed") or later.get("changed"))
    diffs = {(diff["before_header"], diff["after_header"]): diff for diff in later.get("diff") or []}
    diffs.update({(diff["before_header"], diff["after_header"]): diff for diff in earlier.get("diff") or []})
    if diffs:
        result["diff"] = list(diffs.values())
    return result


def _awaited(entry: Json) -> Json:
    """An entry of ``unmet`` as an entry of cluster_wait's ``objects``."""
    wanted = ("api_version", "kind", "namespace", "name", "conditions", "jsonpath")
    return {name: entry[name] for name in wanted if entry.get(name) is not None}


def _settle(whole: Json, waited: Json) -> None:
    """Enter what cluster_wait found into the result of apply_set."""
    entries = {progress.identity(entry): entry for entry in whole.get("objects") or []}
    for found in waited.get("objects") or []:
        entry = entries.get(progress.identity(found))
        if entry is not None:
            entry.update(ready=found["ready"], reason=found["reason"])
    for name in ("failed", "msg", "exception", "waited"):
        whole.pop(name, None)
        if name in waited:
            whole[name] = waited[name]
    for entry in (whole.get("waited") or {}).get("unmet") or []:
        for option in ("label_selector", "minimum", "state"):
            entry.pop(option, None)
