# SPDX-License-Identifier: GPL-3.0-or-later
"""What good places are worth: the time to the first token with our EPP, with the Go EPP v1.3, and with requests dealt
out in turn, before the same model servers, under the same requests.

``python -m benchmarks.placement --help``. The model servers are simulated (``tests/sim``): vLLM's scheduler and prefix
cache with the times of a 32B model, each with 307 000 tokens of KV cache, in real time. Requests come when they are
due, whatever has become of those before. In every round each arrangement sees the same requests, with texts of its own,
so that nothing of them is in any cache; pickers are started for their turn, so that they know nothing either. The first
part of a turn fills the caches and does not count.

``--servers`` compares, without a cluster, our EPP with turns on servers that are there: vLLM with
``--enable-prompt-tokens-details``, or another one that tells how much of a prompt was cached. ``BENCH_OURS=ours`` runs
the EPP's sources in place of its image, which needs root.

Exit status: 0 done, 1 when requests were refused, 2 when nothing could be measured.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import yaml

from benchmarks import replay, rig
from benchmarks.ratios import percentile, ratio
from benchmarks.workloads import Ask, Conversations, Mooncake, SharedPrefix, Workload, WorkloadError

PODS = 8
REFERENCE = "go"
WARM_UP = 0.4
"""The part of a turn that does not count."""
AFFINITY_AND_LOAD = """\
apiVersion: inference.networking.x-k8s.io/v1alpha1
kind: EndpointPickerConfig
plugins:
- type: approx-prefix-cache-producer
- type: prefix-cache-affinity-filter
- type: token-load-scorer
- type: max-score-picker
schedulingProfiles:
- name: default
  plugins:
  - pluginRef: prefix-cache-affinity-filter
  - pluginRef: token-load-scorer
  - pluginRef: max-score-picker
