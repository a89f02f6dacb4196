# SPDX-License-Identifier: GPL-3.0-or-later
"""Body-based routing: the second service, which makes headers of what stands in bodies."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from conformance.kit import wire
from conformance.kit.engines import Engine
from conformance.kit.envoy import Gateway, Setup, envoy
from conformance.kit.picker import Picker
from conformance.kit.talk import answered
from conformance.kit.wait import eventually
from conformance.kit.wire import Mode
from conformance.kit.world import World

MODEL, BASE = "x-gateway-model-name", "x-gateway-base-model-name"
BUFFERED = (Mode.BUFFERED, Mode.NONE)
LATER = "of later versions than v1.3"
ENDS = "v1.3 ends the stream with an error"
JSON_ONLY = "v1.3 decodes every body as JSON"
LABEL = {"inference.llm-d.ai/ipp-managed": "true"}
MODES = "v1.3 must be told the body mode by a flag"


def body(**members: Any) -> bytes:
    return json.dumps(members).encode()


@pytest.fixture(scope="module")
def shared(around: World) -> Iterator[Picker]:
    """A router without flags."""
    with around.body_router() as found:
        yield found


@pytest.fixture(scope="module")
def streaming(around: World) -> Iterator[Picker]:
    """One for FULL_DUPLEX_STREAMED."""
    with around.body_router("--streaming=true") as found:
        yield found


@pytest.fixture(scope="module")
def open_metrics(around: World) -> Iterator[Picker]:
    """One whose metrics anybody may read."""
    with around.body_router("--metrics-endpoint-auth=false") as found:
        yield found


def ask(
    router: Picker,
    data: bytes,
    headers: dict[str, str] | None = None,
    modes: tuple[Mode, Mode] | None = BUFFERED,
    end: bool = True,
) -> list[wire.ProcessingResponse]:
    """A request in a buffered mode, and both replies."""
    stream = router.stream()
    try:
        stream.send(wire.request_headers(headers, modes=modes))
        first = stream.receive()
        stream.send(wire.request_body(data, end=end))
        return [first, stream.receive()]
    finally:
        stream.close()


def headers_for(router: Picker, data: bytes, headers: dict[str, str] | None = None, **more: Any) -> dict[str, str]:
    """The headers that the reply to the body sets; it must go on as it came."""
    reply = ask(router, data, headers, **more)[1]
    assert wire.kind(reply) == "request_body", f"the reply is {wire.kind(reply)}"
    assert wire.replaced(reply, data) == data
    return wire.headers_of(reply)


CONFIG = """\
apiVersion: llm-d.ai/v1alpha1
kind: PayloadProcessorConfig
plugins:
- {name: user, type: body-field-to-header, parameters: {fieldName: user, headerName: X-User}}
- {type: body-field-to-header, parameters: {fieldName: model, headerName: X-Gateway-Model-Name}}
profiles:
- name: default
  plugins: {request: [{pluginRef: user}, {pluginRef: body-field-to-header}]}
