# SPDX-License-Identifier: GPL-3.0-or-later
"""disaggregatedset-rollout-screener: prefill and decode of one request belong to one revision during a rollout.

Parameters:
    scope.labelSelector (required): which pods count, as kubectl writes selectors.
    revisionGating.mode (required): sum, max-role or disabled.
    revisionGating.requireRoles.values (also requiredRoles): roles of each of which a revision needs a pod.
    revisionGating.revisionLabelKey, roleLabelKey (those of a DisaggregatedSet): pod labels.
    revisionGating.revisionHeaderName: as a strict selector for the revision, as older configurations write it.
    headerSelectors: entries with name, headerName, labelKey and mode (strict, prefer).
Formula: pods with the same revision and the same values of all strict selectors' labels belong together, and count if
they have every required role. A request gets the endpoints of one such group, chosen at random by its weight: with sum
its pods of the required roles, with max-role those of the role that has the most pods over all groups (of several the
first). A strict selector's header leaves the groups (with disabled: the endpoints) that have its value. Nobody left:
503. Answers have the headers of all selectors, with the labels of the endpoint that was chosen.
Source: llm-d-router screener of the same type. There pods outside of the pool count, too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from epp.datalayer.selector import check_selector
from epp.model import Decision, Endpoint, InferenceRequest
from epp.plugins.label_selector_filter import LabelRequirement
from epp.scheduling.api import Context, ResponseHook, Screener, param

REVISION_LABEL, ROLE_LABEL = "disaggregatedset.x-k8s.io/revision", "disaggregatedset.x-k8s.io/role"
STRICT, PREFER = "strict", "prefer"
SUM, MAX_ROLE, DISABLED = "sum", "max-role", "disabled"
_COMMA = re.compile(r",(?![^(]*\))")
"""Between two requirements of a selector, and not inside of a set."""


@dataclass(frozen=True)
class Scope:
    """Which pods count."""

    label_selector: str

    def __post_init__(self) -> None:
        """A selector that can be read."""
        check_selector(self.label_selector)


@dataclass(frozen=True)
class HeaderSelector:
    """One header that names a label's value."""

    name: str
    header_name: str
    label_key: str
    mode: str = param("", choices=(STRICT, PREFER))

    def __post_init__(self) -> None:
        """All of it is needed."""
        if not (self.name and self.header_name and self.label_key and self.mode):
            raise ValueError("name, headerName, labelKey and mode are needed; write all of them")


@dataclass(frozen=True)
class RequireRoles:
    """Roles that a revision must have."""

    values: tuple[str, ...] = ()


@dataclass(frozen=True)
class RevisionGating:
    """How a revision is chosen."""

    mode: str = param("", choices=(SUM, MAX_ROLE, DISABLED))
    require_roles: RequireRoles = param(RequireRoles)
    required_roles: tuple[str, ...] = ()
    revision_label_key: str = param(REVISION_LABEL)
    role_label_key: str = param(ROLE_LABEL)
    revision_header_name: str = ""

    def __post_init__(self) -> None:
        """Roles where they are needed."""
        if not self.mode:
            raise ValueError(f"mode is missing; it is {SUM}, {MAX_ROLE} or {DISABLED}")
        if self.require_roles.values and self.required_roles:
            raise ValueError("requiredRoles is requireRoles.values' old form, and both are there; remove one")
        if self.mode != DISABLED and not self.roles:
            raise ValueError(f"mode {self.mode} needs roles; name them in requireRoles.values")

    @property
    def roles(self) -> tuple[str, ...]:
        """The required roles."""
        return self.require_roles.values or self.required_roles


@dataclass(frozen=True)
class DisaggregatedSetRolloutScreenerParameters:
    """Parameters of disaggregatedset-rollout-screener."""

    scope: Scope
    revision_gating: RevisionGating
    header_selectors: tuple[HeaderSelector, ...] = param((), doc="headers that name labels")

    @property
    def selectors(self) -> tuple[HeaderSelector, ...]:
        """All of them, the old form of the revision's included."""
        gating = self.revision_gating
        if not gating.revision_header_name:
            return self.header_selectors
        old = HeaderSelector("revision", gating.revision_header_name, gating.revision_label_key, STRICT)
        return (*self.header_selectors, old)


Group = tuple[str, ...]
"""What pods have in common that may work together: the values of some labels, the revision first."""


