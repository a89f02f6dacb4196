# SPDX-License-Identifier: GPL-3.0-or-later
"""Endpoints from a file: the EPP without Kubernetes.

The file is YAML, ``endpoints: [{name, address, port, labels?, namespace?}]``. It is read again when it changes; a file
that cannot be used leaves the endpoints as they are.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from epp.datalayer.store import Datastore
from epp.model import Endpoint

log = logging.getLogger(__name__)

_FIELDS = {"name", "address", "port", "labels", "namespace"}


class EndpointsFileError(ValueError):
    """A file of endpoints that cannot be used; the text names file, entry and field."""


class EndpointsFile:
    """Keeps a datastore equal to a file."""

    def __init__(self, datastore: Datastore, path: str | Path, interval: float = 0.5, watch: bool = True) -> None:
        """``interval`` is the seconds between two looks at the file's modification time; without ``watch`` the file
        is read once."""
        self._watch = watch
        self._datastore = datastore
        self._path = Path(path)
        self._interval = interval
        self._stamp: tuple[int, int, int] | None = None
        self._problem = ""

    def problem(self) -> str:
        """Why the file as it is now is not in use; empty when it is."""
        return self._problem

    def load(self) -> None:
        """Read the file into the datastore now. Raises EndpointsFileError; call it at start, to refuse a bad file."""
        stamp = self._look()
        try:
            text = self._path.read_text(encoding="utf-8")
        except OSError as error:
            raise EndpointsFileError(f"{self._path}: cannot be read: {error.strerror or error}") from error
        except UnicodeDecodeError as error:
            raise EndpointsFileError(f"{self._path}: is not UTF-8 text: {error}") from error
        self._datastore.replace(parse(text, str(self._path)))
        self._stamp = stamp

    async def run(self) -> None:
        """Follow the file until cancelled."""
        while not self._watch:
            await asyncio.sleep(3600)
        while True:
            if self._look() != self._stamp or not self._datastore.synced:
                self._reload()
            await asyncio.sleep(self._interval)

    def _look(self) -> tuple[int, int, int] | None:
        """What changes when the file changes; None while there is no file."""
        try:
            status = self._path.stat()
        except OSError:
            return None
        return (status.st_mtime_ns, status.st_size, status.st_ino)

    def _reload(self) -> None:
        stamp = self._look()
        try:
            self.load()
        except EndpointsFileError as error:
            if str(error) != self._problem:
                log.error("endpoints file not used, the endpoints stay as they are: %s", error)
            self._problem = str(error)
            self._stamp = stamp
            return
        self._problem = ""
        log.info("endpoints read from %s: %d", self._path, len(self._datastore.endpoints()))


def parse(text: str, source: str) -> list[Endpoint]:
    """Endpoints from YAML text; ``source`` names it in errors. Raises EndpointsFileError."""
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise EndpointsFileError(f"{source}: is not YAML: {error}") from error
    entries = document.get("endpoints") if isinstance(document, dict) else None
    if not isinstance(document, dict) or set(document) != {"endpoints"} or not isinstance(entries, list):
        raise EndpointsFileError(f"{source}: must be a map with one field, endpoints, a list (may be empty: [])")
    endpoints = [_entry(entry, f"{source}: endpoints[{index}]") for index, entry in enumerate(entries)]
    for attribute in ("name", "hostport"):
        seen: set[str] = set()
        for index, endpoint in enumerate(endpoints):
            value = getattr(endpoint, attribute)
            if value in seen:
                raise EndpointsFileError(f"{source}: endpoints[{index}]: {value} is there twice; remove one")
            seen.add(value)
    return endpoints


def _entry(entry: Any, where: str) -> Endpoint:
    """One endpoint of the list; ``where`` names it in errors."""
    if not isinstance(entry, dict):
        raise EndpointsFileError(f"{where}: must be a map with name, address and port")
    unknown = [str(key) for key in entry if key not in _FIELDS]
    if unknown:
        raise EndpointsFileError(f"{where}: unknown field {unknown[0]!r}; known are {', '.join(sorted(_FIELDS))}")
    name, address, port = entry.get("name"), entry.get("address"), entry.get("port")
    if not isinstance(name, str) or not name:
        raise EndpointsFileError(f"{where}.name: must be a non-empty string")
    try:
        address = str(ipaddress.ip_address(address if isinstance(address, str) else ""))
    except ValueError:
        raise EndpointsFileError(f"{where}.address: must be an IP address, not {entry.get('address')!r}") from None
    if isinstance(port, str) and port.isdecimal() and len(port) <= 5:
        port = int(port)  # the reference wants its ports in quotes
    if not isinstance(port, int) or isinstance(port, bool) or not 1 <= port <= 65535:
        raise EndpointsFileError(f"{where}.port: must be a number from 1 to 65535, not {port!r}")
    namespace = entry.get("namespace", "default")
    if not isinstance(namespace, str):
        raise EndpointsFileError(f"{where}.namespace: must be a string")
    return Endpoint(name, namespace, name, address, port, labels=_labels(entry.get("labels"), where))


def _labels(labels: Any, where: str) -> Mapping[str, str]:
    if labels is None:
        return {}
    if not isinstance(labels, dict) or not all(isinstance(k, str) and isinstance(v, str) for k, v in labels.items()):
        raise EndpointsFileError(f"{where}.labels: must be a map of strings; quote numbers and booleans")
    return labels
