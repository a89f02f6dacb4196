# SPDX-License-Identifier: GPL-3.0-or-later
"""EndpointPickerConfig: its schema, strict loading, defaults, and errors that name the line."""

from __future__ import annotations

from epp.config.environment import gates, with_environment
from epp.config.errors import ConfigError
from epp.config.loader import default, effective, load
from epp.config.schema import EndpointPickerConfig, PluginSpec, ProfileSpec
from epp.config.wiring import models_options, scrape_options

__all__ = [
    "ConfigError",
    "EndpointPickerConfig",
    "PluginSpec",
    "ProfileSpec",
    "default",
    "effective",
    "gates",
    "load",
    "models_options",
    "scrape_options",
    "with_environment",
]
