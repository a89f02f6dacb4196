# SPDX-License-Identifier: GPL-3.0-or-later
"""Producers, what reads them, and what is told to gateways."""

from __future__ import annotations

import base64
import json
import struct
import time
from typing import Any

import pytest

from epp import config
from epp.config import ConfigError
from epp.datalayer.items import Items
from epp.model import Decision, Usage


def chat(*parts: dict[str, Any]) -> bytes:
    return json.dumps([{"role": "user", "content": list(parts)}]).encode()


def image(url: str = "http://x/1.png") -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def png(width: int, height: int) -> str:
    head = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sII", 13, b"IHDR", width, height)
    return "data:image/png;base64," + base64.b64encode(head).decode()


VIDEO = {"type": "video_url", "video_url": {"url": "http://x/1.mp4"}}


class TestTokens:
    def tokens(self, kit: Any, prompt: bytes, parameters: str = "{}", **headers: str) -> int:
        """Tokens beyond those of the text."""
        found = kit.parameters("token-producer", parameters)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        request = kit.ask(prompt, headers=named, prompt_tokens=1)
        kit.make("token-producer", **vars(found)).produce(request, [])
        media = sum(len(part["image_url"]["url"]) for part in json.loads(prompt)[0]["content"] if "image_url" in part)
        media += sum(len(part["video_url"]["url"]) for part in json.loads(prompt)[0]["content"] if "video_url" in part)
        return int(request.prompt_tokens) - (len(prompt) - media) // 4

    @pytest.mark.parametrize(
        ("url", "parameters", "tokens"),
        [
            ("http://x", "{}", 225),
            (png(1024, 1024), "{}", 1024),
            (png(1024, 512), "{estimate: {image: {dynamic: {factor: 512}}}}", 1024),
            ("http://x", "{estimate: {image: {defaultResolution: {width: 1024, height: 10}}}}", 10),
            (png(1024, 1024), "{estimate: {image: {mode: static, static: {staticToken: 77}}}}", 77),
        ],
    )
    def test_images(self, kit: Any, url: str, parameters: str, tokens: int) -> None:
        assert self.tokens(kit, chat(image(url)), parameters) == tokens
        assert self.tokens(kit, chat(image(url), image(url)), parameters) == 2 * tokens

    @pytest.mark.parametrize(
        ("video", "headers", "tokens"),
        [
            ("{}", {}, 10 * 225),
            ("{defaultDuration: 2.5}", {}, 3 * 225),
            ("{}", {"x_llm_d_video_duration_seconds": "4"}, 4 * 225),
            ("{}", {"x_llm_d_video_duration_seconds": "soon"}, 10 * 225),
            ("{}", {"x_llm_d_video_duration_seconds": "-1"}, 10 * 225),
            ("{}", {"x_llm_d_video_resolution": "1024x100"}, 10 * 100),
            ("{}", {"x_llm_d_video_resolution": "big"}, 10 * 225),
            ("{frames: {sampled: {sampleFPS: 2, temporalPatchSize: 2}}}", {}, 10 * 225),
            ("{frames: {maxFrames: 4}}", {}, 4 * 225),
            ("{frames: {minFrames: 20}}", {}, 20 * 225),
            ("{frames: {mode: strided, strided: {frameStride: 24}}}", {}, 10 * 225),
            ("{frames: {mode: strided, strided: {frameStride: 10}}}", {"x_llm_d_video_fps": "10"}, 10 * 225),
            ("{tokensPerFrame: {mode: static, static: {numTokensPerFrame: 3}}}", {}, 30),
            ("{maxVideoTokens: 100}", {}, 100),
        ],
    )
    def test_videos(self, kit: Any, video: str, headers: dict[str, str], tokens: int) -> None:
        assert self.tokens(kit, chat(VIDEO), f"{{estimate: {{video: {video}}}}}", **headers) == tokens

    @pytest.mark.parametrize(
        ("size", "audio", "tokens"),
        [(42_668, "{}", 50), (8, "{}", 250), (8, "{maxAudioTokens: 9}", 9), (8, "{defaultDuration: 1}", 25)],
    )
    def test_audio(self, kit: Any, size: int, audio: str, tokens: int) -> None:
        clip = {"type": "input_audio", "input_audio": {"data": "A" * size, "format": "wav"}}
        prompt = chat(clip)
        found = kit.parameters("tokenizer", f"{{estimate: {{audio: {audio}}}}}")
        request = kit.ask(prompt)
        kit.make("tokenizer", **vars(found)).produce(request, [])
        assert request.prompt_tokens == (len(prompt) - size) // 4 + tokens

    def test_text_stays_as_it_was_estimated(self, kit: Any) -> None:
        request = kit.ask(b'"hello"', prompt_tokens=5)
        kit.make("token-producer").produce(request, [])
        assert request.prompt_tokens == 5

    @pytest.mark.parametrize(
        ("parameters", "warned"),
        [
            ("{}", False),
            ("{estimate: {}}", False),
            ("{backend: estimate}", False),
            ("{modelName: m, vllm: {url: http://localhost:8000, timeout: 5s}}", False),
            ("{vllm: {endpointDiscovery: {portRules: [{basePort: 9}]}}}", False),
            ("{udsTokenizerConfig: {socketFile: /tmp/x.sock}}", True),
            ("{backend: vllm, udsTokenizerConfig: {socketFile: /tmp/x.sock}}", False),
        ],
    )
    def test_tokens_that_are_not_to_be_had(self, kit: Any, parameters: str, warned: bool) -> None:
        rig = kit.rig(f"plugins:\n- type: token-producer\n  parameters: {parameters}\n", [])
        assert any("Unix socket" in warning for warning in rig.cfg.warnings) is warned
        assert config.load(config.effective(rig.cfg), "again") == rig.cfg


