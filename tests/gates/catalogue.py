# SPDX-License-Identifier: GPL-3.0-or-later
"""Which gates there are, and the commands of each."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from gates import ansible_test, artifact
from gates.environments import CACHE, CORES, PYTHONS, ROOT, environment

# For gates that are about no particular Python: the one of the development environment, which is there.
OWN_PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"


# The importer tells all and refuses little. W503 and E203 are about the formatter's own style, which pycodestyle itself
# does not mind by default (W503), or says that it should not (E203, before a slice's colon).
# It gives up on ansible-lint after two minutes, which a busy machine may need; the gate of that name has all the time.
COMPLAINTS = r"^(ERROR|WARNING): (?!.*: (W503|E203) |Timeout on call to ansible-lint$)"
NOTHING_TESTED = r"^WARNING: All targets skipped"


@dataclass(frozen=True)
class Command:
    """A program, where it runs, and what it finds in its environment."""

    words: tuple[str, ...]
    folder: Path = ROOT
    variables: dict[str, str] = field(default_factory=lambda: dict(os.environ))


@dataclass(frozen=True)
class Gate:
    """A gate passes when all its commands end with 0. ``quick`` ones need nothing but the development environment.

    ``forbidden`` is a regular expression for lines of the output that make it fail as well, for tools that only tell.
    """

    name: str
    commands: Callable[[], Iterable[Command]]
    quick: bool = False
    forbidden: str = ""


def _linter(name: str, *words: str) -> Gate:
    return Gate(name, lambda: [Command(words)], quick=True)


def _ansible_test(core: str, python: str, *words: str) -> Iterable[Command]:
    """ansible-test of one ansible-core on one Python, in an unpacked artifact of its own."""
    place = environment(f"ansible-{core}", python)
    folder = artifact.unpacked(f"{words[0]}-{core}-py{python}", place)
    yield Command(("ansible-test", *words, "--color", "no"), folder, ansible_test.variables(place))


def _sanity(core: str, python: str, *options: str) -> Gate:
    words = ("sanity", *options)
    return Gate(f"sanity-{core}-py{python}", lambda: _ansible_test(core, python, *words), forbidden=NOTHING_TESTED)


def _units(core: str, python: str) -> Gate:
    words = ("units", "--python", python, "--num-workers", "1")
    return Gate(f"units-{core}-py{python}", lambda: _ansible_test(core, python, *words), forbidden=NOTHING_TESTED)


def _importer() -> Iterable[Command]:
    """Galaxy's own import, with the settings of Automation Hub's certified content.

    Its run of ansible-test is left out: it builds a container image for it, and tolerates failures. The gate ``sanity``
    tolerates none.
    """
    place = environment("galaxy-importer", OWN_PYTHON)
    settings = CACHE / "galaxy-importer.cfg"
    checks = ("check_changelog", "check_required_tags", "require_v1_or_greater")
    flags = (*checks, "run_ansible_doc", "run_ansible_lint", "run_flake8")
    settings.write_text("[galaxy-importer]\n" + "".join(f"{flag} = true\n" for flag in flags))
    words = ("python", "-m", "galaxy_importer.main", str(artifact.built()))
    yield Command(words, CACHE, {**ansible_test.variables(place), "GALAXY_IMPORTER_CONFIG": str(settings)})


def _docs() -> Iterable[Command]:
    """The documentation of plugins and roles, with its references to what this collection depends on."""
    place = environment("ansible-2.21", OWN_PYTHON)
    folder = artifact.unpacked("docs", place)
    words = ("antsibull-docs", "lint-collection-docs", "--plugin-docs", "--skip-rstcheck")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}
    variables = {**kept, "ANSIBLE_COLLECTIONS_PATH": str(folder.parents[2])}
    # antsibull-docs may find what the development environment has before the copy, and there git ignores all files.
    variables["ANSIBLE_COLLECTIONS_SCAN_SYS_PATH"] = "false"
    yield Command((*words, "--validate-collection-refs", "dependent", "."), folder, variables)


# The longest first, so that none is left over at the end.
GATES = (
    _sanity("2.21", "3.13"),  # compiles and imports on every Python there is
    _sanity("2.20", "3.12", "--python", "3.12"),
    Gate("galaxy-importer", _importer, forbidden=COMPLAINTS),
    _linter("ansible-lint", "ansible-lint"),
    _linter("mypy", "mypy"),
    _linter("mypy-plugins", "mypy", "--package", "ansible_collections.inferops.cluster.plugins"),
    *(_units(core, python) for core in CORES for python in PYTHONS),
    Gate("antsibull-docs", _docs),
    _linter("reuse", "reuse", "lint", "--lines"),
    _linter("yamllint", "yamllint", "--strict", "."),
    _linter("antsibull-changelog", "antsibull-changelog", "lint"),
    _linter("ruff", "ruff", "check", "."),
    _linter("ruff-format", "ruff", "format", "--check", "."),
)
