# SPDX-License-Identifier: GPL-3.0-or-later
"""Workers as processes: connections spread, state is shared, figures add up, the death of one is no news to clients."""

from __future__ import annotations

import contextlib
import os
import signal
import ssl
import threading
import time
from pathlib import Path

import grpc
from benchmarks import rig
from benchmarks.client import Client
from ports import free_port

from .conftest import HOSTS, Picker, Start, prompt


def test_connections_are_spread_evenly(picker: Picker) -> None:
    def even() -> bool:
        before = picker.per_worker()
        with picker.clients(6):
            spread = picker.per_worker()
            spread.subtract(before)
            assert spread.total() == 6
            return spread == {0: 3, 1: 3}

    # A worker tells a moment later that a connection has gone: one that only looked whether the port is open may count.
    picker.process.wait_for(even)


def test_a_prefix_is_known_to_all(picker: Picker) -> None:
    with picker.clients(2) as (first, second):
        asked = [prompt() for _ in range(40)]
        where = [first.decide(each).destination for each in asked]
        assert len(set(where)) > 2, "prompts that are new go everywhere"
        time.sleep(0.3)
        same = sum(second.decide(each).destination == place for each, place in zip(asked, where, strict=True))
        assert same >= 36


def test_requests_in_flight_are_known_to_all(picker: Picker) -> None:
    """Each worker sends its requests where the other one has none, and the parent counts those of both."""
    with picker.clients(2) as clients, contextlib.ExitStack() as stack:
        taken = [stack.enter_context(client.asking(prompt())) for _ in range(4) for client in clients if not pause()]
        assert sorted(each.destination.partition(":")[0] for each in taken) == sorted(HOSTS)
        picker.process.wait_for(lambda: [each["inflight"] for each in picker.epp.endpoints()] == [1] * len(HOSTS))
        assert picker.value("llm_d_epp_inflight_requests") == len(HOSTS)
        assert picker.value("inference_objective_running_requests") == len(HOSTS)
    picker.process.wait_for(lambda: not any(each["inflight"] for each in picker.epp.endpoints()))


def pause() -> None:
    """Until workers have told each other."""
    time.sleep(0.15)


def test_figures_add_up(picker: Picker) -> None:
    requests, seconds = "inference_objective_request_total", "inference_extension_scheduler_e2e_duration_seconds_count"
    before = picker.value(requests), picker.value(seconds)
    with picker.clients(2) as clients:
        for client in clients:
            for _ in range(5):
                client.decide(prompt())
    assert (picker.value(requests) - before[0], picker.value(seconds) - before[1]) == (12, 12)
    assert picker.value("inference_pool_ready_pods") == len(HOSTS)
    assert picker.value("llm_d_epp_leader") == picker.value("inference_extension_info") == 1
    assert picker.value("llm_d_epp_workers_ready") == 2
    assert picker.value("llm_d_epp_statesync_peers") == 0
    used = picker.value("process_resident_memory_bytes")
    assert used > 2.5 * picker.process.memory_bytes()


def test_decisions_of_all_newest_first(picker: Picker) -> None:
    with picker.clients(4):
        found = picker.decisions()
    assert {each["worker"] for each in found[:4]} == {0, 1}
    assert [each["time"] for each in found] == sorted((each["time"] for each in found), reverse=True)
    assert len(rig.fetch(f"http://127.0.0.1:{picker.epp.metrics_port}/debug/decisions?limit=1")) < 2000


def test_profiles_are_the_workers(picker: Picker) -> None:
    page = picker.get("/debug/pprof/goroutine").decode()
    assert page.startswith("worker 0\n")
    assert "\nworker 1\n" in page
    assert page.count("Arrivals.run") == 2
    lines = picker.get("/debug/pprof/profile?seconds=0.2").decode().splitlines()
    assert {line.partition(";")[0] for line in lines} == {"worker 0", "worker 1"}


def test_one_reading_of_metrics_serves_all(picker: Picker) -> None:
    """Only the parent asks the endpoints, and the workers know what it knows."""
    with picker.clients(2):
        assert connections(picker.process.popen.pid) == len(HOSTS)
        assert [connections(pid) for pid in picker.workers()] == [0, 0]
        ages = [each["metrics"]["ageSeconds"] for each in picker.epp.endpoints()]
        assert max(ages) < 2.0


def connections(pid: int) -> int:
    """Those of a process with the endpoints."""
    own = {os.readlink(each) for each in Path(f"/proc/{pid}/fd").iterdir()}
    lines = [line.split() for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]]
    return sum(line[2].startswith("0") and line[2][2:8] == "00547F" and f"socket:[{line[9]}]" in own for line in lines)


