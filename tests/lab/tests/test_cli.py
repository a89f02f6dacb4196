# SPDX-License-Identifier: GPL-3.0-or-later
"""The command line, progress lines, and what a person reads when the machine does not fit."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from lab import cli, cluster, control, dns, facts, network, preflight, report
from lab.progress import Progress, elapsed
from lab.state import Folders


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (9.96, "10.0 s"), (12.4, "12 s"), (185.0, "3 min 05 s"), (3600, "60 min 00 s")],
)
def test_durations_are_for_people(seconds: float, text: str) -> None:
    assert elapsed(seconds) == text


def test_a_step_ends_with_its_note_and_time() -> None:
    stream = io.StringIO()
    with Progress(stream).step("build etcd") as step:
        step.note("etcd")
    assert re.fullmatch(r"build etcd \(etcd\): 0\.\d s\n", stream.getvalue())


def test_a_failed_step_says_so() -> None:
    stream = io.StringIO()
    with pytest.raises(KeyError), Progress(stream).step("load"):
        raise KeyError
    assert re.fullmatch(r"load: failed after 0\.\d s\n", stream.getvalue())


def test_a_user_who_is_not_root_gets_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    for command in (["up"], ["down"], ["load", "x"], ["images"]):
        assert cli.main(command) == 1
        message = capsys.readouterr().err
        assert message.startswith("lab: The lab needs root: ")
        assert message.count("\n") == 1


def test_another_system_gets_one_sentence(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert cli.main(["up"]) == 1
    assert capsys.readouterr().err.startswith("lab: The lab needs Linux, and this is ")


def test_missing_programs_are_named_with_their_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(preflight, "CNI_PROGRAMS", str(tmp_path))
    with pytest.raises(preflight.LabError) as caught:
        preflight.packages(Progress(io.StringIO()), with_images=True)
    assert re.search(r"missing: containerd, .*runc.*debootstrap", str(caught.value))
    assert "buildah conntrack containerd containernetworking-plugins debootstrap iproute2 iptables runc)" in str(
        caught.value
    )


def test_a_failing_apt_get_shows_its_last_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    apt = tmp_path / "apt-get"
    apt.write_text("#!/bin/sh\necho E: no route to the mirror\nexit 100\n", encoding="utf-8")
    apt.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    monkeypatch.setattr(preflight, "_missing", lambda _: {"runc": "runc"})
    with pytest.raises(preflight.LabError, match=r"install the packages by hand.*\nE: no route to the mirror"):
        preflight.packages(Progress(io.StringIO()), with_images=False)


@pytest.mark.parametrize("words", [["up", "--gpus", "many"], ["up", "--gpus", "-1"], ["reset"], []])
def test_nonsense_is_refused_by_the_parser(words: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(words)
    assert caught.value.code == 2


def test_kubectl_gets_its_arguments_untouched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "kubectl"
    program.write_text('#!/bin/sh\necho "$KUBECONFIG" "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    called: list[tuple[str, list[str], dict[str, str]]] = []
    monkeypatch.setattr(cluster, "kubectl_path", lambda: program)
    monkeypatch.setattr(os, "execve", lambda path, argv, env: called.append((path, argv, dict(env))))
    cli.main(["kubectl", "-n", "x", "get", "pods", "--help"])
    path, argv, environment = called[0]
    out = subprocess.run([path, *argv[1:]], env=environment, capture_output=True, text=True, check=True).stdout
    assert out.endswith(".lab/kubeconfig -n x get pods --help\n")


def test_the_table_shows_pids_of_the_machine() -> None:
    etcd = control.ComponentStatus("etcd", 5, "ready", 0, 51_000_000, 62.0)
    down = control.ComponentStatus("kubelet", 0, "backoff", 3, 0, 0.0)
    lines = report.table(control.Status([etcd, down], None, 2, None), {5: 12345}).splitlines()
    assert lines[1].split() == ["etcd", "12345", "ready", "0", "51", "MB", "1", "min", "02", "s"]
    assert lines[2].split()[:4] == ["kubelet", "-", "backoff", "3"]


def test_ready_means_each_component_that_was_asked_for() -> None:
    etcd = control.ComponentStatus("etcd", 5, "ready", 0, 0, 1.0)
    late = control.ComponentStatus("kubelet", 6, "starting", 0, 0, 1.0)
    status = control.Status([etcd, late], None, 2, None)
    assert status.ready(["etcd"])
    assert not status.ready(["etcd", "kubelet"])
    assert not status.ready(["etcd", "kwok"])


def test_options_survive_a_restart(tmp_path: Path) -> None:
    assert control.Options.load(tmp_path / "options.json") == control.Options([], None)
    control.Options(["etcd"], 4).save(tmp_path / "options.json")
    assert control.Options.load(tmp_path / "options.json") == control.Options(["etcd"], 4)


def test_dns_is_rendered_for_the_plan() -> None:
    plan = network.Plan(197)
    objects = list(yaml.safe_load_all(dns.render("localhost/inferops/coredns:1", plan)))
    by_kind = {item["kind"]: item for item in objects}
    assert by_kind["Service"]["spec"]["clusterIP"] == plan.dns
    container = by_kind["Deployment"]["spec"]["template"]["spec"]["containers"][0]
    assert container["image"] == "localhost/inferops/coredns:1"
    # The Service finds the ports by name.
    assert {port["name"] for port in container["ports"]} == {
        p["targetPort"] for p in by_kind["Service"]["spec"]["ports"]
    }


def test_facts_are_what_the_inventory_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts, "FOLDERS", Folders(tmp_path))
    facts.write(network.Plan(199), {"epp": "localhost/inferops/epp:1"}, {"gateway_api": "/x.yaml"})
    assert yaml.safe_load((tmp_path / "facts.yml").read_text()) == {
        "kubeconfig": str(tmp_path / "kubeconfig"),
        "node": {"name": "lab", "address": "10.199.255.1"},
        "images": {"epp": "localhost/inferops/epp:1"},
        "manifests": {"gateway_api": "/x.yaml"},
    }
