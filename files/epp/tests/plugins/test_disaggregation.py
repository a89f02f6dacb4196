# SPDX-License-Identifier: GPL-3.0-or-later
"""Handlers that use more than one profile or port, their deciders, and what they tell the proxies."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from epp.config import ConfigError
from epp.model import Charge, Endpoint, Rejection
from epp.plugins.media import media

PROFILES = """\
- type: prefill-filter
- type: decode-filter
- type: encode-filter
schedulingProfiles:
- {name: encode, plugins: [{pluginRef: encode-filter}]}
- {name: prefill, plugins: [{pluginRef: prefill-filter}]}
- {name: decode, plugins: [{pluginRef: decode-filter}]}
"""


def split(handler: str, deciders: str = "") -> str:
    return f"plugins:\n{deciders}- {handler}\n{PROFILES}"


def pods(kit: Any, *roles: str) -> list[Endpoint]:
    return [kit.endpoint(number, **{"llm_d.ai__role": role}) for number, role in enumerate(roles)]


ALWAYS = "{type: disagg-profile-handler, parameters: {deciders: {prefill: always-disagg-pd-decider}}}"
BOTH = (
    "{type: disagg-profile-handler, parameters: "
    "{deciders: {prefill: always-disagg-pd-decider, encode: always-disagg-multimodal-decider}}}"
)
DECIDERS = "- type: always-disagg-pd-decider\n- type: always-disagg-multimodal-decider\n"


def picture(kind: str = "image_url", url: str = "http://x/y.png") -> bytes:
    holder: Any = {"data": url, "format": "wav"} if kind == "input_audio" else {"url": url}
    return json.dumps(
        [{"role": "user", "content": [{"type": "text", "text": "?"}, {"type": kind, kind: holder}]}]
    ).encode()


class TestDisaggProfileHandler:
    def test_prefill_elsewhere(self, kit: Any) -> None:
        rig = kit.rig(split(ALWAYS, DECIDERS), pods(kit, "prefill", "decode"))
        prefiller, decoder = rig.endpoints
        decision = rig.send(kit.ask(b"x" * 400))
        assert decision.endpoints == (decoder,)
        assert decision.headers == {"x-prefiller-host-port": prefiller.hostport, "x-encoder-hosts-ports": ""}
        assert decision.charges == (Charge(decoder, 0, 0), Charge(prefiller, 100))
        assert (decoder.inflight, prefiller.inflight) == (1, 1)
        assert (decoder.inflight_tokens, prefiller.inflight_tokens) == (0, 100)

    def test_no_decider_no_stage(self, kit: Any) -> None:
        rig = kit.rig(split("{type: disagg-profile-handler}"), pods(kit, "prefill", "decode"))
        decision = rig.send(kit.ask(b"x" * 400))
        assert decision.endpoints == (rig.endpoints[1],)
        assert decision.headers == {"x-prefiller-host-port": "", "x-encoder-hosts-ports": ""}
        assert decision.charges == (Charge(rig.endpoints[1], 100),)

    def test_nobody_decodes(self, kit: Any) -> None:
        rig = kit.rig(split(ALWAYS, DECIDERS), pods(kit, "prefill"))
        with pytest.raises(Rejection) as error:
            rig.send(kit.ask())
        assert (error.value.status, error.value.reason) == (429, "rejected-saturated")
        assert rig.endpoints[0].inflight == 0

    def test_nobody_prefills(self, kit: Any) -> None:
        rig = kit.rig(split(ALWAYS, DECIDERS), pods(kit, "decode"))
        decision = rig.send(kit.ask(b"x" * 400))
        assert decision.headers["x-prefiller-host-port"] == ""
        assert decision.charges == (Charge(rig.endpoints[0], 100),)

    @pytest.mark.parametrize("kind", ["image_url", "video_url", "input_audio"])
    def test_three_stages(self, kit: Any, kind: str) -> None:
        rig = kit.rig(split(BOTH, DECIDERS), pods(kit, "encode", "prefill", "decode"))
        encoder, prefiller, decoder = rig.endpoints
        decision = rig.send(kit.ask(picture(kind)))
        assert decision.headers == {
            "x-prefiller-host-port": prefiller.hostport,
            "x-encoder-hosts-ports": encoder.hostport,
        }
        assert [charge.endpoint for charge in decision.charges] == [decoder, prefiller, encoder]
        assert encoder.inflight_tokens == 0

    def test_several_encoders(self, kit: Any) -> None:
        text = split(BOTH, DECIDERS).replace(
            "{pluginRef: encode-filter}", "{pluginRef: encode-filter}, {pluginRef: max-score-picker}"
        )
        text = text.replace(
            "plugins:\n", "plugins:\n- {type: max-score-picker, parameters: {maxNumOfEndpoints: 2}}\n", 1
        )
        rig = kit.rig(text, pods(kit, "encode", "encode", "decode", "prefill"))
        found = rig.send(kit.ask(picture())).headers["x-encoder-hosts-ports"].split(",")
        assert sorted(found) == [pod.hostport for pod in rig.endpoints[:2]]

    def test_text_is_not_encoded(self, kit: Any) -> None:
        rig = kit.rig(split(BOTH, DECIDERS), pods(kit, "encode", "prefill", "decode"))
        assert rig.send(kit.ask(b'[{"content": "image_url"}]')).headers["x-encoder-hosts-ports"] == ""

    def test_other_names(self, kit: Any) -> None:
        handler = ALWAYS.replace("deciders", "profiles: {decode: d, prefill: p}, deciders")
        text = split(handler, DECIDERS).replace("name: prefill", "name: p").replace("name: decode", "name: d")
        rig = kit.rig(text, pods(kit, "prefill", "decode"))
        assert rig.send(kit.ask(b"x" * 400)).headers["x-prefiller-host-port"] == rig.endpoints[0].hostport

    def test_deciders_must_be_deciders(self, kit: Any) -> None:
        with pytest.raises(ConfigError, match="is not a Decider"):
            kit.rig(split(ALWAYS.replace("always-disagg-pd-decider", "prefill-filter")), [])


@pytest.mark.parametrize(
    ("handler", "roles", "prompt", "stages"),
    [
        (BOTH, ("encode", "prefill", "decode"), picture(), "encode-prefill-decode"),
        (BOTH, ("encode", "prefill", "decode"), b"text", "prefill-decode"),
        (BOTH, ("encode", "decode"), picture(), "encode-decode"),
        (BOTH, ("decode",), picture(), "decode-only"),
        ("{type: pd-profile-handler}", ("prefill", "decode"), b"text", "prefill-decode"),
        ("{type: pd-profile-handler}", ("decode",), b"text", "decode-only"),
    ],
)
def test_decisions_are_counted(kit: Any, handler: str, roles: tuple[str, ...], prompt: bytes, stages: str) -> None:
    rig = kit.rig(split(handler, DECIDERS), pods(kit, *roles))
    rig.send(kit.ask(prompt))
    kind = str(rig.cfg.plugin(rig.cfg.profile_handler).type)
    labels = {"plugin_name": kind, "plugin_type": kind, "model_name": "m", "decision_type": stages}
    families = {family.name: family for family in text_string_to_metric_families(rig.recorder.render().decode())}
    disagg, older = (families[f"llm_d_epp_{name}_decision"].samples for name in ("disagg", "pd"))
    assert [(sample.labels, sample.value) for sample in disagg] == [(labels, 1.0)]
    assert [sample.labels for sample in older] == ([labels] if kind == "pd-profile-handler" else [])


@pytest.mark.parametrize(
    ("uncached", "shortest", "prompt", "blocks", "splits"),
    [
        (0, 0, 10_000, 0, False),
        (16, 0, 15, 0, False),
        (16, 0, 16, 0, True),
        (16, 100, 99, 0, False),
        (16, 100, 100, 0, True),
        (16, 0, 640, 9, True),
        (65, 0, 640, 9, False),
        (16, 0, 640, 10, False),
        (16, 0, 640, 99, False),
    ],
)
def test_prefix_based_decider(kit: Any, uncached: int, shortest: int, prompt: int, blocks: int, splits: bool) -> None:
    decider = kit.make("prefix-based-pd-decider", non_cached_tokens=uncached, prompt_tokens=shortest)
    (pod,) = kit.endpoints(1)
    request = kit.ask(prompt_tokens=prompt)
    kit.matched(request, {pod: blocks}, total=10, tokens=64)
    assert decider.disaggregate(request, pod) is splits


def test_prefix_based_decider_without_a_word_of_the_producer(kit: Any) -> None:
    decider = kit.make("prefix-based-pd-decider", non_cached_tokens=1)
    assert not decider.disaggregate(kit.ask(prompt_tokens=100), kit.endpoint())


class TestPdProfileHandler:
    def handler(self, parameters: str) -> str:
        return f"{{type: pd-profile-handler, parameters: {parameters}}}"

    @pytest.mark.parametrize(("threshold", "splits"), [(0, True), (400, True), (401, False)])
    def test_threshold(self, kit: Any, threshold: int, splits: bool) -> None:
        text = split(self.handler(f"{{threshold: {threshold}, hashBlockSize: 5}}"), "- type: prefill-header-handler\n")
        rig = kit.rig(text, pods(kit, "prefill", "decode"))
        decision = rig.send(kit.ask(b"x" * 400))
        assert decision.endpoints == (rig.endpoints[1],)
        assert decision.headers["x-prefiller-host-port"] == (rig.endpoints[0].hostport if splits else "")

    def test_a_decider(self, kit: Any) -> None:
        deciders = (
            "- {type: prefix-based-pd-decider, parameters: {nonCachedTokens: 16}}\n- type: disagg-headers-handler\n"
        )
        for parameters in ("{}", "{deciderPluginName: prefix-based-pd-decider}"):
            rig = kit.rig(split(self.handler(parameters), deciders), pods(kit, "prefill", "decode"))
            assert rig.send(kit.ask(b"x" * 400)).headers["x-prefiller-host-port"] == rig.endpoints[0].hostport
            assert rig.send(kit.ask(b"x" * 40)).headers["x-prefiller-host-port"] == ""
            assert rig.send(kit.ask(b"x" * 400)).headers["x-prefiller-host-port"] == "", "it is cached now"

    def test_without_the_headers_handler_nothing_is_said(self, kit: Any) -> None:
        rig = kit.rig(split(self.handler("{}")), pods(kit, "prefill", "decode"))
        decision = rig.send(kit.ask(b"x" * 400))
        assert (decision.headers, len(decision.profiles)) == ({}, 2)

    def test_ranks(self, kit: Any) -> None:
        rig = kit.rig(split(self.handler("{primaryPort: 9000}")), pods(kit, "prefill", "decode"))
        decision = rig.send(kit.ask(b"x" * 400))
        assert decision.destination == "10.0.0.2:9000"
        assert decision.headers == {"x-data-parallel-host-port": "10.0.0.2:8000"}

    def test_nobody_decodes(self, kit: Any) -> None:
        rig = kit.rig(split(self.handler("{}")), pods(kit, "prefill"))
        with pytest.raises(Rejection, match="decode"):
            rig.send(kit.ask())


class TestDataParallel:
    def test_the_primary_port(self, kit: Any) -> None:
        text = "plugins:\n- type: data-parallel-profile-handler\n- type: queue-scorer\n"
        ranks = [kit.endpoint(0, 8000), kit.endpoint(0, 8001)]
        rig = kit.rig(text, ranks)
        ranks[0].metrics = kit.read(waiting=5)
        ranks[1].metrics = kit.read()
        decision = rig.send(kit.ask())
        assert decision.destination == "10.0.0.1:8000"
        assert decision.headers == {"x-data-parallel-host-port": "10.0.0.1:8001"}
        assert [rank.inflight for rank in ranks] == [0, 1], "it counts where it is answered"

    def test_ipv6_and_fallbacks(self, kit: Any) -> None:
        text = (
            "plugins:\n- {type: data-parallel-profile-handler, parameters: {primaryPort: 9}}\n"
            "- {type: max-score-picker, parameters: {maxNumOfEndpoints: 2}}\n"
        )
        rig = kit.rig(text, [Endpoint("a", "", "a", "fd00::1", 8001), Endpoint("b", "", "b", "fd00::2", 8001)])
        assert sorted(rig.send(kit.ask()).destination.split(",")) == ["[fd00::1]:9", "[fd00::2]:9"]

    def test_one_profile_only(self, kit: Any) -> None:
        text = split("{type: data-parallel-profile-handler}")
        with pytest.raises(ConfigError, match="works with 1 profile"):
            kit.rig(text, [])


class TestHeaderProfile:
    TEXT = split("{type: header-profile-handler}")

    @pytest.mark.parametrize(
        ("headers", "answers"),
        [({}, 1), ({"epp-profile": ""}, 1), ({"epp-profile": "prefill"}, 0), ({"epp-profile": "encode"}, 2)],
    )
    def test_the_named_one(self, kit: Any, headers: dict[str, str], answers: int) -> None:
        rig = kit.rig(self.TEXT, pods(kit, "prefill", "decode", "encode"))
        decision = rig.send(kit.ask(headers=headers))
        assert decision.endpoints == (rig.endpoints[answers],)
        assert len(decision.profiles) == 1

    def test_a_name_that_no_profile_has(self, kit: Any) -> None:
        rig = kit.rig(self.TEXT, pods(kit, "prefill", "decode"))
        with pytest.raises(Rejection) as error:
            rig.send(kit.ask(headers={"epp-profile": "Prefill"}))
        assert error.value.status == 429
        assert "'Prefill'" in error.value.message

    def test_another_header_and_another_default(self, kit: Any) -> None:
        text = split("{type: header-profile-handler, parameters: {headerName: X-Stage, defaultProfile: prefill}}")
        rig = kit.rig(text, pods(kit, "prefill", "decode"))
        assert rig.send(kit.ask()).endpoints == (rig.endpoints[0],)
        assert rig.send(kit.ask(headers={"x-stage": "decode"})).endpoints == (rig.endpoints[1],)

    def test_a_single_profile_always_runs(self, kit: Any) -> None:
        rig = kit.rig("plugins:\n- type: header-profile-handler\n- type: queue-scorer\n", kit.endpoints(1))
        assert rig.send(kit.ask(headers={"epp-profile": "nope"})).endpoints == (rig.endpoints[0],)


PNG = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sII", 13, b"IHDR", 640, 480) + b"\x08\x02\0\0\0"
GIF = b"GIF89a" + struct.pack("<HH", 32, 16) + b"\0\0\0"
JPEG = (
    b"\xff\xd8\xff\xe0\x00\x10JFIF\0\x01\x01\0\0\x01\0\x01\0\0\xff\xc0\x00\x11\x08"
    + struct.pack(">HH", 48, 64)
    + b"\3\1"
)


class TestMedia:
    @pytest.mark.parametrize(
        ("data", "pixels"), [(PNG, 307200), (GIF, 512), (JPEG, 3072), (JPEG[:24], 0), (b"RIFF....WEBP", 0), (b"", 0)]
    )
    @pytest.mark.parametrize("prefix", ["data:image/x;base64,", ""])
    def test_pixels(self, kit: Any, data: bytes, pixels: int, prefix: str) -> None:
        (found,) = media(kit.ask(picture(url=prefix + base64.b64encode(data).decode() or "?")))
        assert (found.kind, found.pixels) == ("image", pixels)

    def test_the_same_picture_is_the_same(self, kit: Any) -> None:
        asked = [kit.ask(picture(url=url)) for url in ("http://a", "http://a", "http://b")]
        first, again, other = (media(request)[0].digest for request in asked)
        assert first == again != other
        assert media(asked[0]) is media(asked[0]), "it is looked for once"

    @pytest.mark.parametrize(
        "prompt",
        [
            b"",
            b'"image_url"',
            b'{"image_url": 1',
            b'[1, {"content": "image_url"}, {"content": [1, {"type": "image_url"}, {"type": 3, "image": 1}]}]',
            b'[{"content": [{"type": "image_url", "image_url": {"url": 1}}]}]',
        ],
    )
    def test_what_is_none(self, kit: Any, prompt: bytes) -> None:
        assert media(kit.ask(prompt)) == ()

    def test_what_engines_render_before_it(self, kit: Any) -> None:
        tools = b'[{"type": "function"}]'
        (found,) = media(kit.ask(tools + picture(), lead=len(tools)))
        assert found.kind == "image"

    def test_responses(self, kit: Any) -> None:
        part = {"type": "input_image", "image_url": "http://x/y.png"}
        body = json.dumps([{"role": "user", "content": [part]}]).encode()
        assert [each.kind for each in media(kit.ask(body))] == ["image"]

    def test_anthropic(self, kit: Any) -> None:
        source = {"type": "base64", "media_type": "image/png", "data": base64.b64encode(PNG).decode()}
        body = json.dumps([{"role": "user", "content": [{"type": "image", "source": source}]}]).encode()
        assert media(kit.ask(body))[0].pixels == 307200
