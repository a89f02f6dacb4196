# SPDX-License-Identifier: GPL-3.0-or-later
"""Which endpoints there are: pods that come and go, pools that change, selectors, several ports, and an API outage."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from functools import partial
from operator import eq
from pathlib import Path
from typing import Any

import pytest
import yaml

from conformance.kit.cluster import NEW, OLD, definition
from conformance.kit.cluster import namespace as other_namespace
from conformance.kit.outage import Outage
from conformance.kit.picker import Picker
from conformance.kit.talk import Routed, ask, destinations, refuse
from conformance.kit.wait import PATIENCE, eventually
from conformance.kit.world import DEFAULT, Pool, World

LATER = "v1.3 does not know it"
NO_FILE = "v1.3 has no such flag; later versions have a plugin for it"


def serves(found: Picker, wanted: set[str]) -> bool:
    """Wait until just these endpoints are used."""
    if not wanted:
        return bool(eventually(lambda: refuse(found).status == 503))
    # Enough requests that one endpoint of three would be missed once in a hundred million times.
    times = 45 if len(wanted) > 1 else 6
    return bool(eventually(lambda: destinations(found, times) == wanted))


@pytest.fixture(scope="module")
def living(around: World) -> Iterator[tuple[Picker, Pool]]:
    """A pool with two pods and its picker; each case leaves both as they were."""
    with around.pool("living", engines=2) as pool, around.picker("living") as found:
        yield found, pool


class TestPods:
    def test_those_that_were_there(self, living: tuple[Picker, Pool]) -> None:
        """Pods that were Ready before the picker started."""
        found, pool = living
        assert serves(found, set(pool.hostports))

    def test_one_comes_and_goes(self, around: World, living: tuple[Picker, Pool]) -> None:
        """A new pod is used, a deleted one is not."""
        found, pool = living
        with around.engines(1) as (engine,):
            around.space.create_pod("living-new", engine.address, pool.labels)
            assert serves(found, {*pool.hostports, engine.hostport})
            around.space.delete_pod("living-new")
            assert serves(found, set(pool.hostports))

    def test_not_ready_and_ready_again(self, around: World, living: tuple[Picker, Pool]) -> None:
        """A pod that is not Ready is not used until it is."""
        found, pool = living
        around.space.pod_status(pool.pod(0), ready=False)
        try:
            assert serves(found, {pool.hostports[1]})
        finally:
            around.space.pod_status(pool.pod(0), ready=True)
        assert serves(found, set(pool.hostports))

    def test_within_a_second(self, around: World, living: tuple[Picker, Pool]) -> None:
        """A pod that turns NotReady, and Ready again, is seen within a second.

        The best of five: a busy machine may hold up some of them, but a picker that asks less often gets none right.
        """
        found, pool = living
        times: dict[bool, list[float]] = {False: [], True: []}
        for ready in (False, True) * 5:
            around.space.pod_status(pool.pod(0), ready=ready)
            began = time.monotonic()
            eventually(lambda: isinstance(ask(found, hint=pool.hostports[:1]), Routed), partial(eq, ready))
            times[ready].append(time.monotonic() - began)
        assert max(min(times[False]), min(times[True])) < 1.0, times

    def test_none_is_ready(self, around: World, living: tuple[Picker, Pool]) -> None:
        """When none is, there is nobody: 503, and 200 again when they are."""
        found, pool = living
        for number in range(2):
            around.space.pod_status(pool.pod(number), ready=False)
        try:
            assert serves(found, set())
        finally:
            for number in range(2):
                around.space.pod_status(pool.pod(number), ready=True)
        assert serves(found, set(pool.hostports))

    def test_it_is_being_deleted(self, around: World, living: tuple[Picker, Pool]) -> None:
        """A pod that is Ready but being deleted is not used."""
        found, pool = living
        with around.engines(1) as (engine,):
            around.space.create_pod("living-held", engine.address, pool.labels)
            around.space.patch_pod("living-held", finalizers=["conformance.test/hold"])
            assert serves(found, {*pool.hostports, engine.hostport})
            around.space.delete_pod("living-held")
            try:
                assert serves(found, set(pool.hostports))
            finally:
                around.space.patch_pod("living-held", finalizers=None)

    def test_its_labels_change(self, around: World, living: tuple[Picker, Pool]) -> None:
        """A pod whose labels do not match any more is not used."""
        found, pool = living
        around.space.patch_pod(pool.pod(1), labels={"pool": "another"})
        try:
            assert serves(found, {pool.hostports[0]})
        finally:
            around.space.patch_pod(pool.pod(1), labels=pool.labels)
        assert serves(found, set(pool.hostports))

    @pytest.mark.differs(go="v1.3 sends requests to a pod without an address")
    def test_without_an_address(self, around: World, living: tuple[Picker, Pool]) -> None:
        """A pod without an address is not used until it has one."""
        found, pool = living
        with around.engines(1) as (engine,):
            around.space.create_pod("living-bare", "", pool.labels)
            try:
                assert serves(found, set(pool.hostports))
                around.space.pod_status("living-bare", ip=engine.address)
                assert serves(found, {*pool.hostports, engine.hostport})
            finally:
                around.space.delete_pod("living-bare")
            assert serves(found, set(pool.hostports))

    def test_its_address_changes(self, around: World, living: tuple[Picker, Pool]) -> None:
        """A pod that comes back with another address is used, and read, there."""
        found, pool = living
        with around.engines(1) as (engine,):
            around.space.pod_status(pool.pod(0), ip=engine.address)
            try:
                assert serves(found, {engine.hostport, pool.hostports[1]})
                engine.show(waiting=50)
                assert serves(found, {pool.hostports[1]})
            finally:
                around.space.pod_status(pool.pod(0), ip=pool.engines[0].address)
        assert serves(found, set(pool.hostports))

    def test_another_namespace(self, around: World, living: tuple[Picker, Pool]) -> None:
        """Pods of another namespace are not the pool's."""
        found, pool = living
        with other_namespace(around.api) as other, around.engines(1) as (engine,):
            other.create_pod("stranger", engine.address, pool.labels)
            assert engine.hostport not in destinations(found, 20)
            other.delete_pod("stranger")


