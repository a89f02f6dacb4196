# SPDX-License-Identifier: GPL-3.0-or-later
"""The command line: every flag of v1.3 and later is there with its default, does what it says, and refuses nonsense."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import ssl
from collections.abc import Iterator
from functools import partial
from operator import eq
from pathlib import Path

import pytest

from conformance.kit.certificates import write_certificate
from conformance.kit.engines import VLLM
from conformance.kit.grpc import Ended
from conformance.kit.picker import Picker, PickerError, Ports
from conformance.kit.talk import completion, destinations, route
from conformance.kit.wait import eventually
from conformance.kit.world import Pool, World

LATER = "a flag of later versions"
NO_CHECK = "v1.3 takes any value"

# Flag → (default as --help shows it, None where it is empty; a value that changes little).
COMMON: dict[str, tuple[str | None, str]] = {
    "grpc-port": ("9002", ""),
    "grpc-health-port": ("9003", ""),
    "metrics-port": ("9090", ""),
    "metrics-endpoint-auth": ("true", "false"),
    "enable-pprof": ("true", "true"),
    "pool-group": ("inference.networking.k8s.io", "inference.networking.k8s.io"),
    "pool-namespace": (None, ""),
    "pool-name": (None, ""),
    "endpoint-selector": (None, ""),
    "endpoint-target-ports": (None, ""),
    "disable-endpoint-subset-filter": (None, "false"),
    "health-checking": (None, "true"),
    "ha-enable-leader-election": (None, "false"),
    "refresh-metrics-interval": ("50ms", "60ms"),
    "refresh-prometheus-metrics-interval": ("5s", "1s"),
    "metrics-staleness-threshold": ("2s", "3s"),
    "model-server-metrics-scheme": ("http", "http"),
    "model-server-metrics-path": ("/metrics", "/metrics"),
    "model-server-metrics-https-insecure-skip-verify": ("true", "true"),
    "total-queued-requests-metric": ("vllm:num_requests_waiting", "vllm:num_requests_waiting"),
    "total-running-requests-metric": ("vllm:num_requests_running", "vllm:num_requests_running"),
    "kv-cache-usage-percentage-metric": ("vllm:kv_cache_usage_perc", "vllm:kv_cache_usage_perc"),
    "lora-info-metric": ("vllm:lora_requests_info", "vllm:lora_requests_info"),
    "cache-info-metric": ("vllm:cache_config_info", "vllm:cache_config_info"),
    "tracing": ("true", "true"),
    "secure-serving": ("true", "true"),
    "cert-path": (None, ""),
    "enable-cert-reload": (None, "false"),
    "config-file": (None, ""),
    "config-text": (None, ""),
    "zap-devel": (None, "true"),
    "zap-encoder": (None, "console"),
    "zap-log-level": (None, "info"),
    "zap-stacktrace-level": (None, "error"),
    "zap-time-encoding": (None, "rfc3339"),
}
LATEST: dict[str, tuple[str | None, str]] = {
    "drain-timeout": ("30s", "20s"),
    "grpc-max-recv-msg-size": (None, "16Mi"),
    "grpc-max-send-msg-size": (None, "16Mi"),
    "emit-endpoint-scores": (None, "true"),
    "enable-grpc-stream-metrics": (None, "true"),
    "tls-min-version": (None, "VersionTLS12"),
    "tls-cipher-suites": (None, "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"),
    "metrics-client-ca-file": (None, ""),
    "metrics-cert-dir": (None, ""),
    "allow-experimental-plugins": (None, "true"),
}
HIDDEN = pytest.mark.differs(go="v1.3 hides it, as it is deprecated")
ALL = [
    *(pytest.param(name, *each, id=name) for name, each in COMMON.items()),
    pytest.param("model-server-metrics-port", None, "", id="model-server-metrics-port", marks=HIDDEN),
    *(pytest.param(name, *each, id=name, marks=pytest.mark.differs(go=LATER)) for name, each in LATEST.items()),
]


@pytest.fixture(scope="module")
def helped(around: World) -> str:
    """What --help prints."""
    with around.process("--help", ports=False) as process:
        process.wait()
        return process.log()


@pytest.mark.parametrize(("name", "default", "_"), ALL)
def test_help(helped: str, name: str, default: str | None, _: str) -> None:
    """--help has the flag, and its default."""
    found = re.search(rf"--{name}\b(.*?)(?=^\s*(?:-\w, )?--\w|\Z)", helped, re.DOTALL | re.MULTILINE)
    assert found, f"--help does not have --{name}"
    if default is not None:
        assert re.search(rf'\(default "?{re.escape(default)}"?\)', found[1]), f"--{name}: not the default {default}"


@pytest.fixture(scope="module")
def all_at_once(around: World, main_pool: Pool) -> bool:
    """Whether the picker serves with all flags at once; if it does, there is no need to try one by one."""
    flags = [f"--{name}={value}" for name, (_, value) in COMMON.items() if value]
    if around.driver.name != "go":
        flags += [f"--{name}={value}" for name, (_, value) in LATEST.items() if value]
    with contextlib.suppress(PickerError), around.picker(main_pool.name, *flags, tls=True) as found:
        return bool(route(found).destination)
    return False


@pytest.mark.parametrize(("name", "_", "value"), [each for each in ALL if each.values[2]])
def test_accepted(around: World, main_pool: Pool, all_at_once: bool, name: str, _: str, value: str) -> None:
    """The picker serves with the flag."""
    if not all_at_once or name in LATEST:
        with around.picker(main_pool.name, f"--{name}={value}", tls=True) as found:
            assert route(found).destination in main_pool.hostports


REFUSED = {
    "unknown": (["--no-such-flag=1"], "no-such-flag"),
    "no pool": (["--config-text=x"], "pool-name"),
    "pool and selector": (["--pool-name=a", "--endpoint-selector=a=b", "--endpoint-target-ports=8000"], "pool-name"),
    "selector without ports": (["--endpoint-selector=a=b"], "endpoint-target-ports"),
    "nine ports": (["--endpoint-selector=a=b", "--endpoint-target-ports=1,2,3,4,5,6,7,8,9"], "endpoint-target-ports"),
    "a port too large": (["--endpoint-selector=a=b", "--endpoint-target-ports=70000"], "70000"),
    "a port that is none": (["--endpoint-selector=a=b", "--endpoint-target-ports=http"], "http"),
    "no selector": (["--endpoint-selector=a b", "--endpoint-target-ports=8000"], "a b"),
    "two configurations": (["--pool-name=a", "--config-text=x", "--config-file=/x"], "config"),
    "no such file": (["--pool-name=a", "--config-file=/no/such/file"], "/no/such/file"),
    "no bool": (["--pool-name=a", "--secure-serving=perhaps"], "secure-serving"),
    "no number": (["--pool-name=a", "--metrics-port=many"], "metrics-port"),
    "no duration": (["--pool-name=a", "--metrics-staleness-threshold=soon"], "metrics-staleness-threshold"),
    "no scheme": (["--pool-name=a", "--model-server-metrics-scheme=ftp"], "ftp"),
    "no encoder": (["--pool-name=a", "--zap-encoder=xml"], "xml"),
    "too often": (["--pool-name=a", "--refresh-metrics-interval=1ms"], "refresh-metrics-interval"),
    "a value is missing": (["--pool-name=a", "--config-file"], "config-file"),
}
MUTE = "v1.3 refuses it without a word: its logger is not set up yet"
_V13 = {"too often": NO_CHECK, "no pool": MUTE, "pool and selector": MUTE, "nine ports": MUTE}
_V13 |= {"selector without ports": MUTE, "a port too large": MUTE, "two configurations": MUTE, "no scheme": MUTE}


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        pytest.param(*each, id=name, marks=[pytest.mark.differs(go=_V13[name])] if name in _V13 else [])
        for name, each in REFUSED.items()
    ],
)
def test_refused(around: World, flags: list[str], named: str) -> None:
    """A command line that cannot be: the picker does not start, and says what is wrong."""
    assert named in around.refusal(*flags)


def test_a_flag_and_its_value_apart(around: World, main_pool: Pool) -> None:
    """``--flag value`` is as good as ``--flag=value``."""
    flags = ["--pool-name", main_pool.name, "--pool-namespace", around.space.name, "--secure-serving=false"]
    with around.raw(*flags, "--metrics-endpoint-auth=false", "--config-text", _MINIMAL) as found:
        assert route(found).destination in main_pool.hostports


_MINIMAL = """
apiVersion: inference.networking.x-k8s.io/v1alpha1
kind: EndpointPickerConfig
plugins:
- type: queue-scorer
"""


class TestPlaces:
    def test_default_ports(self, around: World, main_pool: Pool) -> None:
        """Without flags: ext_proc on 9002, health on 9003, metrics on 9090."""
        ports = Ports(9002, 9003, 9090)
        for port in (ports.grpc, ports.health, ports.metrics):
            with contextlib.closing(socket.socket()) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind(("", port))
                except OSError:
                    pytest.skip(f"somebody else listens on port {port}")
        with around.raw(*around.flags(main_pool.name), ports=ports) as found:
            assert route(found).destination in main_pool.hostports
            assert found.metrics().families

    def test_a_port_that_is_taken(self, around: World, main_pool: Pool) -> None:
        """The picker does not stay without one of its ports, and says which it misses."""
        with contextlib.closing(socket.socket()) as taken:
            taken.bind(("", 0))
            taken.listen()
            port = taken.getsockname()[1]
            assert str(port) in around.refusal(*around.flags(main_pool.name), f"--grpc-health-port={port}")

    def test_namespace_of_the_environment(self, around: World, main_pool: Pool) -> None:
        """Without --pool-namespace the variable NAMESPACE says where the pool is."""
        flags = [each for each in around.flags(main_pool.name) if not each.startswith("--pool-namespace")]
        with around.raw(*flags) as found:
            assert route(found).destination in main_pool.hostports

    def test_namespace_default(self, around: World, main_pool: Pool) -> None:
        """Without either it is default, where this pool is not."""
        flags = [each for each in around.flags(main_pool.name) if not each.startswith("--pool-namespace")]
        with around.raw(*flags, serving=False, environment={"NAMESPACE": ""}) as found:
            assert found.health.check("") == "NOT_SERVING"


def lines(text: str) -> list[dict[str, object]]:
    """Log lines that are JSON objects."""
    found = []
    for each in text.splitlines():
        with contextlib.suppress(ValueError):
            parsed = json.loads(each)
            if isinstance(parsed, dict):
                found.append(parsed)
    return found


class TestLogs:
    def test_json(self, around: World, main_pool: Pool) -> None:
        """--zap-encoder=json: lines are objects with a message."""
        with around.picker(main_pool.name, "--zap-encoder=json") as found:
            route(found)
            log = lines(found.process.log())
        assert log
        assert all("msg" in each and "level" in each for each in log)

    def test_console(self, around: World, main_pool: Pool) -> None:
        """--zap-encoder=console: lines are for people."""
        with around.picker(main_pool.name, "--zap-encoder=console") as found:
            text = found.process.log()
        assert text.strip()
        assert not lines(text)

    def test_quiet(self, around: World, main_pool: Pool) -> None:
        """A request is no line of the log at the default level."""
        with around.picker(main_pool.name) as found:
            route(found, headers={"x-request-id": "the-request-that-nobody-logs"})
            assert "the-request-that-nobody-logs" not in found.process.log()

    def test_loud(self, around: World, main_pool: Pool) -> None:
        """It is one with --v=5."""
        with around.picker(main_pool.name, "--v=5") as found:
            route(found, headers={"x-request-id": "the-request-that-is-logged"})
            eventually(lambda: "the-request-that-is-logged" in found.process.log())

    def test_errors_only(self, around: World, main_pool: Pool) -> None:
        """--zap-log-level=error leaves out what is no error."""
        with around.picker(main_pool.name, "--zap-log-level=error", "--zap-encoder=json") as found:
            route(found)
            assert not [each for each in lines(found.process.log()) if each["level"] in ("info", "debug")]


NAMES = {
    "waiting": "custom_waiting",
    "running": "custom_running",
    "kv": "custom_cache",
    "lora": "custom_lora",
    "cache": "custom_config",
}


class TestModelServers:
    """Where the engines' metrics are, and what they are called."""

    FLAGS = (
        "--total-queued-requests-metric=custom_waiting",
        "--total-running-requests-metric=custom_running",
        "--kv-cache-usage-percentage-metric=custom_cache",
        "--lora-info-metric=custom_lora",
        "--cache-info-metric=custom_config",
        "--model-server-metrics-path=/custom/metrics",
    )

    def test_names_and_path(self, around: World) -> None:
        """The flags for the names of metrics and their path: the figures are found."""
        with (
            around.pool("custom", engines=2, names=NAMES, metrics_path="/custom/metrics") as pool,
            around.picker("custom", *self.FLAGS) as found,
        ):
            _is_read(found, pool)

    @pytest.mark.parametrize(
        "value",
        [
            "state=waiting",
            pytest.param(
                'state="waiting"', marks=pytest.mark.differs(go="v1.3 takes the quotes for a part of the value")
            ),
        ],
    )
    def test_labels(self, around: World, value: str) -> None:
        """A metric may be told by its labels, with or without quotes."""
        names = {**VLLM, "waiting": 'queue_requests{state="waiting"}'}
        flag = f"--total-queued-requests-metric=queue_requests{{{value}}}"
        with around.pool("labelled", engines=2, names=names) as pool, around.picker("labelled", flag) as found:
            _is_read(found, pool)

    def test_port(self, around: World) -> None:
        """--model-server-metrics-port: the metrics are on another port than the requests."""
        with around.pool("ported", engines=2, ports=(8000,)) as pool, contextlib.ExitStack() as stack:
            for engine in pool.engines:
                engine.stop()
                engine.ports = (9100,)
                engine.start()
                stack.callback(engine.stop)
            found = stack.enter_context(around.picker("ported", "--model-server-metrics-port=9100"))
            _is_read(found, pool)
            assert destinations(found, 8) == {f"{pool.engines[1].address}:8000"}

    def test_https(self, around: World, tmp_path: Path) -> None:
        """--model-server-metrics-scheme=https: any certificate is good enough by default."""
        with _secured(around, "secured", tmp_path) as pool:
            with around.picker("secured", "--model-server-metrics-scheme=https") as found:
                _is_read(found, pool)

    def test_https_verified(self, around: World, tmp_path: Path) -> None:
        """And it is not with --model-server-metrics-https-insecure-skip-verify=false."""
        flags = ["--model-server-metrics-scheme=https", "--model-server-metrics-https-insecure-skip-verify=false"]
        with _secured(around, "verified", tmp_path) as pool, around.picker("verified", *flags) as found:
            pool.show({"waiting": 0}, {"waiting": 40})
            # Nothing can be read, so nothing tells the engines apart.
            assert len(eventually(lambda: destinations(found, 12), lambda seen: len(seen) == 2)) == 2