"""


@pytest.mark.differs(go=LATER)
class TestConfiguration:
    """PayloadProcessorConfig."""

    @pytest.mark.parametrize("flag", ["--config-file", "--config-text"])
    def test_it_says_what_becomes_a_header(self, around: World, tmp_path: Path, flag: str) -> None:
        """The plugins of the profile run, and no others."""
        file = tmp_path / "config.yaml"
        file.write_text(CONFIG)
        with around.body_router(f"{flag}={file if flag == '--config-file' else CONFIG}") as found:
            headers = headers_for(found, body(model="llama", user="me"))
        assert (headers[MODEL], headers["x-user"]) == ("llama", "me")
        assert BASE not in headers


class TestBuffered:
    @pytest.mark.parametrize("modes", [BUFFERED, None], ids=["announced", "not announced"])
    def test_the_model_becomes_a_header(self, shared: Picker, modes: tuple[Mode, Mode] | None) -> None:
        """X-Gateway-Model-Name is the body's model."""
        assert headers_for(shared, body(prompt="x", model="llama"), modes=modes)[MODEL] == "llama"

    def test_the_route_is_looked_up_again(self, shared: Picker) -> None:
        """clear_route_cache, so that the gateway routes by it."""
        assert wire.common(ask(shared, body(model="m", prompt="x"))[1]).clear_route_cache

    def test_headers_wait_for_the_body(self, shared: Picker) -> None:
        """The reply to the headers sets nothing."""
        first = ask(shared, body(model="m", prompt="x"))[0]
        assert wire.kind(first) == "request_headers"
        assert not wire.headers_of(first)

    def test_no_endpoint_is_chosen(self, shared: Picker) -> None:
        """There is no destination, neither as a header nor as metadata."""
        reply = ask(shared, body(model="m", prompt="x"))[1]
        assert wire.DESTINATION not in wire.headers_of(reply)
        assert not wire.metadata_of(reply)

    @pytest.mark.parametrize("name", ["org/model-7b:v1", "mödel", "a b"])
    def test_names(self, shared: Picker, name: str) -> None:
        """Names of all kinds arrive as they are."""
        assert headers_for(shared, body(model=name, prompt="x"))[MODEL] == name

    def test_without_a_model(self, shared: Picker) -> None:
        """The request goes on, and nothing is set."""
        assert MODEL not in headers_for(shared, body(prompt="x"))

    @pytest.mark.parametrize("model", ["", None])
    def test_an_empty_model(self, shared: Picker, model: str | None) -> None:
        """The same."""
        assert not headers_for(shared, body(prompt="x", model=model)).get(MODEL)

    @pytest.mark.differs(go=ENDS)
    @pytest.mark.parametrize("data", [b"{", b"hello", b"[1]", b'{"model":"m"'])
    def test_broken_json(self, shared: Picker, data: bytes) -> None:
        """400."""
        found = answered(ask(shared, data)[1])
        assert found is not None
        assert found.status == 400

    @pytest.mark.differs(go="v1.3 lets everything into headers")
    def test_a_name_that_no_header_can_hold(self, shared: Picker) -> None:
        """400: a line break would begin another header."""
        found = answered(ask(shared, body(model="m\r\nx-evil: 1"))[1])
        assert found is not None
        assert found.status == 400

    @pytest.mark.differs(go=JSON_ONLY)
    def test_a_form(self, shared: Picker) -> None:
        """The model of an upload is a field of its form."""
        data = (
            b'--e\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n\0\r\n'
            b'--e\r\nContent-Disposition: form-data; name="model"\r\n\r\nwhisper\r\n--e--\r\n'
        )
        kind = {"content-type": "multipart/form-data; boundary=e"}
        assert headers_for(shared, data, kind)[MODEL] == "whisper"

    @pytest.mark.differs(go=JSON_ONLY)
    def test_other_content(self, shared: Picker) -> None:
        """It goes on."""
        assert MODEL not in headers_for(shared, b"\0\1", {"content-type": "application/octet-stream"})

    @pytest.mark.differs(go=JSON_ONLY)
    def test_the_beginning_of_a_body(self, shared: Picker) -> None:
        """BUFFERED_PARTIAL: what is here is enough if the model is in it."""
        data = b'{"model":"m","prompt":"' + b"x" * 1000
        assert headers_for(shared, data, modes=(Mode.BUFFERED_PARTIAL, Mode.NONE), end=False)[MODEL] == "m"

    def test_without_a_body(self, shared: Picker) -> None:
        """GET goes on as it is."""
        stream = shared.stream()
        stream.send(wire.request_headers(method="GET", path="/v1/models", end=True))
        reply = stream.receive()
        stream.close()
        assert wire.kind(reply) == "request_headers"
        assert not {MODEL, BASE} & wire.headers_of(reply).keys()

    def test_a_large_body(self, shared: Picker) -> None:
        """A prompt of two megabytes."""
        assert headers_for(shared, body(prompt="x" * 2_000_000, model="m"))[MODEL] == "m"

    def test_the_answer_passes(self, shared: Picker) -> None:
        """A gateway that sends answers here gets them back untouched."""
        stream = shared.stream()
        modes = (Mode.BUFFERED, Mode.BUFFERED)
        stream.send(wire.request_headers(modes=modes), wire.request_body(body(model="m", prompt="x")))
        replies = [stream.receive(), stream.receive()]
        stream.send(wire.response_headers())
        replies.append(stream.receive())
        stream.close()
        assert wire.kind(replies[-1]) == "response_headers"
        assert not wire.headers_of(replies[-1])


