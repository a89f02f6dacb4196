# SPDX-License-Identifier: GPL-3.0-or-later
"""Plugins that turn requests away: with which status, after what, and what their own failures cost."""

from __future__ import annotations

from typing import ClassVar

import pytest

from epp import plugins
from epp.config import EndpointPickerConfig, PluginSpec, ProfileSpec
from epp.config.schema import ProfilePlugin
from epp.datalayer import Datastore
from epp.model import Endpoint, InferenceRequest, Rejection
from epp.observe import PoolRecorder, Recorder
from epp.scheduling import Admitter, HeaderProcessor, Producer, Scheduler, Screener


class Gate(HeaderProcessor, Screener, Admitter, Producer):
    """Does at the place of ``x-place`` what ``x-do`` says."""

    TYPE = "gate"
    produced: ClassVar[list[str]] = []
    """The candidates that the producers saw last."""

    def act(self, request: InferenceRequest, place: str) -> str:
        if request.headers.get("x-place") != place:
            return ""
        if request.headers["x-do"] == "raise":
            raise RuntimeError("on purpose")
        raise Rejection(403, "Forbidden", f"{place} says so")

    def request_headers(self, request: InferenceRequest) -> None:
        self.act(request, "headers")

    def screen(self, request: InferenceRequest, endpoints: list[Endpoint]) -> list[Endpoint]:
        self.act(request, "screener")
        allowed = request.headers.get("x-allow")
        return endpoints if allowed is None else [each for each in endpoints if each.name in allowed]

    def produce(self, request: InferenceRequest, endpoints: list[Endpoint]) -> None:
        Gate.produced = [each.name for each in endpoints]

    def admit(self, request: InferenceRequest, endpoints: list[Endpoint]) -> str:
        self.act(request, "admitter")
        return request.headers.get("x-deny", "")


@pytest.fixture
def datastore() -> Datastore:
    made = Datastore("pool")
    made.replace([Endpoint(f"e{i}", "ns", f"p{i}", f"10.0.0.{i + 1}", 8000) for i in range(3)])
    return made


@pytest.fixture
def scheduler(datastore: Datastore) -> Scheduler:
    registry = {**plugins.registry(), "gate": Gate}
    names = ("gate", "random-picker", "single-profile-handler", "utilization-detector")
    cfg = EndpointPickerConfig(
        plugins=tuple(PluginSpec(name, name, registry[name].PARAMETERS()) for name in names),
        profiles=(ProfileSpec("default", (ProfilePlugin("random-picker", 1.0),)),),
        profile_handler="single-profile-handler",
        saturation_detector="utilization-detector",
    )
    return Scheduler.from_config(cfg, registry, datastore, PoolRecorder(Recorder(), "pool"), 1)


def play(scheduler: Scheduler, datastore: Datastore, **headers: str) -> str:
    """One request from its headers to its endpoint's name."""
    asked = InferenceRequest("id", {name.replace("_", "-"): value for name, value in headers.items()}, model="m")
    scheduler.request_headers(asked)
    return scheduler.schedule(asked, datastore.endpoints()).endpoints[0].name


@pytest.mark.parametrize("place", ["headers", "screener", "admitter"])
def test_with_a_status_of_its_own(scheduler: Scheduler, datastore: Datastore, place: str) -> None:
    with pytest.raises(Rejection) as refused:
        play(scheduler, datastore, x_place=place, x_do="refuse")
    assert refused.value.status == 403
    assert refused.value.body() == f"inference error: Forbidden - {place} says so"


@pytest.mark.parametrize("place", ["headers", "screener", "admitter"])
def test_one_that_fails_lets_the_request_pass(
    scheduler: Scheduler, datastore: Datastore, caplog: pytest.LogCaptureFixture, place: str
) -> None:
    assert play(scheduler, datastore, x_place=place, x_do="raise")
    assert "RuntimeError: on purpose" in caplog.text


def test_an_admitter_with_words_alone(scheduler: Scheduler, datastore: Datastore) -> None:
    with pytest.raises(Rejection, match="request cannot be admitted: not now") as refused:
        play(scheduler, datastore, x_deny="not now")
    assert (refused.value.status, refused.value.reason) == (429, "rejected-saturated")


def test_what_screeners_take_away_is_no_candidate(scheduler: Scheduler, datastore: Datastore) -> None:
    assert {play(scheduler, datastore, x_allow="e1 e2") for _ in range(20)} == {"e1", "e2"}
    assert Gate.produced == ["e1", "e2"]


def test_screeners_that_leave_nobody(scheduler: Scheduler, datastore: Datastore) -> None:
    Gate.produced = []
    with pytest.raises(Rejection, match="screeners eliminated all endpoint candidates") as refused:
        play(scheduler, datastore, x_allow="")
    assert (refused.value.status, refused.value.reason) == (503, "rejected-no-endpoints")
    assert Gate.produced == []
