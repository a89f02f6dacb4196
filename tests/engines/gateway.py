# SPDX-License-Identifier: GPL-3.0-or-later
"""The real Envoy and our EPP as a process, in front of engines that are known from a file."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks import rig

from engines.reader import PATIENCE
from engines.server import post, stream

CONFIG = """
apiVersion: inference.networking.x-k8s.io/v1alpha1
kind: EndpointPickerConfig
plugins:
- type: queue-scorer
- type: running-requests-size-scorer
- type: max-score-picker
schedulingProfiles:
- name: default
  plugins:
  - {pluginRef: queue-scorer, weight: 2}
  - {pluginRef: running-requests-size-scorer, weight: 2}
  - {pluginRef: max-score-picker}
"""
"""The load of the engines decides, and nothing else."""


class Gateway:
    """Envoy's URL, the EPP behind it, and the names by which it knows the engines (``ip:port``)."""

    def __init__(self, url: str, epp: rig.Epp, names: Mapping[str, str]) -> None:
        self.url, self.epp, self._names = url, epp, names

    def ask(self, path: str, **body: Any) -> dict[str, Any]:
        """The answer to a request."""
        document: dict[str, Any] = post(self.url + path, body)
        return document

    def stream(self, path: str, **body: Any) -> list[dict[str, Any]]:
        """The events of an answer, which must come to its end."""
        data = stream(self.url + path, {"stream": True, "stream_options": {"include_usage": True}, **body})
        assert data.pop() == "[DONE]", "the stream was cut off"
        return [json.loads(each) for each in data]

    def seen(self, hostport: str) -> dict[str, Any]:
        """What the EPP has read of an engine."""
        found: dict[str, Any] = {each["name"]: each["metrics"] for each in self.epp.endpoints()}[self._names[hostport]]
        return found

    def wait_for_queue(self, hostport: str) -> None:
        """Until the EPP knows that requests run and wait at an engine."""
        end = time.monotonic() + PATIENCE
        while not ((found := self.seen(hostport))["running"] and found["waiting"]):
            assert time.monotonic() < end, f"no queue was seen at {hostport}; last: {found}"
            time.sleep(0.05)

    def wait_for_rest(self) -> None:
        """Until the EPP knows that no engine has anything to do."""
        end = time.monotonic() + PATIENCE
        while busy := [
            each for each in self.epp.endpoints() if each["metrics"]["running"] or each["metrics"]["waiting"]
        ]:
            assert time.monotonic() < end, f"never at rest: {busy}"
            time.sleep(0.05)

    def output_tokens(self) -> float:
        """Tokens of answers that the EPP has counted."""
        lines = [line for line in self.epp.metrics().splitlines() if line.startswith(_TOKENS)]
        return sum(float(line.rpartition(" ")[2]) for line in lines)


_TOKENS = "inference_objective_output_tokens_sum{"


@contextmanager
def gateway(folder: Path, engines: Mapping[str, str]) -> Iterator[Gateway]:
    """Envoy and the EPP in front of `engines`: where each is (``ip:port``), and of which kind."""
    names = {hostport: f"engine-{number}" for number, hostport in enumerate(engines)}
    entries = []
    for hostport, kind in engines.items():
        address, _, port = hostport.rpartition(":")
        labels = {"llm-d.ai/engine-type": kind}
        entries.append({"name": names[hostport], "address": address, "port": int(port), "labels": labels})
    endpoints, config = folder / "endpoints.yaml", folder / "config.yaml"
    endpoints.write_text(json.dumps({"endpoints": entries}), encoding="utf-8")
    config.write_text(CONFIG, encoding="utf-8")
    with rig.epp(f"--endpoints-file={endpoints}", f"--config-file={config}") as epp:
        with rig.envoy(rig.EnvoyOptions(tuple(engines), epp.grpc_port)) as url:
            yield Gateway(url, epp, names)