class TestMultimodalCache:
    TEXT = "plugins:\n- type: mm-embeddings-cache-scorer\n- type: random-picker\n"

    def test_a_picture_goes_where_it_has_been(self, kit: Any) -> None:
        rig = kit.rig(self.TEXT.replace("random", "max-score"), kit.endpoints(5))
        first = rig.send(kit.ask(chat(image()))).endpoints[0]
        for _ in range(5):
            assert rig.send(kit.ask(chat({"type": "text", "text": "?"}, image()))).endpoints[0] is first

    def test_the_formula(self, kit: Any) -> None:
        world = kit.World()
        pods = kit.endpoints(3)
        producer = world.of_type("mm-embeddings-cache-producer")
        scorer = kit.make("mm-embeddings-cache-scorer", world)
        for pod, urls in ((pods[0], "ab"), (pods[1], "a")):
            request = kit.ask(chat(*map(image, urls)))
            producer.produce(request, pods)
            producer.pre_request(request, Decision((pod,)))
        request = kit.ask(chat(*map(image, "aabcd")))
        producer.produce(request, pods)
        assert scorer.score(request, pods) == [0.5, 0.25, 0.0]
        plain = kit.ask(b'"text"')
        producer.produce(plain, pods)
        assert scorer.score(plain, pods) == [0.0, 0.0, 0.0]
        producer.pre_request(plain, Decision((pods[2],)))

    def test_encoders_hold_it(self, kit: Any) -> None:
        producer = kit.make("mm-embeddings-cache-producer")
        encoder, decoder = kit.endpoints(2)
        request = kit.ask(chat(image()))
        producer.produce(request, [])
        producer.pre_request(request, Decision((decoder,), profiles={"encode": (encoder,), "decode": (decoder,)}))
        assert list(producer._items._held) == [encoder]

    def test_it_is_bounded_and_forgets_who_is_gone(self, kit: Any) -> None:
        world = kit.World()
        (pod,) = kit.endpoints(1)
        world.datastore.replace([pod])
        producer = kit.make("mm-embeddings-cache-producer", world, cache_size_in_mb_per_server=4)
        for url in "abc":
            request = kit.ask(chat(image(url)))
            producer.produce(request, [pod])
            producer.pre_request(request, Decision((pod,)))
        assert len(producer._items._held[pod]) == 2
        world.datastore.replace([])
        assert not producer._items._held
        assert Items(1).matched({1: 1.0}, [pod]) == {}

    def test_a_named_producer(self, kit: Any) -> None:
        text = "plugins:\n- {type: mm-embeddings-cache-producer, name: p, parameters: {cacheSizeInMBPerServer: 2048}}\n"
        rig = kit.rig(text + "- {type: mm-embeddings-cache-scorer, parameters: {producerName: p}}\n", kit.endpoints(1))
        assert rig.plugin("mm-embeddings-cache-scorer")._key == "item-match/p"