def test_a_worker_that_dies_comes_back(start: Start) -> None:
    with start() as picker, picker.clients(4) as clients:
        counted = picker.value("inference_objective_request_total")
        first, second = picker.workers()
        with contextlib.ExitStack() as stack:
            for client in clients:
                stack.enter_context(client.asking(prompt()))
            picker.process.wait_for(lambda: inflight(picker) == 4)
            os.kill(first, signal.SIGKILL)
            picker.process.wait_for(lambda: inflight(picker) == 2)
        failed = 0
        end = time.monotonic() + 20
        while not (whole := picker.whole()) and time.monotonic() < end:
            assert picker.healthy()
            for client in clients:
                try:
                    client.decide(prompt())
                except grpc.RpcError:
                    failed += 1
        assert whole
        assert failed <= 2, "the connections of the dead one end, and what is opened anew is served"
        assert second in picker.workers()
        assert first not in picker.workers()
        assert picker.value("llm_d_epp_worker_restarts_total") == 1
        assert picker.value("inference_objective_request_total") >= counted
        assert "worker 0 ended with status -9, and is started again" in picker.process.tail(100_000)
        assert evenly_again(picker, clients)


def inflight(picker: Picker) -> int:
    """Requests in flight, as the parent knows them."""
    return sum(each["inflight"] for each in picker.epp.endpoints())


def evenly_again(picker: Picker, clients: list[Client]) -> bool:
    """The new worker gets its part of the connections, without a request that fails for it."""
    end = time.monotonic() + 20
    while time.monotonic() < end:
        time.sleep(0.5)
        for client in clients:
            client.decide(prompt())
        newest = [each["worker"] for each in picker.decisions()[: len(clients)]]
        if sorted(newest) == [0, 0, 1, 1]:
            return True
    return False


def test_sigterm_drains_all(start: Start) -> None:
    """What is open is served to its end, also what comes after the signal."""
    with start() as picker, picker.clients(2) as clients:
        workers = picker.workers()
        with contextlib.ExitStack() as stack:
            for client in clients:
                stack.enter_context(client.asking(prompt()))
            picker.process.popen.terminate()
            picker.process.wait_for(lambda: not picker.healthy())
            time.sleep(2.5)
            assert all(Path(f"/proc/{pid}").exists() for pid in workers)
            for client in clients:
                assert client.decide(prompt()).destination
        assert picker.process.popen.wait(15) == 0
        assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
        assert "Traceback" not in picker.process.tail(100_000)
        assert "streams are still open" not in picker.process.tail(100_000)


def test_workers_end_with_their_parent(start: Start) -> None:
    with start() as picker:
        workers = picker.workers()
        picker.process.popen.kill()
        picker.process.popen.wait()
        end = time.monotonic() + 10
        while any(alive(pid) for pid in workers) and time.monotonic() < end:
            time.sleep(0.05)
        assert not any(alive(pid) for pid in workers)


def alive(pid: int) -> bool:
    """Whether it runs; what nobody has waited for yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except FileNotFoundError:
        return False


def test_a_worker_that_is_stuck_is_replaced(start: Start) -> None:
    with start() as picker:
        stuck, _ = picker.workers()
        os.kill(stuck, signal.SIGSTOP)
        end = time.monotonic() + 60
        while stuck in picker.workers() and time.monotonic() < end:
            assert picker.healthy()
            time.sleep(0.2)
        assert "has said nothing for" in picker.process.tail(100_000)
        picker.process.wait_for(picker.whole)


def test_tls_with_one_certificate_for_all(start: Start) -> None:
    with start("--secure-serving=true") as picker:
        certificate = ssl.get_server_certificate(("127.0.0.1", picker.epp.grpc_port)).encode()
        with contextlib.ExitStack() as stack:
            for _ in range(4):
                client = stack.enter_context(picker.client(root=certificate))
                assert client.decide(prompt()).destination
        assert set(picker.per_worker()) == {0, 1}


def test_replicas_with_workers_each(start: Start) -> None:
    """What one worker of a replica has sent somewhere is known to all workers of the other."""
    ports = free_port(), free_port()
    peers = "--statesync-peers=" + ",".join(f"127.0.0.1:{port}" for port in ports)
    with start(peers, f"--statesync-port={ports[0]}") as first, start(peers, f"--statesync-port={ports[1]}") as other:
        for picker in (first, other):
            picker.process.wait_for(lambda picker=picker: picker.value("llm_d_epp_statesync_peers") == 1)
        with first.clients(2) as here, other.clients(2) as there:
            asked = [prompt() for _ in range(20)]
            where = [here[number % 2].decide(each).destination for number, each in enumerate(asked)]
            pause()
            for client in there:
                found = [client.decide(each).destination for each in asked]
                assert sum(a == b for a, b in zip(where, found, strict=True)) >= 18


def test_much_at_once_is_answered(picker: Picker) -> None:
    """Threads with a connection each; not one request fails or waits for a worker that has no time."""
    errors: list[Exception] = []

    def ask() -> None:
        try:
            with picker.client() as client:
                for _ in range(10):
                    assert client.decide(prompt()).destination
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
