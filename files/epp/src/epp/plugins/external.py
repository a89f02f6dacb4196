# SPDX-License-Identifier: GPL-3.0-or-later
"""Plugins of one's own: from files and folders (``--plugin-path``), and from installed packages (entry points).

A file is a Python module with one or more plugin classes. A folder stands for the ``*.py`` files in it, which is what a
mounted ConfigMap looks like (its entries are links into ``..data``; names that begin with a dot or an underscore are
passed over). An entry point of the group ``epp.plugins`` names a plugin class, or a module with some.
Whoever names a type that exists replaces it.
"""

from __future__ import annotations

import importlib.machinery
import importlib.metadata
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from epp.scheduling.api import Plugin

GROUP = "epp.plugins"
_registered: dict[str, type[Plugin]] = {}
_sources: dict[str, str] = {}


class PluginLoadError(ValueError):
    """Somebody's plugin cannot be loaded; the text has the file and, where its code failed, its traceback."""


def registered() -> Mapping[str, type[Plugin]]:
    """Plugins of one's own that were loaded, by type."""
    return _registered


def source(plugin_type: str) -> str:
    """Where a plugin of one's own came from: a file, or the name of an entry point; empty for others."""
    return _sources.get(plugin_type, "")


def load_entry_points() -> None:
    """Load what installed packages offer. Raises PluginLoadError."""
    for entry in importlib.metadata.entry_points(group=GROUP):
        where = f"entry point {entry.name} of {GROUP} ({entry.value})"
        try:
            loaded = entry.load()
        except Exception as error:
            raise PluginLoadError(f"{where}: cannot be loaded:\n{_own_traceback(error, '')}") from error
        _register(loaded, where)


def load_path(path: str) -> None:
    """Load a file, or the files of a folder. Raises PluginLoadError."""
    place = Path(path)
    if place.is_dir():
        files = sorted(file for file in place.glob("*.py") if file.name[0] not in "._" and file.is_file())
        if not files:
            raise PluginLoadError(f"{path}: there is no .py file in this folder; put a plugin there")
    elif place.is_file():
        files = [place]
    else:
        raise PluginLoadError(f"{path}: no such file or folder; --plugin-path takes a .py file, or a folder of them")
    for file in files:
        _register(_module(file), str(file))


def defined_in(module: ModuleType) -> Iterator[type[Plugin]]:
    """The plugin classes that a module defines itself."""
    for value in vars(module).values():
        if inspect.isclass(value) and issubclass(value, Plugin) and value.TYPE and value.__module__ == module.__name__:
            yield value


def _module(file: Path) -> ModuleType:
    name = f"epp_plugin_{file.stem}_{abs(hash(str(file.absolute()))):x}"
    loader = importlib.machinery.SourceFileLoader(name, str(file))
    spec = importlib.util.spec_from_loader(name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    try:
        loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise PluginLoadError(f"{file}: cannot be loaded:\n{_own_traceback(error, str(file))}") from error
    return module


def _register(loaded: Any, where: str) -> None:
    if isinstance(loaded, ModuleType):
        classes = list(defined_in(loaded))
    else:
        classes = [loaded] if inspect.isclass(loaded) and issubclass(loaded, Plugin) and loaded.TYPE else []
    if not classes:
        raise PluginLoadError(
            f"{where}: has no plugin: a class that inherits from a kind in epp.scheduling, with a TYPE"
        )
    for plugin in classes:
        missing = sorted(getattr(plugin, "__abstractmethods__", ()))
        if missing:
            raise PluginLoadError(f"{where}: {plugin.__name__} lacks {', '.join(missing)}; write it")
        other = _sources.get(plugin.TYPE)
        if other is not None and other != where:
            raise PluginLoadError(f"{where}: the type {plugin.TYPE!r} comes from {other}, too; rename one")
        _registered[plugin.TYPE] = plugin
        _sources[plugin.TYPE] = where


def _own_traceback(error: Exception, file: str) -> str:
    """The traceback from the user's file on: how we came there is nobody's business."""
    shown = traceback.TracebackException.from_exception(error)
    if file:
        frames = list(shown.stack)
        first = next((index for index, frame in enumerate(frames) if frame.filename == file), len(frames))
        shown.stack = traceback.StackSummary.from_list(frames[first:])
    shown.__context__ = shown.__cause__ = None
    return "".join(shown.format()).rstrip()