class DisaggregatedSetRolloutScreener(Screener, ResponseHook):
    """See the module."""

    TYPE = "disaggregatedset-rollout-screener"
    PARAMETERS = DisaggregatedSetRolloutScreenerParameters
    LIMITS = "only pods of the pool count: roles in a pool of their own are not seen"

    def __init__(self, name: str, parameters: DisaggregatedSetRolloutScreenerParameters, context: Context) -> None:
        super().__init__(name, parameters, context)
        gating = parameters.revision_gating
        self._mode, self._roles, self._role_label = gating.mode, gating.roles, gating.role_label_key
        self._scope = requirements(parameters.scope.label_selector)
        self._stamped = [(each.header_name.lower(), each.label_key) for each in parameters.selectors]
        self._strict = [each for each in parameters.selectors if each.mode == STRICT]
        others = sorted({each.label_key for each in self._strict} - {gating.revision_label_key})
        self._labels = (gating.revision_label_key, *others)
        self._context = context
        self._seen: tuple[Endpoint, ...] | None = None
        self._weights: dict[Group, int] = {}

    def screen(self, request: InferenceRequest, endpoints: list[Endpoint]) -> list[Endpoint]:
        """See the module."""
        wanted = [(each, request.headers.get(each.header_name.lower(), "")) for each in self._strict]
        for selector, value in wanted:
            if value and not any(each.labels.get(selector.label_key) == value for each in endpoints):
                self._context.recorder.strict_header_missed(self.TYPE, self.name, selector.name)
                return []
        given = {selector.label_key: value for selector, value in wanted if value}
        if self._mode == DISABLED:
            return [each for each in endpoints if all(each.labels.get(key) == given[key] for key in given)]
        groups = [self._group(each) for each in endpoints]
        chosen = self._choose(given, set(groups))
        if chosen is None:
            return []
        return [each for each, group in zip(endpoints, groups, strict=True) if group == chosen]

    def _choose(self, given: Mapping[str, str], here: set[Group | None]) -> Group | None:
        """One of the groups that have the given labels, and candidates; None when no complete one has."""
        endpoints = self._context.datastore.endpoints()
        if endpoints is not self._seen:
            self._seen = endpoints
            self._count(endpoints)
        places = [(self._labels.index(key), value) for key, value in given.items()]
        fit = [each for each in self._weights if each in here and all(each[at] == value for at, value in places)]
        if len(fit) < 2:
            return fit[0] if fit else None
        return self._context.rng.choices(fit, [self._weights[group] for group in fit])[0]

    def _count(self, endpoints: Sequence[Endpoint]) -> None:
        """The weights of all groups that are complete. A pod counts once, whatever its ports."""
        counts: dict[Group, dict[str, set[tuple[str, str]]]] = {}
        revisions: set[str] = set()
        for endpoint in endpoints:
            role = endpoint.labels.get(self._role_label)
            if not role or not all(each.holds(endpoint.labels) for each in self._scope):
                continue
            if revision := endpoint.labels.get(self._labels[0]):
                revisions.add(revision)
            if group := self._group(endpoint):
                counts.setdefault(group, {}).setdefault(role, set()).add((endpoint.namespace, endpoint.pod))
        pods = {group: [len(roles.get(role, ())) for role in self._roles] for group, roles in counts.items()}
        covered = {group: numbers for group, numbers in pods.items() if all(numbers)}
        self._weights = {group: sum(numbers) for group, numbers in covered.items()}
        if self._mode == MAX_ROLE and covered:
            totals = [sum(numbers[place] for numbers in covered.values()) for place in range(len(self._roles))]
            largest = totals.index(max(totals))
            self._weights = {group: numbers[largest] for group, numbers in covered.items()}
        total = sum(self._weights.values())
        shares = dict.fromkeys(sorted(revisions), 0.0)
        for group, weight in self._weights.items():
            shares[group[0]] += weight / total
        self._context.recorder.revision_shares(self.TYPE, self.name, self._mode, shares)

    def _group(self, endpoint: Endpoint) -> Group | None:
        """What an endpoint belongs to; None if it lacks a label."""
        values = tuple([endpoint.labels.get(key, "") for key in self._labels])
        return values if all(values) else None

    def response_received(
        self, served: str, request: InferenceRequest | None, decision: Decision | None
    ) -> Mapping[str, str]:
        """The labels of the endpoint that was chosen."""
        labels = decision.endpoints[0].labels if decision is not None else {}
        return {header: labels[key] for header, key in self._stamped if labels.get(key)}


def requirements(selector: str) -> list[LabelRequirement]:
    """A label selector as kubectl takes it, taken apart. It has been checked."""
    found = []
    for part in _COMMA.split(selector):
        key, operator, values = _taken_apart(part.strip())
        found.append(LabelRequirement(key, operator, values))
    return found


def _taken_apart(text: str) -> tuple[str, str, tuple[str, ...]]:
    in_set = re.fullmatch(r"(\S+)\s+(in|notin)\s*\((.*)\)", text)
    if in_set:
        operator = {"in": "In", "notin": "NotIn"}[in_set[2]]
        return in_set[1], operator, tuple(value.strip() for value in in_set[3].split(","))
    equal = re.fullmatch(r"(\S+?)\s*(==|=|!=)\s*(\S*)", text)
    if equal:
        return equal[1], "NotIn" if equal[2] == "!=" else "In", (equal[3],)
    return text.lstrip("! "), "DoesNotExist" if text.startswith("!") else "Exists", ()
