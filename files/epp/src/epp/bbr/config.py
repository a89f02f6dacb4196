# SPDX-License-Identifier: GPL-3.0-or-later
"""PayloadProcessorConfig (``llm-d.ai/v1alpha1``), the configuration file of llm-d's payload processor.

``plugins`` declares instances; ``profiles[].plugins.request`` says which of them look at a request, in which order.
There is one profile, since nothing here chooses among several. Decoding is strict, as it is there; what belongs to
the selection of models and to answers is known and refused with a reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from epp.bbr.plugins import BASE_MODEL, BODY_FIELD, is_header
from epp.bbr.settings import PluginText
from epp.config.document import Decoder, Located, camel, parse
from epp.config.errors import ConfigError, did_you_mean

API_VERSION, KIND = "llm-d.ai/v1alpha1", "PayloadProcessorConfig"
PICKER = "single-profile-picker"

_NO_SELECTION = "models are not selected here, a request has the one that it names"
UNAVAILABLE = {
    "cost-scorer": _NO_SELECTION,
    "inflight-requests-scorer": _NO_SELECTION,
    "max-score-picker": _NO_SELECTION,
    "model-config-datasource": _NO_SELECTION,
    "model-group-name-filter": _NO_SELECTION,
    "model-name-to-header": _NO_SELECTION,
    "model-selector": _NO_SELECTION,
    "random-picker": _NO_SELECTION,
    "request-metadata-extractor": _NO_SELECTION,
    "weighted-random-picker": _NO_SELECTION,
}
"""Plugin types of the payload processor that are not here, and why."""


@dataclass(frozen=True)
class BodyFieldParameters:
    """Parameters of body-field-to-header."""

    field_name: str
    header_name: str

    def __post_init__(self) -> None:
        """Both say something."""
        if not self.field_name:
            raise ValueError("fieldName is empty; name a member of the body")
        if not is_header(self.header_name):
            raise ValueError(f"headerName {self.header_name!r} is no name of a header")


@dataclass(frozen=True)
class NoParameters:
    """For plugins that take none."""


TYPES: Mapping[str, type[BodyFieldParameters | NoParameters]] = {
    BODY_FIELD: BodyFieldParameters,
    BASE_MODEL: NoParameters,
    PICKER: NoParameters,
}
"""Plugin types, and what their parameters are."""


@dataclass(frozen=True)
class RawPlugin:
    """One entry of ``plugins``."""

    type: str
    name: str = ""
    parameters: Located | None = None


@dataclass(frozen=True)
class RawRef:
    """A plugin by name; the weight is for scorers."""

    plugin_ref: str
    weight: float | None = None


@dataclass(frozen=True)
class RawRefs:
    """``preProcessing``, ``postProcessing``."""

    plugins: tuple[Located, ...] = ()


@dataclass(frozen=True)
class RawStages:
    """The plugins of a profile."""

    request: tuple[Located, ...] = ()
    response: tuple[Located, ...] = ()


@dataclass(frozen=True)
class RawProfile:
    """One profile."""

    name: str
    plugins: RawStages


@dataclass(frozen=True)
class RawDataLayer:
    """``datalayer``."""

    collectors: tuple[Located, ...] = ()
    extractors: tuple[Located, ...] = ()
    datasources: tuple[Located, ...] = ()


@dataclass(frozen=True)
class RawConfig:
    """The whole document."""

    api_version: str
    kind: str
    plugins: tuple[Located, ...]
    profiles: tuple[Located, ...]
    pre_processing: RawRefs | None = None
    profile_picker: Located | None = None
    post_processing: RawRefs | None = None
    datalayer: RawDataLayer | None = None


def load(text: str, source: str) -> tuple[PluginText, ...]:
    """The plugins of the profile, in their order; ``source`` names the text in errors. Raises ConfigError."""
    return _Loading(parse(text, source), source).result()


class _Loading:
    def __init__(self, root: Located, source: str) -> None:
        self._root, self._source = root, source
        self._decoder = Decoder(source)
        self._plugins: dict[str, PluginText] = {}

    def result(self) -> tuple[PluginText, ...]:
        """See :func:`load`."""
        raw: RawConfig = self._decoder.decode(RawConfig, self._root, "")
        for key, value, wanted in (("apiVersion", raw.api_version, API_VERSION), ("kind", raw.kind, KIND)):
            if value != wanted:
                raise self._decoder.error(self._root.value[key], key, f"must be {wanted}, not {value!r}")
        for index, each in enumerate(raw.plugins):
            self._declare(each, f"plugins[{index}]")
        if not self._plugins:
            raise self._decoder.error(self._root.value["plugins"], "plugins", "is empty; declare a plugin")
        if raw.profile_picker is not None:
            self._reference(raw.profile_picker, "profilePicker", (PICKER,), "profile picker")
        others = {"preProcessing.plugins": raw.pre_processing.plugins if raw.pre_processing else ()}
        others["postProcessing.plugins"] = raw.post_processing.plugins if raw.post_processing else ()
        for kind in ("collectors", "extractors", "datasources"):
            others[f"datalayer.{kind}"] = getattr(raw.datalayer, kind) if raw.datalayer else ()
        for path, references in others.items():
            for index, each in enumerate(references):
                self._reference(each, f"{path}[{index}]", (), path.split(".")[0])
        return self._profile(raw.profiles)

    def _declare(self, located: Located, path: str) -> None:
        raw: RawPlugin = self._decoder.decode(RawPlugin, located, path)
        if raw.type in UNAVAILABLE:
            why = f"the plugin type {raw.type!r} is not available: {UNAVAILABLE[raw.type]}; remove it"
            raise self._decoder.error(located.value["type"], f"{path}.type", why)
        if raw.type not in TYPES:
            message = f"unknown plugin type {raw.type!r}; {did_you_mean(raw.type, TYPES)}"
            raise self._decoder.error(located.value["type"], f"{path}.type", message)
        name = raw.name or raw.type
        if name in self._plugins:
            where = located.value.get("name") or located.value["type"]
            raise self._decoder.error(where, f"{path}.name", f"there are two plugins named {name!r}; rename one")
        given = raw.parameters or Located(None, located.line)
        parameters = self._decoder.decode(TYPES[raw.type], given, f"{path}.parameters")
        plain = {camel(key): value for key, value in asdict(parameters).items()}
        self._plugins[name] = PluginText(raw.type, name, plain)

    def _reference(self, located: Located, path: str, types: tuple[str, ...], stage: str) -> PluginText:
        """The plugin that is referred to, if it may stand there."""
        raw: RawRef = self._decoder.decode(RawRef, located, path)
        item, path = located.value["pluginRef"], f"{path}.pluginRef"
        if raw.plugin_ref == PICKER and PICKER in types:
            return PluginText(PICKER, PICKER, {})  # need not be declared
        found = self._plugins.get(raw.plugin_ref)
        if found is None:
            advice = did_you_mean(raw.plugin_ref, self._plugins)
            raise self._decoder.error(item, path, f"no plugin is named {raw.plugin_ref!r}; {advice}")
        if found.type not in types:
            message = f"{raw.plugin_ref!r} is of type {found.type}, which is nothing for {stage}; remove it"
            raise self._decoder.error(item, path, message)
        return found

    def _profile(self, profiles: tuple[Located, ...]) -> tuple[PluginText, ...]:
        where = self._root.value["profiles"]
        if len(profiles) != 1:
            problem = f"there are {len(profiles)} profiles, and {PICKER} needs exactly one"
            raise ConfigError(self._source, where.line, "profiles", f"{problem}; keep one")
        profile: RawProfile = self._decoder.decode(RawProfile, profiles[0], "profiles[0]")
        path = "profiles[0].plugins"
        for index, each in enumerate(profile.plugins.response):
            self._reference(each, f"{path}.response[{index}]", (), "answers")
        if not profile.plugins.request:
            raise self._decoder.error(profiles[0].value["plugins"], path, "has no request plugins; name some")
        found = enumerate(profile.plugins.request)
        return tuple(
            self._reference(each, f"{path}.request[{index}]", (BODY_FIELD, BASE_MODEL), "requests")
            for index, each in found
        )