"""
DEFAULTS = rig.REPOSITORY / "roles" / "epp" / "defaults" / "main.yml"


def role() -> str:
    """The scorers of the role ``epp`` with the weights that it gives them by itself."""
    weights = yaml.safe_load(DEFAULTS.read_text(encoding="utf-8"))["epp_scorers"]
    plugins = {f"{name.replace('_', '-')}-scorer": weight for name, weight in weights.items()}
    named = [{"pluginRef": name, "weight": weight} for name, weight in plugins.items()]
    config = {
        "apiVersion": "inference.networking.x-k8s.io/v1alpha1",
        "kind": "EndpointPickerConfig",
        "plugins": [{"type": name} for name in plugins],
        "schedulingProfiles": [{"name": "default", "plugins": named}],
    }
    return yaml.safe_dump(config, sort_keys=False)


@dataclass(frozen=True)
class Arrangement:
    """Who places requests. ``picker`` is a side of ``benchmarks.sides``; None deals them out in turn."""

    name: str
    picker: str | None
    config: str = ""
    """Of its plugins; empty for what it does by itself."""

    @property
    def flags(self) -> list[str]:
        """Of the picker."""
        return [f"--config-text={self.config}"] if self.config else []


ARRANGEMENTS = (
    Arrangement("in turn", None),
    Arrangement("Go", REFERENCE),
    Arrangement("ours", "ours"),
    Arrangement("ours, role's weights", "ours", role()),
    Arrangement("ours, affinity and load", "ours", AFFINITY_AND_LOAD),
)


@dataclass
class Reading:
    """One arrangement under one workload, round by round. Seconds, shares."""

    workload: str
    name: str
    mean: list[float] = field(default_factory=list)
    """Until the first token; so are the percentiles."""
    p50: list[float] = field(default_factory=list)
    p90: list[float] = field(default_factory=list)
    p99: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    """Until the last token, mean."""
    hits: list[float] = field(default_factory=list)
    """Of the prompts' tokens those that were in the pod's cache."""
    requests: int = 0
    """That counted, in all rounds."""
    refused: int = 0


def workloads(trace: Path | None) -> dict[str, Workload]:
    """By name. Pods that had to compute all prompts anew would be busy for most of the time, or not keep up."""
    found: dict[str, Workload] = {
        "shared prefixes, 25/s": SharedPrefix(rate=25),
        "conversations": Conversations(people=300),
    }
    return found | ({"recorded conversations, 3 times as fast": Mooncake(trace, speed=3)} if trace else {})


@dataclass(frozen=True)
class Stage:
    """Model servers, and who can place requests on them."""

    hostports: Sequence[str]
    """``ip:port`` of each server."""
    picker: Callable[[Arrangement], contextlib.AbstractContextManager[int]]
    """Starts a picker that knows them all; yields the port where it is asked."""
    pickers: tuple[str, ...]
    """Those that can be had."""
    model: str = "bench"
    """What the servers call it."""


@contextlib.contextmanager
def simulated() -> Iterator[Stage]:
    """Simulated servers, a pod in the cluster of ``KUBECONFIG`` for each, and the pool that selects them."""
    from benchmarks import sides  # what it takes to talk to a cluster; servers that are there need none of it

    pool = "placement"
    with sides.surroundings() as around, rig.sims(PODS, around.address(), sides.PORT, "--model=bench") as hostports:
        with sides.listed(around, pool, [each.rpartition(":")[0] for each in hostports]):

            @contextlib.contextmanager
            def picker(arrangement: Arrangement) -> Iterator[int]:
                assert arrangement.picker is not None
                with sides.side(around, arrangement.picker, pool, PODS, *arrangement.flags) as side:
                    assert side.picker is not None
                    yield side.picker.ports.grpc

            yield Stage(hostports, picker, ("ours", REFERENCE))


@contextlib.contextmanager
def given_servers(hostports: Sequence[str], model: str) -> Iterator[Stage]:
    """Servers that are there, and no cluster: the reference, which could not find them, takes no part."""
    with tempfile.TemporaryDirectory(prefix="placement-") as folder:
        file = rig.write_endpoints(Path(folder) / "endpoints.yaml", hostports)

        @contextlib.contextmanager
        def picker(arrangement: Arrangement) -> Iterator[int]:
            with rig.serving(file, *arrangement.flags) as epp:
                yield epp.grpc_port

        yield Stage(hostports, picker, ("ours",), model)


def turn(stage: Stage, arrangement: Arrangement, asks: Sequence[Ask]) -> list[replay.Answer]:
    """One arrangement, from its start to its end."""
    with contextlib.ExitStack() as stack:
        port = stack.enter_context(stage.picker(arrangement)) if arrangement.picker else None
        options = rig.EnvoyOptions(tuple(stage.hostports), port, tls=False)
        _, url = stack.enter_context(rig.envoy_process(options))
        return replay.run(url, [each.body(stage.model) for each in asks], [each.at for each in asks])


def note(reading: Reading, answers: Sequence[replay.Answer]) -> None:
    """Take one turn's answers into the figures. Raises RigError without any."""
    good = [each for each in answers if each.last < float("inf")]
    if not good:
        raise rig.RigError(f"of {len(answers)} requests none was answered; is the model called otherwise (--model)?")
    first = [each.first for each in good]
    reading.mean.append(statistics.fmean(first))
    for percent, values in ((50, reading.p50), (90, reading.p90), (99, reading.p99)):
        values.append(percentile(first, percent))
    reading.whole.append(statistics.fmean(each.last for each in good))
    reading.hits.append(sum(each.cached for each in good) / max(1, sum(each.tokens for each in good)))
    reading.requests += len(answers)
    reading.refused += len(answers) - len(good)