class TestPool:
    def test_its_selector_changes(self, around: World, living: tuple[Picker, Pool]) -> None:
        """Another selector, other pods."""
        found, pool = living
        around.space.patch_pod(pool.pod(0), labels={"also": "this"})
        around.space.patch(NEW, "v1", "InferencePool", "living", {"selector": {"matchLabels": {"also": "this"}}})
        try:
            assert serves(found, {pool.hostports[0]})
        finally:
            spec = {"selector": {"matchLabels": {"also": None, **pool.labels}}}
            around.space.patch(NEW, "v1", "InferencePool", "living", spec)
            around.space.patch_pod(pool.pod(0), labels={"also": None})
        assert serves(found, set(pool.hostports))

    @pytest.mark.differs(go="v1.3 goes on with the old port until the pods change")
    def test_its_port_changes(self, around: World, living: tuple[Picker, Pool]) -> None:
        """Another target port, other endpoints."""
        found, pool = living
        around.space.patch(NEW, "v1", "InferencePool", "living", {"targetPorts": [{"number": 8888}]})
        try:
            assert serves(found, {f"{engine.address}:8888" for engine in pool.engines})
        finally:
            around.space.patch(NEW, "v1", "InferencePool", "living", {"targetPorts": [{"number": 8000}]})
        assert serves(found, set(pool.hostports))

    def test_it_goes_and_comes(self, around: World, living: tuple[Picker, Pool]) -> None:
        """Without its pool the picker has nobody; with it everybody is back."""
        found, pool = living
        around.space.delete(NEW, "v1", "InferencePool", "living")
        try:
            eventually(lambda: refuse(found).status in (500, 503))
        finally:
            around.space.create_pool("living", pool.labels, pool.ports)
        assert serves(found, set(pool.hostports))

    def test_another_one_is_none_of_its_business(self, around: World, living: tuple[Picker, Pool]) -> None:
        """A second pool in the namespace changes nothing."""
        found, pool = living
        with around.pool("bystander", engines=1) as bystander:
            assert bystander.hostports[0] not in destinations(found, 20)
            assert serves(found, set(pool.hostports))

    def test_older_version(self, around: World) -> None:
        """--pool-group=inference.networking.x-k8s.io: an InferencePool v1alpha2."""
        spec: dict[str, Any] = {
            "selector": {"pool": "older"},
            "targetPortNumber": 8000,
            "extensionRef": {"name": "picker", "portNumber": 9002},
        }
        with definition(around.api, OLD, "v1alpha2", "InferencePool"), around.pool("older", pool=False) as pool:
            around.space.create(OLD, "v1alpha2", "InferencePool", "older", spec)
            try:
                with around.picker("older", f"--pool-group={OLD}") as found:
                    assert serves(found, set(pool.hostports))
            finally:
                around.space.delete(OLD, "v1alpha2", "InferencePool", "older")


