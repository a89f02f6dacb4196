# Copyright: (c) 2026, inferops.cluster maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What every module that talks to a cluster does around its work: connect, keep secrets out, tell failures."""

from __future__ import annotations

from typing import Any, Callable, Dict, List, Optional, Set

from ansible_collections.kubernetes.core.plugins.module_utils.args_common import (
    extract_sensitive_values_from_kubeconfig,
)

from ansible_collections.inferops.cluster.plugins.module_utils import access
from ansible_collections.inferops.cluster.plugins.module_utils.client import Client
from ansible_collections.inferops.cluster.plugins.module_utils.errors import ApiError, ClusterError
from ansible_collections.inferops.cluster.plugins.module_utils.explain import missing_right, rights_advice, unauthorized


def credentials(params: Dict[str, Any]) -> Set[str]:
    """The secrets among the options: these must show in no result."""
    secrets = {params.get(option) for option in ("api_key", "password", "token")}
    secrets.update((params.get("proxy_headers") or {}).values())
    if isinstance(params.get("kubeconfig"), dict):
        secrets |= extract_sensitive_values_from_kubeconfig(params["kubeconfig"])
    return {secret for secret in secrets if secret}


def told(error: ClusterError, server: str) -> str:
    """The sentence for an API error that no object stands for, such as a refused LIST."""
    if not isinstance(error, ApiError):
        return str(error)
    if error.status == 401:
        return unauthorized(server)
    right = missing_right(error)
    if right:
        return f"{right}. {rights_advice(server)}"
    return f"the API server {server} refused {error.method} {error.path}: {error.message}"


class Session:
    """One connection for the length of a module's work, with the failure that ended it, if any."""

    def __init__(self, params: Dict[str, Any]) -> None:
        self.client: Optional[Client] = None
        self.failure: Optional[ClusterError] = None
        self._params = params

    def run(self, work: Callable[[Client], None]) -> None:
        """Do the work; a ClusterError ends it, and is kept."""
        try:
            self.client = Client(access.resolve(self._params))
            work(self.client)
        except ClusterError as error:
            self.failure = error
        finally:
            if self.client:
                self.client.close()

    @property
    def warnings(self) -> List[str]:
        """What the API server warned about."""
        return list(self.client.warnings) if self.client else []

    @property
    def message(self) -> str:
        """The failure as a sentence; empty when there was none."""
        return told(self.failure, self.client.server if self.client else "") if self.failure else ""


def finish(module: Any, work: Callable[[Dict[str, Any], bool, bool], Dict[str, Any]]) -> None:
    """Do a module's ``work`` (parameters, check mode, diff mode) and end the module with its results.

    Manifests are marked no_log so that they reach no log of the host; but then Ansible would also mask every word of
    theirs, such as the names of the objects, in what the module returns. So only credentials are masked.
    """
    module.no_log_values = credentials(module.params)
    results = work(module.params, module.check_mode, module._diff)
    for warning in results.pop("warnings"):
        module.warn(warning)
    if results.pop("failed"):
        module.fail_json(**results)
    module.exit_json(**results)