def run(
    stage: Stage, chosen: dict[str, Workload], arrangements: Sequence[Arrangement], rounds: int, seconds: float
) -> list[Reading]:
    """All workloads; for each the arrangements in turns, the first of them another one in every round."""
    found = []
    for name, workload in chosen.items():
        readings = [Reading(name, each.name) for each in arrangements]
        for number in range(rounds):
            pairs = list(zip(arrangements, readings, strict=True))
            for arrangement, reading in pairs[number % len(pairs) :] + pairs[: number % len(pairs)]:
                print(f"{name}, round {number + 1} of {rounds}: {arrangement.name}", file=sys.stderr, flush=True)
                asks = workload(number, f"{number} {arrangement.name}", seconds)
                answers = turn(stage, arrangement, asks)
                note(reading, [each for each in answers if each.due >= WARM_UP * seconds])
        show(readings)
        found += readings
    return found


def show(readings: Sequence[Reading]) -> None:
    """One workload, for people."""
    print(f"\n{readings[0].workload}")
    print(f"  {'':26}{'first token, mean ms':>22}{'p50':>8}{'p90':>8}{'p99':>8}{'whole, mean':>13}{'hits':>7}", end="")
    print(f"{'requests':>10}{'refused':>9}")
    for each in readings:
        middle = [statistics.median(values) * 1e3 for values in (each.mean, each.p50, each.p90, each.p99, each.whole)]
        widths = (22, 8, 8, 8, 13)
        figures = "".join(f"{value:{width}.0f}" for value, width in zip(middle, widths, strict=True))
        print(f"  {each.name:26}{figures}{statistics.median(each.hits):7.2f}{each.requests:10}{each.refused:9}")
    base = next((each for each in readings if each.name == "Go"), readings[0])
    for each in readings:
        if each is not base:
            print(f"  {each.name} ÷ {base.name}: mean {ratio(each.mean, base.mean)}, p90 {ratio(each.p90, base.p90)}")
    sys.stdout.flush()


def main() -> int:
    """Measure, print, keep the raw figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.placement", description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=2, help="of each workload (default %(default)s)")
    parser.add_argument("--seconds", type=float, default=45.0, help="of a turn (default %(default)s)")
    parser.add_argument("--only", default="", help="only workloads whose name contains this")
    parser.add_argument("--who", nargs="+", default=[], help="only these arrangements")
    parser.add_argument("--servers", nargs="+", default=[], metavar="IP:PORT", help="real ones, in place of simulated")
    parser.add_argument("--model", default="bench", help="what these call it (default %(default)s)")
    parser.add_argument("--rate", type=float, help="shared prefixes alone, so many requests a second")
    parser.add_argument("--groups", type=int, default=150, help="with --rate: of prompts (default %(default)s)")
    parser.add_argument(
        "--trace",
        type=Path,
        default=os.environ.get("PLACEMENT_TRACE"),
        help="a Mooncake trace (JSON lines) to replay, too; by default what PLACEMENT_TRACE names",
    )
    parser.add_argument("--output", type=Path, help="write the raw figures to this JSON file")
    given = parser.parse_args()
    chosen = {name: each for name, each in workloads(given.trace).items() if given.only in name}
    if given.rate:
        chosen = {f"shared prefixes, {given.rate:g}/s, {given.groups} groups": SharedPrefix(given.rate, given.groups)}
    try:
        with given_servers(given.servers, given.model) if given.servers else simulated() as stage:
            known = [each for each in ARRANGEMENTS if each.picker is None or each.picker in stage.pickers]
            arrangements = [each for each in known if not given.who or each.name in given.who]
            if not chosen or not arrangements:
                parser.error("nothing is left of the workloads, or of the arrangements")
            readings = run(stage, chosen, arrangements, given.rounds, given.seconds)
    except (WorkloadError, rig.RigError) as error:
        parser.exit(2, f"error: {error}\n")
    if given.output:
        given.output.parent.mkdir(parents=True, exist_ok=True)
        given.output.write_text(json.dumps([asdict(each) for each in readings], indent=1) + "\n", encoding="utf-8")
    refused = sum(each.refused for each in readings)
    return 1 if refused else 0


if __name__ == "__main__":
    sys.exit(main())
