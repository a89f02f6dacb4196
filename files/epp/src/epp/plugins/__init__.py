# SPDX-License-Identifier: GPL-3.0-or-later
"""All plugins that can be named in an EndpointPickerConfig, one file each.

A file in this folder that defines a plugin has thereby added it. Plugins of one's own come from elsewhere: see
:mod:`epp.plugins.external`.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Iterator, Mapping

from epp.plugins import external
from epp.scheduling.api import Plugin


def registry() -> Mapping[str, type[Plugin]]:
    """Plugin type, as written in the configuration, to the class that implements it."""
    return {**builtin(), **external.registered()}


@functools.cache
def builtin() -> Mapping[str, type[Plugin]]:
    """The plugins of this folder, under all their types."""
    found = sorted(_classes(), key=lambda plugin: plugin.TYPE)
    return {name: plugin for plugin in found for name in (plugin.TYPE, *plugin.ALIASES)}


def _classes() -> Iterator[type[Plugin]]:
    for module in pkgutil.iter_modules(__path__, f"{__name__}."):
        loaded = importlib.import_module(module.name)
        yield from external.defined_in(loaded)
