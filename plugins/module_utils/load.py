# Copyright: (c) 2026, inferops.cluster maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The objects of a set, from mappings, text, files, folders and URLs, checked before any request."""

from __future__ import annotations

import base64
import os
import re
from typing import Any, Dict, Iterable, Iterator, List, Optional, Tuple

from ansible_collections.inferops.cluster.plugins.module_utils.errors import InputError
from ansible_collections.inferops.cluster.plugins.module_utils.yamls import load_documents

Json = Dict[str, Any]

URL_TIMEOUT = 30  # seconds
URL_ATTEMPTS = 3
SUFFIXES = (".yaml", ".yml", ".json")
NAMESPACE = re.compile(r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")
API_VERSION = re.compile(r"^([a-z0-9.-]+/)?v[0-9]+((alpha|beta)[0-9]+)?$")
# Written by the server, so never part of what is wanted; dumped manifests carry them all the same.
SERVER_METADATA = ("creationTimestamp", "generation", "managedFields", "resourceVersion", "selfLink", "uid")


def load_set(objects: Any, sources: Iterable[Any] = (), templates: Iterable[Any] = ()) -> List[Json]:
    """Every object of the set, normalised, in the order given. Raises InputError with all that is wrong at once.

    ``objects``: a mapping, YAML text, or a list of these. ``sources``: paths and URLs, or mappings with the ``path``
    and ``text`` of what has been read already. ``templates``: such mappings; their text may hold no object.
    """
    found: List[Json] = []
    problems: List[str] = []
    for where, item in [*_inline(objects), *_sourced(sources), *_sourced(templates, may_be_empty=True)]:
        try:
            found.extend(_expand(item, where))
        except InputError as error:
            problems.append(str(error))
    if problems:
        raise InputError("\n".join(problems))
    return found


def title(item: Json) -> str:
    """``Kind namespace/name`` as messages name an object."""
    metadata = item.get("metadata") or {}
    namespace = metadata.get("namespace")
    name = metadata.get("name")
    return f"{item.get('kind')} {namespace}/{name}" if namespace else f"{item.get('kind')} {name}"


def key(item: Json) -> Tuple[str, str, str, str]:
    """API group, kind, namespace, name: what makes two manifests the same object."""
    metadata = item["metadata"]
    group = item["apiVersion"].rpartition("/")[0]
    return group, item["kind"], metadata.get("namespace") or "", metadata["name"]


def refuse_duplicates(items: Iterable[Json]) -> None:
    """Raise InputError when two manifests describe the same object: the last one would win silently."""
    seen = set()
    twice = []
    for item in items:
        identity = key(item)
        if identity in seen:
            twice.append(title(item))
        seen.add(identity)
    if twice:
        raise InputError(f"described more than once in the set: {', '.join(sorted(set(twice)))}. Keep one of each")


def _inline(objects: Any) -> Iterator[Tuple[str, Any]]:
    single = not isinstance(objects, list)
    for index, item in enumerate([objects] if single else objects):
        where = "objects" if single else f"objects[{index}]"
        if not isinstance(item, str):
            yield where, item
            continue
        for number, document in load_documents(item, where):
            yield f"{where}, document {number}", document


def _sourced(sources: Iterable[Any], may_be_empty: bool = False) -> Iterator[Tuple[str, Any]]:
    for source in sources:
        for path, text in _texts(source):
            documents = list(load_documents(text, path))
            if not documents and not may_be_empty:
                raise InputError(f"{path} holds no object")
            for number, document in documents:
                yield f"{path}, document {number}", document


def _texts(source: Any) -> Iterator[Tuple[str, str]]:
    """Each path of a source with its text."""
    if isinstance(source, dict):
        yield str(source.get("path")), str(source.get("text"))
    elif not isinstance(source, str):
        raise InputError(f"src: {source!r} is no path or URL but {_type(source)}")
    elif source.startswith(("https://", "http://")):
        yield source, _download(source)
    elif os.path.isdir(os.path.expanduser(source)):
        for path in files_of(os.path.expanduser(source)):
            yield path, _read(path)
    else:
        yield source, _read(source)


def files_of(folder: str, suffixes: Tuple[str, ...] = SUFFIXES) -> List[str]:
    """The manifests in a folder, by name; those of its subfolders are not among them, as with kubectl."""
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise InputError(f"cannot read the folder {folder}: {error.strerror}") from error
    if any(name.startswith("kustomization.") or name == "Kustomization" for name in names):
        raise InputError(
            f"{folder} is made for kustomize: render it first (kubectl kustomize {folder}), and give its output"
        )
    found = [os.path.join(folder, name) for name in names if name.endswith(suffixes) and not name.startswith(".")]
    if not found:
        raise InputError(f"the folder {folder} holds no manifest (*{', *'.join(suffixes)})")
    return found


def _expand(item: Any, where: str) -> List[Json]:
    """The object itself, the items of a ``List``, or the entries of a plain list."""
    if isinstance(item, list):
        return [part for index, entry in enumerate(item) for part in _expand(entry, f"{where}[{index}]")]
    if not isinstance(item, dict):
        raise InputError(f"{where}: an object must be a mapping with apiVersion, kind and metadata, not {_type(item)}")
    if item.get("kind") == "List" and isinstance(item.get("items"), list):
        return [part for index, entry in enumerate(item["items"]) for part in _expand(entry, f"{where}.items[{index}]")]
    _check(item, where)
    return [_normalised(item, where)]


def _check(item: Json, where: str) -> None:
    version, kind, metadata = item.get("apiVersion"), item.get("kind"), item.get("metadata")
    if not isinstance(version, str) or not API_VERSION.match(version):
        raise InputError(f"{where}: apiVersion {version!r} is not of the form v1 or group/v1")
    if not isinstance(kind, str) or not kind:
        raise InputError(f"{where}: kind is missing")
    if not isinstance(metadata, dict):
        raise InputError(f"{where}: {kind} has no metadata")
    name = metadata.get("name")
    if not isinstance(name, str) or not name:
        hint = " (generateName cannot be applied twice with the same result)" if metadata.get("generateName") else ""
        raise InputError(f"{where}: {kind} has no metadata.name{hint}")
    if "/" in name or "%" in name or name in (".", ".."):
        raise InputError(f"{where}: {kind} {name!r} is no valid metadata.name")
    for field in ("spec", "data"):
        if item.get(field) is not None and not isinstance(item[field], dict):
            raise InputError(f"{where}: {field} of {title(item)} must be a mapping, not {_type(item[field])}")
    if version == "v1" and kind in ("ConfigMap", "Secret"):
        _check_strings(item, where)
    namespace = metadata.get("namespace")
    if namespace not in (None, "") and (not isinstance(namespace, str) or not NAMESPACE.match(namespace)):
        raise InputError(f"{where}: {kind} {name} has the invalid namespace {namespace!r}")


def _check_strings(item: Json, where: str) -> None:
    """Values of ConfigMaps and Secrets are strings. Said here because the server's refusal would show a secret."""
    for name, value in (item.get("data") or {}).items():
        place = f"{where}: data.{name} of {title(item)}"
        if not isinstance(value, str):
            raise InputError(f"{place} must be a string, not {_type(value)}: quote it")
        if item["kind"] == "Secret":
            try:
                base64.b64decode(value, validate=True)
            except ValueError as error:
                raise InputError(f"{place} is not base64: encode it, or use stringData") from error


def _normalised(item: Json, where: str) -> Json:
    """A copy without server-written fields, with a Secret's stringData folded into data so that both compare alike."""
    clean = {name: value for name, value in item.items() if name != "status"}
    clean["metadata"] = {name: value for name, value in item["metadata"].items() if name not in SERVER_METADATA}
    if not clean["metadata"].get("namespace"):
        clean["metadata"].pop("namespace", None)
    if clean["kind"] == "Secret" and clean["apiVersion"] == "v1" and "stringData" in clean:
        clean["data"] = {**(clean.get("data") or {}), **_encoded(clean.pop("stringData"), f"{where}: {title(clean)}")}
    return clean


def _encoded(values: Any, where: str) -> Json:
    if not isinstance(values, dict):
        raise InputError(f"{where}: stringData must be a mapping, not {_type(values)}")
    for name, value in values.items():
        if not isinstance(value, str):
            raise InputError(f"{where}: stringData.{name} must be a string, not {_type(value)}: quote it")
    return {name: base64.b64encode(value.encode()).decode() for name, value in values.items()}


def _read(source: str) -> str:
    try:
        with open(os.path.expanduser(source), encoding="utf-8") as handle:
            return handle.read()
    except OSError as error:
        raise InputError(f"cannot read src {source}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"src {source} is not UTF-8 text: {error}") from error


def _download(url: str) -> str:
    # Only here: this import alone takes as long as reading a megabyte of YAML.
    from ansible.module_utils.urls import open_url

    failure: Optional[Exception] = None
    for _attempt in range(URL_ATTEMPTS):
        try:
            with open_url(url, timeout=URL_TIMEOUT, http_agent="inferops.cluster") as response:
                text: str = response.read().decode()
                return text
        except Exception as error:  # open_url raises urllib's, ssl's and its own errors
            failure = error
            if getattr(error, "code", 500) < 500:
                break
    raise InputError(
        f"cannot download src {url}: {failure}. Give the path of a downloaded copy where this machine has no way out"
    )


def _type(value: Any) -> str:
    return "null" if value is None else type(value).__name__