@pytest.fixture(scope="module")
def ported(around: World) -> Iterator[tuple[Picker, Pool]]:
    """Two pods with two ports each."""
    with around.pool("ranks", engines=2, ports=(8000, 8001)) as pool, around.picker("ranks") as found:
        yield found, pool


class TestPorts:
    """Several target ports: data-parallel ranks in a pod."""

    def test_each_is_an_endpoint(self, ported: tuple[Picker, Pool]) -> None:
        """Every port of every pod is used."""
        found, pool = ported
        assert serves(found, set(pool.hostports))

    def test_each_has_its_figures(self, ported: tuple[Picker, Pool]) -> None:
        """The metrics of a port are those of its rank."""
        found, pool = ported
        engine = pool.engines[1]
        for other in pool.engines:
            other.show(waiting=30)
        engine.by_port[8001] = type(engine.gauges)(waiting=0)
        try:
            assert serves(found, {f"{engine.address}:8001"})
        finally:
            pool.reset()

    def test_their_names(self, ported: tuple[Picker, Pool]) -> None:
        """In the metrics they are the pod's name with the rank."""
        found, pool = ported
        name = "inference_pool_per_pod_queue_size"
        wanted = {f"{pool.pod(pod)}-rank-{rank}" for pod in range(2) for rank in range(2)}
        eventually(lambda: {each.labels["model_server_pod"] for each in found.metrics().family(name).samples} == wanted)

    @pytest.mark.differs(go=LATER)
    @pytest.mark.parametrize(
        "annotation", ["llm-d.ai/active-ports", "inference.networking.k8s.io/active-ports"], ids=["new", "old"]
    )
    def test_active_ports(self, around: World, ported: tuple[Picker, Pool], annotation: str) -> None:
        """An annotation of the pod says which of the ports are in use."""
        found, pool = ported
        around.space.patch_pod(pool.pod(0), annotations={annotation: "8001"})
        try:
            assert serves(found, {each for each in pool.hostports if each != f"{pool.engines[0].address}:8000"})
        finally:
            around.space.patch_pod(pool.pod(0), annotations={annotation: None})
        assert serves(found, set(pool.hostports))


class TestSelector:
    """--endpoint-selector: pods without a pool."""

    @contextlib.contextmanager
    def picker(self, around: World, selector: str, ports: str = "8000") -> Iterator[Picker]:
        """A picker with a selector."""
        flags = [f"--endpoint-selector={selector}", f"--endpoint-target-ports={ports}", "--secure-serving=false"]
        flags += [f"--pool-namespace={around.space.name}", "--metrics-endpoint-auth=false", "--tracing=false"]
        with around.raw(*flags, f"--config-text={DEFAULT}") as found:
            yield found

    def test_equality(self, around: World) -> None:
        """key=value."""
        with around.pool("chosen", pool=False) as pool, self.picker(around, "pool=chosen") as found:
            assert serves(found, set(pool.hostports))

    def test_two_conditions(self, around: World) -> None:
        """key=value,key=value: both must be true."""
        with around.pool("both", pool=False) as pool:
            around.space.patch_pod(pool.pod(0), labels={"tier": "gold"})
            with self.picker(around, "pool=both,tier=gold") as found:
                assert serves(found, {pool.hostports[0]})

    @pytest.mark.differs(go="v1.3 takes key=value only")
    @pytest.mark.parametrize(
        ("selector", "wanted"),
        [
            ("pool in (sets,other)", {0, 1, 2}),
            ("pool=sets,tier notin (gold)", {1, 2}),
            ("pool=sets,tier", {0, 1}),
            ("pool=sets,!tier", {2}),
            ("pool=sets,tier!=silver", {0, 2}),
        ],
    )
    def test_sets(self, around: World, selector: str, wanted: set[int]) -> None:
        """The whole syntax of label selectors."""
        with around.pool("sets", pool=False) as pool:
            around.space.patch_pod(pool.pod(0), labels={"tier": "gold"})
            around.space.patch_pod(pool.pod(1), labels={"tier": "silver"})
            with self.picker(around, selector) as found:
                assert serves(found, {pool.hostports[number] for number in wanted})

    def test_two_ports(self, around: World) -> None:
        """Several target ports."""
        with around.pool("twice", engines=1, ports=(8000, 8001), pool=False) as pool:
            with self.picker(around, "pool=twice", "8000,8001") as found:
                assert serves(found, set(pool.hostports))

    def test_changes(self, around: World) -> None:
        """Pods come and go here, too."""
        with around.pool("moving", engines=2, pool=False) as pool, self.picker(around, "pool=moving") as found:
            assert serves(found, set(pool.hostports))
            around.space.pod_status(pool.pod(0), ready=False)
            assert serves(found, {pool.hostports[1]})