class TestP2PSource:
    HEADER = "x-kv-cache-source-host-port"

    def told(self, kit: Any, blocks: list[int], chosen: int, **parameters: Any) -> str:
        pods = kit.endpoints(len(blocks))
        request = kit.ask()
        kit.matched(
            request, {pod: count for pod, count in zip(pods, blocks, strict=True) if count}, total=20, tokens=10
        )
        decision = Decision((pods[chosen],))
        kit.make("p2p-source-producer", **parameters).pre_request(request, decision)
        return str(decision.headers[self.HEADER])

    @pytest.mark.parametrize(
        ("blocks", "delta", "source"),
        [
            ([0, 0], 1, ""),
            ([0, 5], 1, "10.0.0.2:8000"),
            ([5, 5], 1, ""),
            ([5, 4], 1, ""),
            ([4, 5], 10, "10.0.0.2:8000"),
            ([4, 5], 11, ""),
            ([0, 5, 9], 1, "10.0.0.3:8000"),
        ],
    )
    def test_who_holds_most(self, kit: Any, blocks: list[int], delta: int, source: str) -> None:
        assert self.told(kit, blocks, 0, min_cached_token_delta=delta) == source

    def test_who_prefills_computes(self, kit: Any) -> None:
        decoder, prefiller = kit.endpoints(2)
        request = kit.ask()
        kit.matched(request, {decoder: 5}, total=5)
        decision = Decision((decoder,), profiles={"decode": (decoder,), "prefill": (prefiller,)})
        kit.make("p2p-source-producer").pre_request(request, decision)
        assert decision.headers[self.HEADER] == decoder.hostport

    def test_short_queues_are_asked_more_often(self, kit: Any) -> None:
        pods = [kit.endpoint(0), kit.endpoint(1, metrics=kit.read(waiting=3)), kit.endpoint(2, metrics=kit.read())]
        plugin = kit.make("p2p-source-producer")
        told = []
        for _ in range(1000):
            request = kit.ask()
            kit.matched(request, {pods[1]: 5, pods[2]: 5}, total=5)
            decision = Decision((pods[0],))
            plugin.pre_request(request, decision)
            told.append(decision.headers[self.HEADER])
        assert 140 < told.count(pods[1].hostport) < 260

    def test_nothing_is_known(self, kit: Any) -> None:
        decision = Decision((kit.endpoint(),))
        kit.make("p2p-source-producer").pre_request(kit.ask(), decision)
        assert decision.headers == {self.HEADER: ""}


