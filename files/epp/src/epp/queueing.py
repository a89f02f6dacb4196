# SPDX-License-Identifier: GPL-3.0-or-later
"""Wires flow control to the rooms around it. Only what serves imports it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager

from epp import flowcontrol
from epp.config import EndpointPickerConfig
from epp.datalayer import Datastore
from epp.extproc.director import Ticket
from epp.flowcontrol import FlowController, Saturation
from epp.observe import FlowRecorder, FlowView, Recorder, Use
from epp.scheduling import SaturationDetector, Scheduler


def flow_controller(
    cfg: EndpointPickerConfig,
    scheduler: Scheduler,
    datastore: Datastore,
    recorder: Recorder,
    watchdog: AbstractContextManager[None],
) -> FlowController[Ticket] | None:
    """Flow control of one pool, told of all that may let somebody go; None when requests do not wait."""
    if cfg.flow_control is None:
        return None
    detector = scheduler.plugin(cfg.saturation_detector)
    assert isinstance(detector, SaturationDetector)
    saturation = Saturation(detector)
    flows = FlowRecorder(recorder, datastore.pool)
    options = flowcontrol.options(cfg.flow_control, scheduler.plugin)
    controller: FlowController[Ticket] = FlowController(options, datastore, saturation, flows, watchdog)
    flows.view = _view(controller, saturation, datastore)
    datastore.on_observed(lambda endpoint, asked_at: controller.wake())
    datastore.on_added(lambda endpoint: controller.wake())
    return controller


def _view(controller: FlowController[Ticket], saturation: Saturation, datastore: Datastore) -> FlowView:
    core, options = controller.core, controller.core.options

    def bands() -> Mapping[int, Use]:
        return {
            band.priority: Use(band.requests, band.options.max_requests, band.bytes, band.options.max_bytes)
            for band in core.bands
        }

    return FlowView(
        bands=bands,
        whole=lambda: Use(core.requests, options.max_requests, core.bytes, options.max_bytes),
        saturation=lambda: saturation.by_stage(datastore.endpoints()),
        stale=lambda: {saturation.detector: saturation.stale(datastore.endpoints())},
    )