@contextlib.contextmanager
def _secured(around: World, name: str, folder: Path) -> Iterator[Pool]:
    write_certificate(folder, "engine")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "tls.crt", folder / "tls.key")
    with around.pool(name, engines=2, tls=context) as pool:
        yield pool


def _is_read(found: Picker, pool: Pool) -> None:
    """The engine with the short queue gets every request, whichever it is."""
    for gauges in ([{"waiting": 0}, {"waiting": 40}], [{"waiting": 40}, {"waiting": 0}]):
        pool.show(*gauges)
        best = next(each.address for each, shown in zip(pool.engines, gauges, strict=True) if not shown["waiting"])
        eventually(lambda: {each.partition(":")[0] for each in destinations(found, 6)}, partial(eq, {best}))


class TestSizes:
    def test_a_large_message(self, picker: Picker) -> None:
        """A message of 3 MB is taken, as in every gRPC server by default."""
        assert len(route(picker, completion("x" * 3_000_000)).document["prompt"]) == 3_000_000

    @pytest.mark.differs(go=LATER)
    def test_a_limit(self, around: World, main_pool: Pool) -> None:
        """--grpc-max-recv-msg-size: beyond it the stream ends with RESOURCE_EXHAUSTED, and others go on."""
        with around.picker(main_pool.name, "--grpc-max-recv-msg-size=1Mi") as found:
            with pytest.raises(Ended) as ended:
                route(found, completion("x" * 2_000_000))
            assert ended.value.status == "RESOURCE_EXHAUSTED"
            assert route(found).destination in main_pool.hostports


@pytest.mark.differs(go=LATER)
def test_scores(around: World, main_pool: Pool) -> None:
    """--emit-endpoint-scores: the scores of the endpoints are in the metadata."""
    with around.picker(main_pool.name, "--emit-endpoint-scores=true") as found:
        scores = route(found).metadata["envoy.lb"]["x-gateway-destination-endpoint-scores"]
    assert set(scores) == set(main_pool.hostports)
    assert all(isinstance(each, float | int) for each in scores.values())


def test_no_scores(picker: Picker) -> None:
    """By default they are not."""
    assert "x-gateway-destination-endpoint-scores" not in route(picker).metadata["envoy.lb"]
