# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads an EndpointPickerConfig strictly, fills in what it leaves out, and writes it back."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import yaml

from epp.config.document import Decoder, Located, camel, duration_text, parse
from epp.config.errors import ConfigError, did_you_mean
from epp.config.flow import FlowReading, plain
from epp.config.raw import (
    PluginRef,
    RawConfig,
    RawDataLayer,
    RawFlowControl,
    RawPlugin,
    RawProfile,
    RawRequestHandler,
)
from epp.config.reference import UNAVAILABLE
from epp.config.schema import (
    API_VERSIONS,
    KIND,
    DataSourceSpec,
    EndpointPickerConfig,
    FlowControlSpec,
    PluginSpec,
    ProfilePlugin,
    ProfileSpec,
)
from epp.plugins import registry
from epp.scheduling.api import (
    DataSource,
    Discovery,
    Extractor,
    Filter,
    Parser,
    Picker,
    Plugin,
    ProfileHandler,
    SaturationDetector,
    Scorer,
)

DEFAULT = """\
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins:
- type: queue-scorer
- type: kv-cache-utilization-scorer
- type: prefix-cache-scorer
schedulingProfiles:
- name: default
  plugins:
  - {pluginRef: queue-scorer, weight: 2}
  - {pluginRef: kv-cache-utilization-scorer, weight: 2}
  - {pluginRef: prefix-cache-scorer, weight: 3}
"""

GATES = {"flowControl": False, "haPopulateNonLeaderDatastore": True, "dataLayer": True, "prepareDataPlugins": True}
"""Feature gates and what they are when nobody sets them."""

DEFAULT_PARSERS = ("openai-parser", "anthropic-parser", "vllmhttp-parser", "passthrough-parser")
"""What understands requests when requestHandler does not say; the last one takes what the others do not know."""

EXTRACTORS = {"metrics-data-source": "core-metrics-extractor", "models-data-source": "models-data-extractor"}
"""Which extractor reads a source that was added."""

LATER = "is not available in this version of the EPP; remove it"


def load(text: str, source: str, gates: Collection[str] = ()) -> EndpointPickerConfig:
    """Read YAML (or JSON) text; ``source`` names it in errors, ``gates`` are on anyway. Raises ConfigError."""
    return _Loading(parse(text, source), source, gates).result()


def default(gates: Collection[str] = ()) -> EndpointPickerConfig:
    """What runs without any configuration: queue 2, KV cache 2, prefix cache 3, as in the reference."""
    return load(DEFAULT, "built-in default", gates)


def effective(cfg: EndpointPickerConfig) -> str:
    """The configuration as YAML with every default written out; loads to an equal configuration."""
    types = registry()
    plugins = []
    for spec in cfg.plugins:
        entry: dict[str, Any] = {"name": spec.name, "type": spec.type}
        parameters = _plain_parameters(spec.parameters)
        plugins.append({**entry, "parameters": parameters} if parameters else entry)
    profiles = []
    for profile in cfg.profiles:
        members: list[dict[str, Any]] = []
        for member in profile.plugins:
            weighted = issubclass(types[cfg.plugin(member.plugin).type], Scorer)
            weight = {"weight": int(member.weight) if member.weight.is_integer() else member.weight}
            members.append({"pluginRef": member.plugin, **(weight if weighted else {})})
        profiles.append({"name": profile.name, "plugins": members})
    sources = [
        {"pluginRef": source.plugin, "extractors": [{"pluginRef": name} for name in source.extractors]}
        for source in cfg.sources
    ]
    data_layer: dict[str, Any] = {"injectDefaults": False, "sources": sources}
    if cfg.discovery:
        data_layer["discovery"] = {"pluginRef": cfg.discovery}
    document = {
        "apiVersion": API_VERSIONS[0],
        "kind": KIND,
        "featureGates": [f"{name}={str(value).lower()}" for name, value in cfg.feature_gates.items()],
        "plugins": plugins,
        "schedulingProfiles": profiles,
        "dataLayer": data_layer,
        "flowControl": {
            **(plain(cfg.flow_control) if cfg.flow_control else {}),
            "saturationDetector": {"pluginRef": cfg.saturation_detector},
        },
        "requestHandler": {"parsers": [{"pluginRef": name} for name in cfg.parsers]},
    }
    return yaml.safe_dump(document, sort_keys=False, default_flow_style=False, width=120)


