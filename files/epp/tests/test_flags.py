# SPDX-License-Identifier: GPL-3.0-or-later
"""The command line, as Go programs take it."""

from __future__ import annotations

from pathlib import Path

import pytest

from epp import __version__
from epp.cli import main
from epp.flags import FlagError, Settings, help_text, parse

FILE = "--endpoints-file=x.yaml"
VALID_CONFIG = """\
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins:
- type: queue-scorer
"""


def settings(*arguments: str, **environment: str) -> Settings:
    return parse([FILE, *arguments], environment)


def test_defaults_are_the_references() -> None:
    got = settings()
    assert (got.grpc_port, got.grpc_health_port, got.metrics_port) == (9002, 9003, 9090)
    assert (got.secure_serving, got.v, got.drain_timeout) == (True, 2, 30.0)
    assert got.pool_group == "inference.networking.k8s.io"
    assert (got.refresh_metrics_interval, got.metrics_staleness_threshold) == (0.05, 2.0)
    assert got.given == {"endpoints-file"}


@pytest.mark.parametrize(
    "arguments",
    [["--grpc-port=1"], ["--grpc-port", "1"], ["-grpc-port=1"], ["-grpc-port", "1"]],
)
def test_every_spelling(arguments: list[str]) -> None:
    assert settings(*arguments).grpc_port == 1


@pytest.mark.parametrize(
    ("argument", "value"), [("", True), ("=true", True), ("=1", True), ("=F", False), ("=false", False)]
)
def test_switches(argument: str, value: bool) -> None:
    assert settings(f"--secure-serving{argument}").secure_serving is value


@pytest.mark.parametrize("arguments", [["-v", "5"], ["-v=5"], ["--v=5"], ["--v", "5"]])
def test_verbosity(arguments: list[str]) -> None:
    assert settings(*arguments).v == 5


@pytest.mark.parametrize(
    ("text", "seconds"), [("200ms", 0.2), ("1m30s", 90.0), ("1.5s", 1.5), ("0", 0.0), ("1h", 3600.0)]
)
def test_durations(text: str, seconds: float) -> None:
    assert settings(f"--drain-timeout={text}").drain_timeout == pytest.approx(seconds)


@pytest.mark.parametrize(("text", "size"), [("16Mi", 16 * 2**20), ("1k", 1000), ("4096", 4096), ("1Gi", 2**30)])
def test_sizes(text: str, size: int) -> None:
    assert settings(f"--grpc-max-recv-msg-size={text}").grpc_max_recv_msg_size == size


def test_selector_with_ports() -> None:
    got = parse(["--endpoint-selector", "app=x", "--endpoint-target-ports=8000,8001"], {})
    assert (got.endpoint_selector, got.endpoint_target_ports) == ("app=x", (8000, 8001))


def test_namespace_of_the_pool() -> None:
    assert parse(["--pool-name=p"], {}).pool_namespace == "default"
    assert parse(["--pool-name=p"], {"NAMESPACE": "llm"}).pool_namespace == "llm"
    assert parse(["--pool-name=p", "--pool-namespace=own"], {"NAMESPACE": "llm"}).pool_namespace == "own"


def test_metrics_may_be_switched_off_by_an_empty_name() -> None:
    got = settings("--lora-info-metric=", "--kv-cache-usage-percentage-metric", "")
    assert (got.lora_info_metric, got.kv_cache_usage_percentage_metric) == ("", "")
    assert {"lora-info-metric", "kv-cache-usage-percentage-metric"} < got.given


def test_several_pools() -> None:
    got = parse(["--pool-name=a", "--pool-name", "b", "--pool-name=a"], {})
    assert got.pool_name == ("a", "b")