def streamed(router: Picker, data: bytes, pieces: int, modes: tuple[Mode, Mode] | None) -> tuple[dict[str, str], bytes]:
    """A request in FULL_DUPLEX_STREAMED: its headers, and the body that goes on."""
    stream = router.stream()
    size = max(1, -(-len(data) // pieces))
    cut = [data[start : start + size] for start in range(0, len(data), size)]
    stream.send(wire.request_headers(modes=modes))
    for number, each in enumerate(cut, 1):
        stream.send(wire.request_body(each, end=number == len(cut)))
    first, found = stream.receive(), []
    while not found or not found[-1][1]:
        found.append(wire.piece(stream.receive()))
    stream.close()
    return wire.headers_of(first), b"".join(each for each, _ in found)


class TestStreamed:
    @pytest.mark.parametrize(("size", "pieces"), [(10, 1), (10, 5), (300_000, 9)])
    def test_by_flag(self, streaming: Picker, size: int, pieces: int) -> None:
        """--streaming: headers first, then the body, in pieces that Envoy takes."""
        data = body(prompt="x" * size, model="llama")
        headers, out = streamed(streaming, data, pieces, None)
        assert (headers[MODEL], out) == ("llama", data)

    @pytest.mark.differs(go=MODES)
    def test_by_announcement(self, shared: Picker) -> None:
        """What Envoy announces counts more than the flag."""
        data = body(prompt="x", model="llama")
        modes = (Mode.FULL_DUPLEX_STREAMED, Mode.NONE)
        headers, out = streamed(shared, data, 3, modes)
        assert (headers[MODEL], out) == ("llama", data)

    def test_without_a_model(self, streaming: Picker) -> None:
        """The body goes on."""
        data = body(prompt="x")
        headers, out = streamed(streaming, data, 2, None)
        assert MODEL not in headers
        assert out == data


@pytest.mark.differs(go="v1.3.0 has no base models, or another label")
class TestBaseModels:
    """Adapters of ConfigMaps."""

    def test_life_of_a_config_map(self, around: World, shared: Picker) -> None:
        """An adapter and a base model become the base model's header, as long as a ConfigMap says so."""
        data = {"baseModel": "llama", "adapters": "- sql-lora\n- code-lora\n"}
        with around.config_map("family", data, **LABEL):
            for model in ("sql-lora", "code-lora", "llama"):
                found = eventually(lambda model=model: headers_for(shared, body(model=model)), lambda got: BASE in got)
                assert (found[MODEL], found[BASE]) == (model, "llama")
        eventually(lambda: BASE not in headers_for(shared, body(model="sql-lora")))

    def test_an_unknown_model(self, shared: Picker) -> None:
        """It has no base model, whatever the client says."""
        reply = ask(shared, body(model="unknown"), {BASE: "forged"})[1]
        mutation = wire.common(reply).header_mutation
        assert mutation is not None
        assert BASE not in wire.headers_of(reply)
        assert [name.lower() for name in mutation.remove_headers] == [BASE]

    def test_config_maps_without_the_label_are_not_read(self, around: World, shared: Picker) -> None:
        """The label is what counts."""
        with around.config_map("other", {"baseModel": "qwen", "adapters": "[quiet-lora]"}):
            with around.config_map("mine", {"baseModel": "llama", "adapters": "[loud-lora]"}, **LABEL):
                eventually(lambda: headers_for(shared, body(model="loud-lora")).get(BASE) == "llama")
                assert BASE not in headers_for(shared, body(model="quiet-lora"))


class TestPlugins:
    """--plugin TYPE:NAME[:JSON]."""

    @pytest.mark.differs(go=LATER)
    def test_fields_of_ones_own(self, around: World) -> None:
        """Several, in place of the default ones."""
        texts = [
            'body-field-to-header:user:{"fieldName":"user","headerName":"X-User"}',
            'body-field-to-header:stream:{"fieldName":"stream","headerName":"X-Stream"}',
        ]
        with around.body_router(*(f"--plugin={text}" for text in texts)) as found:
            headers = headers_for(found, body(model="m", user="me", stream=True))
        assert (headers["x-user"], headers["x-stream"]) == ("me", "true")
        assert not {MODEL, BASE} & headers.keys()

    @pytest.mark.parametrize("text", ["nonsense", "no-such:x", "body-field-to-header:x", "base-model-to-header:x:{"])
    def test_nonsense(self, around: World, text: str) -> None:
        """It does not start, and says what is wrong."""
        with pytest.raises(AssertionError, match=r"ended with status [12]"), around.body_router(f"--plugin={text}"):
            pass


class TestEnvoy:
    """Behind the real Envoy, which routes by the headers."""

    @pytest.fixture
    def engines(self, around: World) -> Iterator[list[Engine]]:
        """For two models, and for all others."""
        with around.engines(3) as found:
            yield found

    def gateway(self, router: Picker, engines: list[Engine], mode: str) -> AbstractContextManager[Gateway]:
        """Two routes by model, one for the rest."""
        routes = tuple((MODEL, name, each.hostport) for name, each in zip(("one", "two"), engines, strict=False))
        return envoy(
            Setup((engines[2].hostport,), router.ports.grpc, mode, "NONE", tls=True, routes=routes),
        )

    @pytest.mark.parametrize(
        "mode", [pytest.param("BUFFERED"), pytest.param("FULL_DUPLEX_STREAMED", marks=pytest.mark.differs(go=MODES))]
    )
    def test_each_model_has_its_engine(self, shared: Picker, engines: list[Engine], mode: str) -> None:
        """The body's model decides which route is taken; the body arrives as it was."""
        with self.gateway(shared, engines, mode) as gateway:
            for model in ("one", "two", "three"):
                sent = body(model=model, prompt="x" * 100_000)
                assert gateway.ask(sent).document["model"] == model
        assert [len(engine.seen) for engine in engines] == [1, 1, 1]
        assert engines[2].seen[0].size == len(sent)

    @pytest.mark.differs(go=ENDS)
    def test_broken_json(self, shared: Picker, engines: list[Engine]) -> None:
        """The client gets 400, and no engine sees it."""
        with self.gateway(shared, engines, "BUFFERED") as gateway:
            assert gateway.ask(b"{").status == 400
        assert not any(engine.seen for engine in engines)


class TestService:
    def test_health(self, shared: Picker) -> None:
        """SERVING."""
        assert shared.health.check("") == "SERVING"

    @pytest.mark.differs(go=LATER)
    def test_metrics(self, open_metrics: Picker) -> None:
        """What was found, and what not, is counted."""
        before = open_metrics.metrics()
        headers_for(open_metrics, body(model="m"))
        headers_for(open_metrics, body(prompt="x"))
        headers_for(open_metrics, body(model=""))
        after = open_metrics.metrics()
        names = ("bbr_success_total", "bbr_body_field_not_found_total", "bbr_body_field_empty_total")
        assert [after.value(name) - before.value(name) for name in names] == [1, 1, 1]
        assert after.value("bbr_info") == 1
        assert after.value("bbr_plugin_duration_seconds_count", plugin_type="body-field-to-header") >= 3

    def test_metrics_take_a_token(self, shared: Picker) -> None:
        """Unless a flag says otherwise."""
        assert shared.get("/metrics")[0] == 401

    @pytest.mark.differs(go=LATER)
    def test_the_other_transport(self, around: World) -> None:
        """--transport=h2 does the same."""
        with around.body_router("--transport=h2") as found:
            assert headers_for(found, body(model="m"))[MODEL] == "m"

    def test_the_end(self, around: World) -> None:
        """SIGTERM ends it well."""
        with around.body_router() as found:
            found.disconnect()
            found.process.signal(signal.SIGTERM)
            assert found.process.wait(40) == 0