def write_file(file: Path, pool: Pool, hostports: list[str]) -> None:
    """An endpoints file, replaced in one step."""
    entries = []
    for number, each in enumerate(hostports):
        address, _, port = each.partition(":")
        entries.append({"name": pool.pod(number), "address": address, "port": int(port)})
    fresh = file.with_suffix(".new")
    fresh.write_text(yaml.safe_dump({"endpoints": entries}))
    fresh.replace(file)


@pytest.mark.differs(go=NO_FILE)
class TestFile:
    """--endpoints-file: endpoints without Kubernetes."""

    @contextlib.contextmanager
    def picker(self, around: World, file: Path) -> Iterator[Picker]:
        """A picker with a file, and no cluster in sight."""
        flags = ["--secure-serving=false", "--metrics-endpoint-auth=false", f"--config-text={DEFAULT}"]
        environment = {"KUBECONFIG": "/no/such/file"}
        with around.raw(f"--endpoints-file={file}", *flags, environment=environment) as found:
            yield found

    def test_it_is_read(self, around: World, pool: Pool, tmp_path: Path) -> None:
        """Its endpoints are used; they are read again when the file changes, and kept when it breaks."""
        file = tmp_path / "endpoints.yaml"
        write_file(file, pool, pool.hostports[:2])
        with self.picker(around, file) as found:
            assert serves(found, set(pool.hostports[:2]))
            write_file(file, pool, pool.hostports[2:])
            assert serves(found, set(pool.hostports[2:]))
            file.write_text("endpoints: [")
            assert serves(found, set(pool.hostports[2:]))
            write_file(file, pool, pool.hostports)
            assert serves(found, set(pool.hostports))

    def test_it_is_empty(self, around: World, pool: Pool, tmp_path: Path) -> None:
        """No endpoints: 503."""
        file = tmp_path / "endpoints.yaml"
        write_file(file, pool, [])
        with self.picker(around, file) as found:
            assert refuse(found).status == 503

    @pytest.mark.parametrize("text", [None, "endpoints: [{name: a}]", "pods: []", "endpoints: ["])
    def test_it_is_wrong(self, around: World, tmp_path: Path, text: str | None) -> None:
        """A file that cannot be used at the start: the picker does not start, and names the file."""
        file = tmp_path / "endpoints.yaml"
        if text is not None:
            file.write_text(text)
        assert f"{file}:" in around.refusal(f"--endpoints-file={file}", "--metrics-endpoint-auth=false")


class TestOutage:
    """The API server goes away and comes back."""

    def test_it_serves_on(self, around: World, tmp_path: Path) -> None:
        """The last known endpoints are used; what changed in between is seen afterwards."""
        with (
            Outage(around.kubeconfig, tmp_path) as outage,
            around.pool("outage", engines=2) as pool,
            around.picker("outage", environment={"KUBECONFIG": str(outage.kubeconfig)}) as found,
        ):
            assert serves(found, set(pool.hostports))
            outage.begin()
            assert serves(found, set(pool.hostports))
            assert found.health.check("liveness") == "SERVING"
            around.space.pod_status(pool.pod(0), ready=False)
            outage.end()
            PATIENCE.seconds = 40.0  # watches wait longer and longer between their attempts
            assert serves(found, {pool.hostports[1]})

    def test_it_starts_without(self, around: World, tmp_path: Path) -> None:
        """A picker that starts during the outage is not ready, and is when it is over, restarted or not."""
        with Outage(around.kubeconfig, tmp_path) as outage, around.pool("late", engines=1) as pool:
            outage.begin()
            environment = {"KUBECONFIG": str(outage.kubeconfig)}
            with around.process(*around.flags("late"), environment=environment) as process:
                with contextlib.suppress(AssertionError):
                    assert process.wait(3) != 0  # giving up is a way to wait for Kubernetes, too
            outage.end()
            with around.picker("late", environment=environment) as found:
                assert serves(found, set(pool.hostports))
