# SPDX-License-Identifier: GPL-3.0-or-later
"""The end of a picker, and the change of leaders."""

from __future__ import annotations

import contextlib
import signal
import socket
from collections.abc import Iterator

import pytest

from conformance.kit import wire
from conformance.kit.grpc import Ended
from conformance.kit.picker import Picker
from conformance.kit.talk import Routed, route, talk
from conformance.kit.wait import eventually
from conformance.kit.world import Pool, World

EXT_PROC = "envoy.service.ext_proc.v3.ExternalProcessor"
LATER = "v1.3 has no such flag"
READY = ["", "readiness", EXT_PROC]


class TestEnd:
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
    def test_idle(self, around: World, pool: Pool, number: signal.Signals) -> None:
        """A signal ends an idle picker with status 0, and its ports are free again."""
        with around.picker(pool.name) as found:
            route(found)
            found.disconnect()
            found.process.signal(number)
            assert found.process.wait() == 0
            for port in (found.ports.grpc, found.ports.health, found.ports.metrics):
                with pytest.raises(OSError), contextlib.closing(socket.create_connection(("127.0.0.1", port), 1)):
                    pass

    @pytest.mark.differs(go="v1.3 cuts what is in flight")
    def test_an_answer_is_finished(self, around: World, pool: Pool) -> None:
        """A request that is in flight gets its answer to the end."""
        with around.picker(pool.name) as found, talk(found) as one:
            one.ask()
            one.stream.send(wire.response_headers(content_type=wire.EVENTS))
            one.stream.receive()
            found.process.signal()
            for number in range(5):
                one.stream.send(wire.response_body(b"data: {}\n\n", end=number == 4))
                assert wire.piece(one.stream.receive()) == (b"data: {}\n\n", number == 4)
            assert one.finish() == "OK"
            assert found.process.wait() == 0

    @pytest.mark.differs(go="v1.3 takes no new requests after SIGTERM, though Envoy may not know yet")
    def test_requests_that_come_late(self, around: World, pool: Pool) -> None:
        """While it drains it serves what comes in spite of NOT_SERVING."""
        with around.picker(pool.name) as found, talk(found) as one, talk(found) as late:
            one.ask()
            found.process.signal()
            eventually(lambda: found.health.check("") != "SERVING")
            assert isinstance(late.ask(), Routed)
            late.answer(b"{}")
            late.finish()
            one.answer(b"{}")
            one.finish()
            assert found.process.wait() == 0

    @pytest.mark.differs(go=LATER)
    def test_it_does_not_wait_for_ever(self, around: World, pool: Pool) -> None:
        """After --drain-timeout open streams are ended, and the picker with status 0."""
        with around.picker(pool.name, "--drain-timeout=500ms") as found, talk(found) as one:
            one.ask()
            found.process.signal()
            assert found.process.wait() == 0
            with pytest.raises(Ended):
                one.stream.receive()


@contextlib.contextmanager
def two(around: World, name: str) -> Iterator[tuple[Picker, Picker]]:
    """Two pickers of one pool, with leader election; the first is the leader."""
    flag = "--ha-enable-leader-election=true"
    with around.pool(name, engines=1), around.picker(name, flag) as leader:
        with around.picker(name, flag, serving=False) as follower:
            yield leader, follower


@pytest.fixture(scope="module")
def pair(around: World) -> Iterator[tuple[Picker, Picker]]:
    """Two that stay."""
    with two(around, "led") as found:
        yield found


class TestLeader:
    """--ha-enable-leader-election: one picker of a pool is ready."""

    @pytest.mark.parametrize("name", READY)
    def test_the_leader_is_ready(self, pair: tuple[Picker, Picker], name: str) -> None:
        """By every name that asks for readiness."""
        assert pair[0].health.check(name) == "SERVING"

    @pytest.mark.parametrize("name", READY)
    def test_the_follower_is_not(self, pair: tuple[Picker, Picker], name: str) -> None:
        """By none of them."""
        assert pair[1].health.check(name) == "NOT_SERVING"

    def test_both_are_alive(self, pair: tuple[Picker, Picker]) -> None:
        """Both are alive."""
        assert [each.health.check("liveness") for each in pair] == ["SERVING", "SERVING"]

    def test_an_unknown_name(self, pair: tuple[Picker, Picker]) -> None:
        """With leader election an unknown name is unknown."""
        assert pair[0].health.check("anything") == "SERVICE_UNKNOWN"

    def test_list(self, pair: tuple[Picker, Picker]) -> None:
        """List has the three names, and tells leader and follower apart."""
        for found, ready in zip(pair, ("SERVING", "NOT_SERVING"), strict=True):
            listed = found.health.list()
            assert isinstance(listed, dict)
            assert listed[EXT_PROC] == listed["readiness"] == ready
            assert listed["liveness"] == "SERVING"

    @pytest.mark.differs(go="v1.3's followers do not know the pods")
    def test_the_follower_serves(self, pair: tuple[Picker, Picker]) -> None:
        """What comes to the follower all the same is served: it knows the pods, too."""
        assert eventually(lambda: route(pair[1])).destination

    def test_lease(self, around: World, pair: tuple[Picker, Picker]) -> None:
        """The Lease is in the pool's namespace, and is named after both."""
        leases = around.api.call("GET", around.space.of("coordination.k8s.io", "v1", "leases"))["items"]
        names = [each["metadata"]["name"] for each in leases]
        assert any(name.startswith(f"epp-{around.space.name}-led.") for name in names), names

    def test_the_leader_goes(self, around: World) -> None:
        """When the leader ends, the follower takes over without waiting for the Lease to run out."""
        with two(around, "orphaned") as (leader, follower):
            leader.process.signal()
            assert leader.process.wait() == 0
            eventually(lambda: follower.health.check("readiness") == "SERVING")
            assert eventually(lambda: route(follower)).destination
