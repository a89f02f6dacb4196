# SPDX-License-Identifier: GPL-3.0-or-later
"""Makes the plugins that a configuration names."""

from __future__ import annotations

import random
import traceback
from collections.abc import Mapping
from typing import TYPE_CHECKING

from epp.scheduling.api import Endpoints, Plugin, SchedulingRecorder

if TYPE_CHECKING:
    from epp.config.schema import EndpointPickerConfig


class PluginError(ValueError):
    """A plugin that cannot be made from its parameters; the text names it."""


class Builder:
    """Builds plugins, those first that others ask for; the Context of every plugin."""

    def __init__(
        self,
        cfg: EndpointPickerConfig,
        registry: Mapping[str, type[Plugin]],
        datastore: Endpoints,
        recorder: SchedulingRecorder,
        rng: random.Random,
    ) -> None:
        self._specs = {spec.name: spec for spec in cfg.plugins}
        self._registry = registry
        self._plugins: dict[str, Plugin] = {}
        self._building: list[str] = []
        self.datastore, self.recorder, self.rng = datastore, recorder, rng

    def built(self) -> list[Plugin]:
        """All plugins so far; each comes after those it asked for."""
        return list(self._plugins.values())

    def build(self, name: str) -> Plugin:
        """The plugin of that name, made now unless it is there. Raises PluginError."""
        if name in self._plugins:
            return self._plugins[name]
        if name in self._building:
            raise PluginError("plugins need each other in a circle: " + " -> ".join([*self._building, name]))
        spec = self._specs.get(name)
        if spec is None:
            raise PluginError(f"no plugin is named {name!r}; add it to plugins")
        self._building.append(name)
        try:
            plugin = self._registry[spec.type](name, spec.parameters, self)
        except PluginError:
            raise
        except Exception as error:
            message = f"plugin {name} ({spec.type}) cannot be made: {error or type(error).__name__}"
            if not self._registry[spec.type].__module__.startswith("epp."):
                # Somebody's own: the last frames are theirs.
                message += "\n" + "".join(traceback.format_exception(error, limit=-3)).rstrip()
            raise PluginError(message) from error
        finally:
            self._building.pop()
        self._plugins[name] = plugin
        return plugin

    def plugin(self, name: str) -> Plugin:
        """The configured plugin of that name, built first if need be; PluginError if there is none."""
        return self.build(name)

    def of_type(self, plugin_type: str) -> Plugin:
        """The first configured plugin of that type; one with default parameters if none is configured."""
        for spec in self._specs.values():
            if plugin_type == self._registry[spec.type].TYPE:
                return self.build(spec.name)
        if plugin_type not in self._plugins:
            cls = self._registry[plugin_type]
            self._plugins[plugin_type] = cls(plugin_type, cls.PARAMETERS(), self)
        return self._plugins[plugin_type]

    def first(self, kind: type[Plugin]) -> Plugin | None:
        """The first configured plugin of a class, None if there is none."""
        name = next((spec.name for spec in self._specs.values() if issubclass(self._registry[spec.type], kind)), None)
        return None if name is None else self.build(name)

    def adopt(self, plugin: Plugin) -> None:
        """Let a plugin that another one made for itself take part in the cycle."""
        self._plugins[f"{plugin.name}/{plugin.TYPE}"] = plugin