class TestBurst:
    def text(self, parameters: str = "{}") -> str:
        return (
            f"plugins:\n- {{type: burst-prefix-cache-producer, parameters: {parameters}}}\n"
            "- {type: prefix-cache-scorer, parameters: {prefixMatchInfoProducerName: burst-prefix-cache-producer}}\n"
        )

    def test_a_burst_stays_together(self, kit: Any) -> None:
        rig = kit.rig(self.text("{windowDurationMs: 60000}"), kit.endpoints(8))
        for prompt in (b"a", b"b", b"c"):
            assert len({rig.send(kit.ask(prompt * 500)).endpoints[0] for _ in range(8)}) == 1

    def test_only_so_many_per_endpoint(self, kit: Any) -> None:
        rig = kit.rig(self.text("{windowDurationMs: 60000, maxPerReplica: 2}"), kit.endpoints(8))
        chosen = [rig.send(kit.ask(b"a" * 500)).endpoints[0] for _ in range(8)]
        assert all(chosen[number] is chosen[number + 1] for number in range(0, 8, 2))
        assert len(set(chosen)) > 1

    def test_a_window_ends(self, kit: Any) -> None:
        plugin = kit.make("burst-prefix-cache-producer", window_duration_ms=1)
        pods = kit.endpoints(2)
        request = kit.ask(b"a" * 500)
        plugin.produce(request, pods)
        plugin.pre_request(request, Decision((pods[0],)))
        time.sleep(0.01)
        again = kit.ask(b"a" * 500)
        plugin.produce(again, pods)
        assert again.attributes["prefix-match/burst-prefix-cache-producer"].blocks == {}
        assert not plugin._groups

    @pytest.mark.parametrize(("blocks", "together"), [(0, False), (2, True), (5, False)])
    def test_a_common_beginning(self, kit: Any, blocks: int, together: bool) -> None:
        plugin = kit.make(
            "burst-prefix-cache-producer", window_duration_ms=60000, block_size_tokens=10, min_colocate_blocks=blocks
        )
        pods = kit.endpoints(2)
        first, other = kit.ask(b"x" * 120 + b"a" * 40), kit.ask(b"x" * 120 + b"b" * 80)
        plugin.produce(first, pods)
        plugin.pre_request(first, Decision((pods[1],)))
        plugin.produce(other, pods)
        matched = other.attributes["prefix-match/burst-prefix-cache-producer"].blocks
        assert matched == ({pods[1]: 5} if together else {})

    def test_bounds(self, kit: Any) -> None:
        plugin = kit.make("burst-prefix-cache-producer", window_duration_ms=60000, max_batch_size=3)
        (pod,) = kit.endpoints(1)
        for number in range(9):
            request = kit.ask(b"%d" % number * 300)
            plugin.produce(request, [pod])
            plugin.pre_request(request, Decision((pod,)))
        assert len(plugin._groups) == 3
        empty = kit.ask(b"")
        plugin.produce(empty, [pod])
        plugin.pre_request(empty, Decision((pod,)))
        plugin.pre_request(kit.ask(b"never produced"), Decision((pod,)))
        assert len(plugin._groups) == 3
        short = kit.make("burst-prefix-cache-producer", max_prefix_tokens_to_match=128)
        request = kit.ask(b"x" * 4000)
        short.produce(request, [pod])
        assert len(request.attributes["prefix-match/burst-prefix-cache-producer"].hashes) == 2


USAGE = Usage(prompt_tokens=100, completion_tokens=20, cached_tokens=64)