def test_ports_and_suites_may_be_given_in_pieces() -> None:
    got = parse(["--endpoint-selector=a=b", "--endpoint-target-ports=1,2", "--endpoint-target-ports=2,3"], {})
    assert got.endpoint_target_ports == (1, 2, 3)
    assert settings("--tls-cipher-suites=A, B", "--tls-cipher-suites=C").tls_cipher_suites == ("A", "B", "C")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--grpc-prot=1"], "unknown flag --grpc-prot; did you mean --grpc-port?"),
        (["--qqqqqqqq"], "unknown flag --qqqqqqqq; see epp --help"),
        (["--secure-serving", "false"], "unexpected argument 'false'; a switch is set with --flag=true"),
        (["--grpc-port"], "--grpc-port needs a value"),
        (["--grpc-port=x"], "--grpc-port=x: not a whole number; write it like 1"),
        (["--grpc-port=70000"], "--grpc-port=70000: ports end at 65535"),
        (["--secure-serving=maybe"], "--secure-serving=maybe: not a bool; write it like true"),
        (["--drain-timeout=30"], "--drain-timeout=30: not a duration; write it like 200ms or 30s"),
        (["--grpc-max-recv-msg-size=4MB"], "not a size; write it like 16Mi"),
        (["--metrics-endpoint-auth=true"], "--metrics-endpoint-auth=true needs Kubernetes"),
        (["--ha-enable-leader-election"], "--ha-enable-leader-election needs Kubernetes"),
        (["--metrics-client-ca-file=ca.crt"], "--metrics-client-ca-file needs --metrics-cert-dir"),
        (["--zap-log-level=loud"], "--zap-log-level=loud: write debug, info, error, panic, or a number from 1 on"),
        (["--zap-log-level=0"], "--zap-log-level=0: write debug"),
        (["--zap-encoder=xml"], "--zap-encoder=xml: write json or console"),
        (["--zap-time-encoding=unix"], "--zap-time-encoding=unix: write epoch, millis, nano, iso8601, rfc3339 or"),
        (["--zap-stacktrace-level=warn"], "--zap-stacktrace-level=warn: write info, error or panic"),
        (["--tls-min-version=VersionTLS11"], "write VersionTLS12 or VersionTLS13 (gRPC speaks nothing older than 1.2)"),
        (["--pool-name=Not_A_Name"], "--pool-name=Not_A_Name: not the name of an object; write it like llama-8b"),
        (["--model-server-metrics-scheme=ftp"], "--model-server-metrics-scheme=ftp: write http or https"),
        (["--refresh-metrics-interval=10ms"], "--refresh-metrics-interval must be 50ms or more"),
        (["--enable-cert-reload"], "--enable-cert-reload needs --cert-path"),
        (["--config-file=a", "--config-text=b"], "--config-file and --config-text exclude each other"),
        (["--pool-name=p"], "--pool-name and --endpoints-file exclude each other; give exactly one of"),
        (["--endpoint-target-ports=1"], "--endpoint-selector and --endpoint-target-ports go together"),
    ],
)
def test_mistakes_are_explained(arguments: list[str], text: str) -> None:
    with pytest.raises(FlagError) as error:
        settings(*arguments)
    assert text in str(error.value)


@pytest.mark.parametrize("ports", ["0", "70000", "1,2,3,4,5,6,7,8,9"])
def test_target_ports(ports: str) -> None:
    with pytest.raises(FlagError, match="give 1 to 8 different ports"):
        parse(["--endpoint-selector=a=b", f"--endpoint-target-ports={ports}"], {})


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--workers=0"], "--workers=0: give 1 to 64"),
        (["--workers=65"], "--workers=65: give 1 to 64"),
        (["--workers=2", "--transport=grpcio"], "--workers=2 needs --transport=h2"),
    ],
)
def test_workers(flags: list[str], text: str) -> None:
    with pytest.raises(FlagError, match=text):
        parse(["--endpoints-file=e", *flags], {})


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (
            "featureGates: [flowControl]\nplugins: [{type: queue-scorer}]\n",
            "lets requests wait (feature gate flowControl)",
        ),
        (
            "plugins: [{type: precise-prefix-cache-producer, parameters: {kvEventsConfig: {zmqEndpoint: 'tcp://*:5557'}}}]",
            "has engines connect with one process (precise-prefix-cache-producer: kvEventsConfig.zmqEndpoint)",
        ),
    ],
)
def test_what_only_one_process_can_do(
    config: str, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(f"apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\n{config}")
    assert main(["--endpoints-file=e", "--workers=2", f"--config-file={file}"]) == 2
    assert f"epp: --workers=2: {file} {text}" in capsys.readouterr().err


def test_something_must_be_served(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    told = capsys.readouterr().err
    assert "nothing says which endpoints to serve; give exactly one of --pool-name" in told


def test_help_names_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert help_text() in shown
    assert "--grpc-port int\n        port of the ext_proc service (default 9002)" in shown
    assert "--tracing" in shown


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == __version__


def test_wrong_arguments_exit_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--nope=1"]) == 2
    assert capsys.readouterr().err.startswith("epp: unknown flag --nope")


class TestCheck:
    def test_prints_what_the_configuration_comes_to(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        file = tmp_path / "config.yaml"
        file.write_text(VALID_CONFIG)
        assert main(["check", str(file)]) == 0
        shown = capsys.readouterr().out
        assert "queue-scorer" in shown
        assert "max-score-picker" in shown

    def test_names_file_line_and_field(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        file = tmp_path / "config.yaml"
        file.write_text(VALID_CONFIG.replace("queue-scorer", "queue-skorer"))
        assert main(["check", str(file)]) == 1
        told = capsys.readouterr().err
        assert f"{file}:4" in told
        assert "queue-scorer" in told

    def test_no_such_file(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["check", "nowhere.yaml"]) == 1
        assert "nowhere.yaml: cannot be read" in capsys.readouterr().err

    @pytest.mark.parametrize("arguments", [[], ["a", "b"], ["--x"]])
    def test_takes_one_argument(self, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["check", *arguments]) == 2
        assert "check takes one argument" in capsys.readouterr().err
