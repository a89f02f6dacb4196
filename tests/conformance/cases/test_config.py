# SPDX-License-Identifier: GPL-3.0-or-later
"""EndpointPickerConfig: what is accepted, what is filled in, and what is refused with a word about it."""

from __future__ import annotations

import json
from functools import partial
from operator import eq
from pathlib import Path

import pytest
import yaml

from conformance.kit.picker import Picker
from conformance.kit.talk import destinations, route
from conformance.kit.wait import eventually
from conformance.kit.world import Pool, World

OLD, NEW = "inference.networking.x-k8s.io/v1alpha1", "llm-d.ai/v1alpha1"
LATER = "a form of later versions"
QUEUE, KV = {"type": "queue-scorer"}, {"type": "kv-cache-utilization-scorer"}


def config(plugins: list[object], profiles: list[object] | None = None, version: str = OLD, **more: object) -> str:
    """A configuration as text."""
    found: dict[str, object] = {"apiVersion": version, "kind": "EndpointPickerConfig", "plugins": plugins, **more}
    if profiles is not None:
        found["schedulingProfiles"] = profiles
    return yaml.safe_dump(found)


def profile(*plugins: object, name: str = "default") -> dict[str, object]:
    """A scheduling profile."""
    return {"name": name, "plugins": list(plugins)}


def prefers(found: Picker, pool: Pool, better: dict[str, float], worse: dict[str, float]) -> bool:
    """Whether the one engine that looks better gets all requests, the first and then the last."""
    for place in (0, -1):
        shown = [worse] * len(pool.engines)
        shown[place] = better
        for engine in pool.engines:
            engine.show(waiting=0, kv=0.0)
        pool.show(*shown)
        eventually(lambda: destinations(found, 6), partial(eq, {pool.engines[place].hostport}))
    return True


LONG, SHORT = {"waiting": 4, "kv": 0.1}, {"waiting": 1, "kv": 0.7}
"""A long queue and an empty cache, and the other way round; neither is saturated."""

ONLY_QUEUE = {
    "the old group": config([QUEUE], [profile({"pluginRef": "queue-scorer"})]),
    "the new group": config([QUEUE], [profile({"pluginRef": "queue-scorer"})], NEW),
    "no profiles": config([QUEUE]),
    "a picker is named": config(
        [QUEUE, {"type": "max-score-picker"}],
        [profile({"pluginRef": "queue-scorer"}, {"pluginRef": "max-score-picker"})],
    ),
    "a handler is named": config(
        [QUEUE, {"type": "single-profile-handler"}], [profile({"pluginRef": "queue-scorer", "weight": 1})]
    ),
    "names beside types": config([{"name": "short", **QUEUE}], [profile({"pluginRef": "short", "weight": 3})]),
    "a plugin that is not used": config([QUEUE, KV], [profile({"pluginRef": "queue-scorer"})]),
    "weights": config(
        [QUEUE, KV],
        [profile({"pluginRef": "queue-scorer", "weight": 10}, {"pluginRef": KV["type"], "weight": 1})],
    ),
    "a fraction for a weight": config(
        [QUEUE, KV],
        [profile({"pluginRef": "queue-scorer", "weight": 2.5}, {"pluginRef": KV["type"], "weight": 0.5})],
    ),
    "the same type twice": config(
        [{"name": "a", **QUEUE}, {"name": "b", **QUEUE}, KV],
        [profile({"pluginRef": "a", "weight": 2}, {"pluginRef": "b", "weight": 2}, {"pluginRef": KV["type"]})],
    ),
    "JSON": json.dumps(yaml.safe_load(config([QUEUE], [profile({"pluginRef": "queue-scorer"})]))),
    "another profile name": config([QUEUE], [profile({"pluginRef": "queue-scorer"}, name="main")]),
    "a saturation detector": config(
        [QUEUE],
        saturationDetector={"queueDepthThreshold": 9, "kvCacheUtilThreshold": 0.9, "metricsStalenessThreshold": "1s"},
    ),
    "a gate": config([QUEUE], featureGates=["flowControl"]),
    "a gate switched off": config([QUEUE], featureGates=["flowControl=false"]),
    "a saturation detector as a plugin": config(
        [QUEUE, {"type": "utilization-detector", "parameters": {"queueDepthThreshold": 9}}],
        [profile({"pluginRef": "queue-scorer"})],
        NEW,
        flowControl={"saturationDetector": {"pluginRef": "utilization-detector"}},
    ),
    "a parser": config(
        [QUEUE, {"type": "openai-parser"}],
        [profile({"pluginRef": "queue-scorer"})],
        NEW,
        requestHandler={"parsers": [{"pluginRef": "openai-parser"}]},
    ),
    "a data layer": config(
        [QUEUE, {"type": "metrics-data-source"}, {"type": "core-metrics-extractor"}],
        [profile({"pluginRef": "queue-scorer"})],
        NEW,
        dataLayer={
            "sources": [{"pluginRef": "metrics-data-source", "extractors": [{"pluginRef": "core-metrics-extractor"}]}]
        },
    ),
    "flow control's figures": config(
        [QUEUE],
        [profile({"pluginRef": "queue-scorer"})],
        NEW,
        flowControl={
            "maxBytes": 1000000000,
            "defaultRequestTTL": "30s",
            "priorityBands": [{"priority": 5, "maxRequests": 100}],
        },
    ),
}
_LATER = {
    "the new group",
    "a fraction for a weight",
    "a gate switched off",
    "a saturation detector as a plugin",
    "a parser",
    "a data layer",
    "flow control's figures",
}


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(text, id=name, marks=[pytest.mark.differs(go=LATER)] if name in _LATER else [])
        for name, text in ONLY_QUEUE.items()
    ],
)
def test_accepted(around: World, pool: Pool, text: str) -> None:
    """A configuration in which the queue decides: it does."""
    with around.picker(pool.name, config=text) as found:
        assert prefers(found, pool, better=SHORT, worse=LONG)