class TestReporter:
    def report(self, kit: Any, attribute: str, usage: Usage = USAGE) -> Any:
        parameters = kit.parameters("request-attribute-reporter", f"{{attributes: [{attribute}]}}")
        return kit.make("request-attribute-reporter", **vars(parameters)).report(kit.ask(), usage)

    @pytest.mark.parametrize(
        ("expression", "value"),
        [
            ("usage.total_tokens", 120.0),
            ("usage.prompt_tokens + 3.0 * usage.completion_tokens", 160.0),
            ("usage.prompt_tokens - usage.prompt_tokens_details.cached_tokens", 36.0),
            ("usage.completion_tokens / 3.0", 6.0),
            ("int(usage.completion_tokens) / 3", 6.0),
            ("has(usage.nope) ? 1 : 2", 2.0),
        ],
    )
    def test_expressions(self, kit: Any, expression: str, value: float) -> None:
        found = self.report(kit, f"{{key: {{name: cost}}, expression: '{expression}'}}")
        assert found == {"envoy.lb": {"cost": value}}

    def test_a_namespace(self, kit: Any) -> None:
        found = self.report(kit, "{key: {namespace: mine, name: cost}, expression: '7'}")
        assert found == {"mine": {"cost": 7.0}}

    @pytest.mark.parametrize(
        ("condition", "told"),
        [("usage.total_tokens > 119.0", True), ("usage.total_tokens > 120.0", False), ("1", False)],
    )
    def test_conditions(self, kit: Any, condition: str, told: bool) -> None:
        found = self.report(kit, f"{{key: {{name: c}}, expression: '1', condition: '{condition}'}}")
        assert bool(found) is told

    def test_nothing_is_not_reported(self, kit: Any) -> None:
        assert self.report(kit, "{key: {name: c}, expression: 'usage.completion_tokens'}", Usage(5, 0)) == {}

    @pytest.mark.parametrize("expression", ["usage.nope", '"text"', "true"])
    def test_what_gives_no_number_costs_only_itself(self, kit: Any, expression: str) -> None:
        text = (
            "plugins:\n- type: request-attribute-reporter\n  parameters:\n"
            f"    attributes: [{{key: {{name: c}}, expression: '{expression}'}}]\n"
            "- type: request-attribute-reporter\n  name: second\n  parameters:\n"
            "    attributes: [{key: {name: d}, expression: usage.total_tokens}]\n"
        )
        rig = kit.rig(text, [])
        assert rig.scheduler.report(kit.ask(), USAGE) == {"envoy.lb": {"d": 120.0}}
        assert rig.scheduler.report(kit.ask(), None) == {}

    @pytest.mark.parametrize(
        ("attributes", "message"),
        [
            ("[]", "exactly one entry"),
            ("[{key: {name: a}, expression: '1'}, {key: {name: b}, expression: '1'}]", "exactly one entry"),
            ('[{key: {name: ""}, expression: "1"}]', "name is empty"),
            ('[{key: {name: a}, expression: ""}]', "expression is empty"),
            ("[{key: {name: a}, expression: usage. +}]", "is not CEL: line 1, column 8"),
            ("[{key: {name: a}, expression: '1', condition: '('}]", "is not CEL"),
            ("[{key: {name: a}, expression: useage.total_tokens}]", "names something else than usage"),
            ("[{key: {name: a}, expression: 'cost(usage)'}]", "names something else than usage"),
        ],
    )
    def test_mistakes(self, kit: Any, attributes: str, message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            kit.parameters("request-attribute-reporter", f"{{attributes: {attributes}}}")


def test_sources_and_extractors_of_all_versions(kit: Any) -> None:
    """v1.3's extractor says where the metrics are; sources of news change nothing."""
    rig = kit.rig(
        """\
plugins:
- type: endpoint-notification-source
- {type: k8s-notification-source, parameters: {group: "", version: v1, kind: Pod}}
- type: metrics-data-source
- {type: model-server-protocol-metrics, parameters: {queuedRequestsSpec: mine_waiting}}
- type: topology-extractor
- type: approx-prefix-cache-producer
dataLayer:
  sources:
  - pluginRef: endpoint-notification-source
    extractors: [{pluginRef: topology-extractor}, {pluginRef: approx-prefix-cache-producer}]
  - {pluginRef: metrics-data-source, extractors: [{pluginRef: model-server-protocol-metrics}]}
  - {pluginRef: k8s-notification-source}
""",
        [],
    )
    engine = config.scrape_options(rig.cfg).mapper.engines["vllm"]
    assert engine.waiting is not None
    assert engine.waiting.name == "mine_waiting"
    assert engine.running is not None
    assert engine.running.name == "vllm:num_requests_running"
    assert config.load(config.effective(rig.cfg), "again") == rig.cfg


def test_only_extractors_read_metrics(kit: Any) -> None:
    text = "plugins:\n- type: metrics-data-source\n- type: queue-scorer\ndataLayer:\n  sources:\n"
    with pytest.raises(ConfigError, match="is not a Extractor"):
        kit.rig(text + "  - {pluginRef: metrics-data-source, extractors: [{pluginRef: queue-scorer}]}\n", [])
    with pytest.raises(ConfigError, match="not a metric"):
        kit.parameters("model-server-protocol-metrics", "{kvUsageSpec: 'a{'}")


class TestWhatPeersAreTold:
    """approx-prefix-cache-producer: blocks of 256 bytes."""

    @pytest.mark.parametrize(
        ("lengths", "told"),
        [
            ((100,), [1]),  # one short block is better than nothing
            ((512,), [2]),
            ((600,), [2]),
            ((600, 700), [2, 0]),
            ((600, 900), [2, 1]),
            ((512, 600), [2, 0]),
            ((600, 600), [2, 0]),
            ((256 * 32 + 512 * 2,), [34]),
            ((256 * 32 + 512 * 2 + 300,), [34]),
        ],
    )
    def test_whole_blocks(self, kit: Any, lengths: tuple[int, ...], told: list[int]) -> None:
        rig = kit.rig(
            "plugins: [{type: approx-prefix-cache-producer}, {type: prefix-cache-scorer}]\n"
            "schedulingProfiles: [{name: default, plugins: [{pluginRef: prefix-cache-scorer}]}]\n",
            kit.endpoints(1),
        )
        journal = rig.datastore.journal
        journal.active = True
        found = []
        for length in lengths:
            rig.send(kit.ask(bytes(length)))
            found.append(sum(len(hashes) for _, _, hashes in journal.turn().prefixes()))
        assert found == told