def _plain_parameters(parameters: Any) -> dict[str, Any]:
    """Parameters as they are written; None means not given, and is left out."""
    result: dict[str, Any] = {}
    for field in fields(parameters):
        value = getattr(parameters, field.name)
        if value is None:
            continue
        if field.metadata.get("duration"):
            value = duration_text(value)
        elif isinstance(value, tuple | list):
            value = [_plain_parameters(item) if is_dataclass(item) else item for item in value]
        elif is_dataclass(value):
            value = _plain_parameters(value)
        result[field.metadata.get("key") or camel(field.name)] = value
    return result


class _Loading:
    """The reading of one document, step by step; each step relies on those before it."""

    def __init__(self, root: Located, source: str, gates: Collection[str]) -> None:
        self._root, self._source, self._forced = root, source, gates
        self._types: Mapping[str, type[Plugin]] = registry()
        self._decoder = Decoder(source, self._check_kind)
        self._specs: dict[str, PluginSpec] = {}
        self._lines: dict[str, int] = {}
        self._declared: dict[str, type[Plugin]] = {}
        self._warnings: list[str] = []
        self._found_by = ""
        self._flow = RawFlowControl()

    def result(self) -> EndpointPickerConfig:
        """The configuration, complete."""
        if self._root.value is None:
            raise ConfigError(self._source, 0, "", "is empty; leave it away to run with the default configuration")
        raw: RawConfig = self._decoder.decode(RawConfig, self._root, "")
        self._header(raw)
        gates = self._gates(raw)
        self._plugins(raw)
        configured = tuple(self._specs)
        detector = self._detector(raw, gates["flowControl"])
        profiles = self._profiles(raw, configured)
        handler = self._handler(raw, len(profiles))
        sources = self._sources(raw)
        parsers = self._parsers(raw)
        flow_control = self._queueing(raw) if gates["flowControl"] else None
        self._needed()
        return EndpointPickerConfig(
            plugins=tuple(self._specs.values()),
            profiles=profiles,
            profile_handler=handler,
            saturation_detector=detector,
            sources=sources,
            discovery=self._found_by,
            parsers=parsers,
            flow_control=flow_control,
            feature_gates=gates,
            source=self._source,
            api_version=raw.api_version,
            warnings=tuple(self._warnings),
        )

    def _at(self, path: str, message: str, *keys: str | int) -> ConfigError:
        """An error at ``path``; ``keys`` lead from the root to the value whose line is meant."""
        node = self._root
        for key in keys:
            inner = node.value
            if isinstance(inner, dict) and key in inner:
                node = inner[str(key)]
            elif isinstance(inner, list) and isinstance(key, int) and key < len(inner):
                node = inner[key]
            else:
                break
        return ConfigError(self._source, node.line, path, message)

    def _header(self, raw: RawConfig) -> None:
        if raw.api_version not in API_VERSIONS:
            known = " or ".join(API_VERSIONS)
            raise self._at("apiVersion", f"must be {known}, not {raw.api_version!r}", "apiVersion")
        if raw.kind != KIND:
            raise self._at("kind", f"must be {KIND}, not {raw.kind!r}", "kind")

    def _gates(self, raw: RawConfig) -> dict[str, bool]:
        gates = dict(GATES)
        for index, text in enumerate(raw.feature_gates):
            path = f"featureGates[{index}]"
            name, equals, value = text.partition("=")
            if name not in GATES:
                advice = did_you_mean(name, GATES)
                raise self._at(path, f"unknown feature gate {name!r}; {advice}", "featureGates", index)
            if equals and value not in ("true", "false"):
                raise self._at(path, f"must end in =true or =false, not ={value}", "featureGates", index)
            gates[name] = value != "false"
        gates.update(dict.fromkeys(self._forced, True))
        return gates

    def _plugins(self, raw: RawConfig) -> None:
        """Names and types first, so that parameters may refer to plugins further down."""
        entries: list[tuple[RawPlugin, Located, str]] = []
        for index, located in enumerate(raw.plugins):
            path = f"plugins[{index}]"
            if isinstance(located.value, dict) and "name" in located.value and "type" not in located.value:
                name = located.value["name"].value
                raise self._at(f"{path}.type", f"is missing; say of which type {name!r} is", "plugins", index)
            entry: RawPlugin = self._decoder.decode(RawPlugin, located, path)
            name = entry.name or entry.type
            if entry.type not in self._types:
                raise self._at(f"{path}.type", self._unknown_type(entry.type), "plugins", index, "type")
            if name in self._lines:
                message = f"the name {name!r} is taken by the plugin of line {self._lines[name]}; give it another name"
                raise self._at(f"{path}.name", message, "plugins", index, "name")
            self._lines[name] = located.line
            self._declared[name] = self._types[entry.type]
            entries.append((entry, located, path))
        for entry, located, path in entries:
            name = entry.name or entry.type
            given = entry.parameters or Located(None, located.line)
            parameters = self._decoder.decode(self._types[entry.type].PARAMETERS, given, f"{path}.parameters")
            self._specs[name] = PluginSpec(name, entry.type, parameters)

    def _unknown_type(self, word: str) -> str:
        if word in UNAVAILABLE:
            return f"the plugin type {word!r} {LATER} ({UNAVAILABLE[word]})"
        return f"unknown plugin type {word!r}; {did_you_mean(word, self._types)}"

    def _check_reference(self, name: str, line: int, path: str) -> None:
        if name not in self._lines and name not in self._specs:
            advice = did_you_mean(name, self._lines)
            raise ConfigError(self._source, line, path, f"no plugin is named {name!r}; {advice}")

    def _kind(self, name: str) -> type[Plugin]:
        return self._types[self._specs[name].type]

    def of_kind(self, name: str, kind: type[Plugin], path: str, line: int) -> str:
        """``name``, if it is a plugin of that kind."""
        self._check_kind(name, line, path, kind)
        return name

    def _check_kind(self, name: str, line: int, path: str, kind: type[Any]) -> None:
        self._check_reference(name, line, path)
        found = self._declared.get(name) or self._kind(name)
        if not issubclass(found, kind):
            message = f"{name!r} is of type {found.TYPE}, which is not a {kind.__name__}"
            raise ConfigError(self._source, line, path, f"{message}; refer to another plugin")

    def _first(self, kind: type[Plugin]) -> str | None:
        return next((name for name in self._specs if issubclass(self._kind(name), kind)), None)

    def _ensure(self, plugin_type: str, parameters: Any = None) -> str:
        """The name of the first plugin of a type, added with defaults when there is none."""
        for spec in self._specs.values():
            if plugin_type == self._types[spec.type].TYPE:
                return spec.name
        name = plugin_type
        while name in self._specs:
            name += "-default"
        self._specs[name] = PluginSpec(name, plugin_type, parameters or self._types[plugin_type].PARAMETERS())
        return name

    def _detector(self, raw: RawConfig, queueing: bool) -> str:
        """From flowControl, from the deprecated top level (a reference, or v1.3's three numbers), else the default."""
        named = self._flow_control(raw, queueing)
        old = raw.saturation_detector
        if named is not None and old is not None:
            message = "is there twice, also in flowControl; remove this one"
            raise self._at("saturationDetector", message, "saturationDetector")
        if named is not None:
            return named
        if old is None:
            return self._first(SaturationDetector) or self._ensure("utilization-detector")
        if isinstance(old.value, dict) and "pluginRef" in old.value:
            unknown = next((key for key in old.value if key != "pluginRef"), None)
            if unknown is not None:
                message = "is not possible beside pluginRef; remove one"
                raise self._at(f"saturationDetector.{unknown}", message, "saturationDetector", unknown)
            reference = old.value["pluginRef"]
            return self.of_kind(
                str(reference.value), SaturationDetector, "saturationDetector.pluginRef", reference.line
            )
        taken = self._first(SaturationDetector)
        if taken is not None:
            message = f"the plugin {taken!r} says the same; keep one of them"
            raise self._at("saturationDetector", message, "saturationDetector")
        parameters = self._decoder.decode(self._types["utilization-detector"].PARAMETERS, old, "saturationDetector")
        return self._ensure("utilization-detector", parameters)

    def _flow_control(self, raw: RawConfig, queueing: bool) -> str | None:
        """The detector that flowControl names."""
        if raw.flow_control is None:
            return None
        self._flow = self._decoder.decode(RawFlowControl, raw.flow_control, "flowControl")
        idle = [key for key in raw.flow_control.value or {} if key != "saturationDetector"]
        if idle and not queueing:
            names = ", ".join(idle)
            self._warnings.append(f"flowControl ({names}) has no effect: the feature gate flowControl is off")
        if self._flow.saturation_detector is None:
            return None
        line = raw.flow_control.value["saturationDetector"].line
        path = "flowControl.saturationDetector.pluginRef"
        return self.of_kind(self._flow.saturation_detector.plugin_ref, SaturationDetector, path, line)

    def _queueing(self, raw: RawConfig) -> FlowControlSpec:
        return FlowReading(self._source, self, raw.flow_control).result(self._flow)

    def default(self, plugin_type: str) -> str:
        """The first configured plugin of that type; one with default parameters if there is none."""
        return self._ensure(plugin_type)

    def first(self, kind: type[Plugin], plugin_type: str) -> str:
        """The first configured plugin of that kind; one of that type with default parameters if there is none."""
        return self._first(kind) or self._ensure(plugin_type)

    def _profiles(self, raw: RawConfig, configured: tuple[str, ...]) -> tuple[ProfileSpec, ...]:
        if not raw.scheduling_profiles:
            usable = (Filter, Scorer, Picker)
            members = [ProfilePlugin(name) for name in configured if issubclass(self._kind(name), usable)]
            return (self._with_picker(ProfileSpec("default", tuple(members)), self._root.line, "schedulingProfiles"),)
        profiles: list[ProfileSpec] = []
        for index, located in enumerate(raw.scheduling_profiles):
            path = f"schedulingProfiles[{index}]"
            profile: RawProfile = self._decoder.decode(RawProfile, located, path)
            if any(profile.name == other.name for other in profiles):
                message = f"the name {profile.name!r} is there twice; give it another name"
                raise self._at(f"{path}.name", message, "schedulingProfiles", index, "name")
            members = self._members(profile, located, index)
            profiles.append(self._with_picker(ProfileSpec(profile.name, tuple(members)), located.line, path))
        return tuple(profiles)

    def _members(self, profile: RawProfile, located: Located, index: int) -> list[ProfilePlugin]:
        members: list[ProfilePlugin] = []
        for position, member in enumerate(profile.plugins):
            path = f"schedulingProfiles[{index}].plugins[{position}].pluginRef"
            line = located.value["plugins"].value[position].value["pluginRef"].line
            self._check_reference(member.plugin_ref, line, path)
            if not issubclass(self._kind(member.plugin_ref), Filter | Scorer | Picker):
                self._warnings.append(
                    f"{path}: {member.plugin_ref!r} has no effect in a profile: it is no filter, scorer or picker"
                )
                continue
            members.append(ProfilePlugin(member.plugin_ref, 1.0 if member.weight is None else member.weight))
        return members

    def _with_picker(self, profile: ProfileSpec, line: int, path: str) -> ProfileSpec:
        pickers = [member.plugin for member in profile.plugins if issubclass(self._kind(member.plugin), Picker)]
        if len(pickers) > 1:
            message = f"profile {profile.name!r} has more than one picker ({', '.join(pickers)}); keep one"
            raise ConfigError(self._source, line, path, message)
        if pickers:
            return profile
        return ProfileSpec(profile.name, (*profile.plugins, ProfilePlugin(self._ensure("max-score-picker"))))

    def _handler(self, raw: RawConfig, profiles: int) -> str:
        names = [name for name in self._specs if issubclass(self._kind(name), ProfileHandler)]
        if len(names) > 1:
            message = f"there is more than one profile handler ({', '.join(names)}); keep one"
            raise ConfigError(self._source, self._lines[names[1]], "plugins", message)
        if not names and profiles > 1:
            message = "more than one profile needs a profile handler; add one to plugins"
            raise self._at("schedulingProfiles", message, "schedulingProfiles")
        name = names[0] if names else self._ensure("single-profile-handler")
        kind = self._kind(name)
        assert issubclass(kind, ProfileHandler)
        if kind.MAX_PROFILES is not None and profiles > kind.MAX_PROFILES:
            message = f"{name} works with {kind.MAX_PROFILES} profile, and there are {profiles}; use another handler"
            raise self._at("schedulingProfiles", message, "schedulingProfiles")
        return name

    def _sources(self, raw: RawConfig) -> tuple[DataSourceSpec, ...]:
        if raw.data is not None and raw.data_layer is not None:
            raise self._at("data", "is dataLayer's old name, and both are there; remove one", "data")
        key = "data" if raw.data is not None else "dataLayer"
        located = raw.data or raw.data_layer or Located(None, self._root.line)
        layer: RawDataLayer = self._decoder.decode(RawDataLayer, located, key)
        later = {
            "peerDiscovery": layer.peer_discovery,
            "crossReplicaSyncerPluginRef": layer.cross_replica_syncer_plugin_ref,
            "crossReplicaSyncInterval": layer.cross_replica_sync_interval,
        }
        for name, value in later.items():
            if value:
                raise self._at(f"{key}.{name}", LATER, key, name)
        if layer.discovery is not None:
            reference = layer.discovery.endpoints or PluginRef(layer.discovery.plugin_ref)
            line = located.value["discovery"].line
            self._found_by = self.of_kind(reference.plugin_ref, Discovery, f"{key}.discovery", line)
        sources: list[DataSourceSpec] = []
        for index, source in enumerate(layer.sources):
            line = located.value["sources"].value[index].line
            path = f"{key}.sources[{index}]"
            name = self.of_kind(source.plugin_ref, DataSource, f"{path}.pluginRef", line)
            extractors = tuple(
                self._extractor(extractor.plugin_ref, name, f"{path}.extractors[{position}].pluginRef", line)
                for position, extractor in enumerate(source.extractors)
            )
            sources.append(DataSourceSpec(name, extractors))
        types = [self._specs[source.plugin].type for source in sources]
        twice = next((name for name in types if types.count(name) > 1), None)
        if twice is not None:
            raise self._at(f"{key}.sources", f"has more than one {twice}; keep one", key, "sources")
        wanted = ["metrics-data-source"] if layer.inject_defaults else []
        wanted += ["models-data-source"] if self._has("models-responder") else []
        for name in wanted:
            if name not in types:
                sources.append(DataSourceSpec(self._ensure(name), (self._ensure(EXTRACTORS[name]),)))
        return tuple(sources)

    def _has(self, plugin_type: str) -> bool:
        return any(spec.type == plugin_type for spec in self._specs.values())

    def _extractor(self, name: str, source: str, path: str, line: int) -> str:
        """``name``, if it can read that source: figures want an extractor, news of endpoints may go to any plugin."""
        news = self._types[self._specs[source].type] is self._types["endpoint-notification-source"]
        return self.of_kind(name, Plugin if news else Extractor, path, line)

    def _parsers(self, raw: RawConfig) -> tuple[str, ...]:
        names: list[str] = []
        if raw.request_handler is not None:
            handler: RawRequestHandler = self._decoder.decode(RawRequestHandler, raw.request_handler, "requestHandler")
            for index, reference in enumerate(handler.parsers):
                path = f"requestHandler.parsers[{index}].pluginRef"
                names.append(self.of_kind(reference.plugin_ref, Parser, path, raw.request_handler.line))
        if raw.parser is not None:
            if names:
                raise self._at(
                    "parser", "is requestHandler.parsers' old form, and both are there; remove one", "parser"
                )
            line = self._root.value["parser"].line
            names.append(self.of_kind(raw.parser.plugin_ref, Parser, "parser.pluginRef", line))
        return tuple(names) or tuple(self._ensure(each) for each in DEFAULT_PARSERS)

    def _needed(self) -> None:
        """Add what plugins need of each other."""
        for spec in list(self._specs.values()):
            kind = self._types[spec.type]
            for plugin_type in kind.needs(spec.parameters):
                self._ensure(plugin_type)
            self._warnings += [f"plugin {spec.name}: {warning}" for warning in kind.warnings(spec.parameters)]