@pytest.mark.differs(go="v1.3 needs a configuration, and dies without one")
def test_none(around: World, pool: Pool) -> None:
    """Without any configuration: queue, cache and prefix decide."""
    with around.picker(pool.name, config=None) as found:
        assert prefers(found, pool, better={"waiting": 0, "kv": 0.1}, worse={"waiting": 5, "kv": 0.1})
        assert prefers(found, pool, better={"waiting": 0, "kv": 0.1}, worse={"waiting": 0, "kv": 0.9})
        pool.reset()
        known = route(found, PREFIX).destination
        assert {route(found, PREFIX).destination for _ in range(8)} == {known}


PREFIX = json.dumps({"model": "m", "prompt": "a prompt of some length " * 40}).encode()


def test_from_a_file(around: World, pool: Pool, tmp_path: Path) -> None:
    """--config-file."""
    file = tmp_path / "config.yaml"
    file.write_text(ONLY_QUEUE["the old group"])
    with around.picker(pool.name, f"--config-file={file}", config=None) as found:
        assert prefers(found, pool, better=SHORT, worse=LONG)


REFUSED = {
    "no YAML": ("plugins: [", "yaml"),
    "no object": ("just a text", ""),
    "another version": (config([QUEUE], version="inference.networking.x-k8s.io/v9"), "v9"),
    "another kind": (config([QUEUE]).replace("EndpointPickerConfig", "PickerConfig"), "PickerConfig"),
    "an unknown field": (config([QUEUE], shedulingProfiles=[]), "shedulingProfiles"),
    "an unknown field of a plugin": (config([{**QUEUE, "parameter": {}}]), "parameter"),
    "an unknown field of a profile": (config([QUEUE], [{"name": "p", "plugin": []}]), "plugin"),
    "an unknown field of a reference": (
        config([QUEUE], [profile({"pluginRef": "queue-scorer", "wieght": 2})]),
        "wieght",
    ),
    "an unknown type": (config([{"type": "que-scorer"}]), "que-scorer"),
    "no type": (config([{"name": "nameless"}]), "nameless"),
    "a name twice": (config([QUEUE, QUEUE]), "queue-scorer"),
    "an unknown reference": (config([QUEUE], [profile({"pluginRef": "kv-scorer"})]), "kv-scorer"),
    "an unknown gate": (config([QUEUE], featureGates=["flowcontrol"]), "flowcontrol"),
    "two handlers": (
        config([QUEUE, {"type": "single-profile-handler"}, {"name": "b", "type": "single-profile-handler"}]),
        "handler",
    ),
    "two profiles for one": (
        config(
            [QUEUE, {"type": "single-profile-handler"}],
            [profile({"pluginRef": "queue-scorer"}), profile({"pluginRef": "queue-scorer"}, name="b")],
        ),
        "profile",
    ),
    "two profiles and no handler": (
        config([QUEUE], [profile({"pluginRef": "queue-scorer"}), profile({"pluginRef": "queue-scorer"}, name="b")]),
        "handler",
    ),
    "a profile twice": (
        config([QUEUE], [profile({"pluginRef": "queue-scorer"}), profile({"pluginRef": "queue-scorer"})]),
        "default",
    ),
    "a parameter of another kind": (
        config([{"type": "prefix-cache-scorer", "parameters": {"lruCapacityPerServer": "many"}}]),
        "lruCapacityPerServer",
    ),
    "a weight that is none": (config([QUEUE], [profile({"pluginRef": "queue-scorer", "weight": "heavy"})]), "weight"),
    "a gate that is no text": (config([QUEUE], featureGates=[{"flowControl": True}]), "featureGates"),
    "a duration that is none": (
        config([QUEUE], saturationDetector={"metricsStalenessThreshold": "soon"}),
        "soon",
    ),
    "an unknown parameter": (
        config([{"type": "prefix-cache-scorer", "parameters": {"lruCapacity": 5}}]),
        "lruCapacity",
    ),
    "plugins that are no list": (config([]).replace("plugins: []", "plugins: {}"), "plugins"),
}
_LAX = {
    "an unknown parameter": "v1.3 ignores unknown parameters",
}


@pytest.mark.parametrize(
    ("text", "named"),
    [
        pytest.param(*each, id=name, marks=[pytest.mark.differs(go=_LAX[name])] if name in _LAX else [])
        for name, each in REFUSED.items()
    ],
)
def test_refused(around: World, main_pool: Pool, text: str, named: str) -> None:
    """A configuration that is wrong: the picker does not start, and names what is wrong."""
    assert named.lower() in around.refusal(*around.flags(main_pool.name, config=text)).lower()


@pytest.mark.differs(go="v1.3 gives no places")
def test_where(around: World, main_pool: Pool, tmp_path: Path) -> None:
    """The error names the file and the line."""
    file = tmp_path / "broken.yaml"
    file.write_text("apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\nplugins:\n- type: nobody-scorer\n")
    said = around.refusal(*around.flags(main_pool.name, config=None), f"--config-file={file}")
    assert f"{file}:4" in said
    assert "nobody-scorer" in said


def test_no_crash(around: World, main_pool: Pool) -> None:
    """The error is no crash of the program."""
    said = around.refusal(*around.flags(main_pool.name, config=config([{"type": "nobody"}])))
    assert "Traceback" not in said
    assert "panic:" not in said
