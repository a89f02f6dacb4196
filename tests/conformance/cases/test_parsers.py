# SPDX-License-Identifier: GPL-3.0-or-later
"""Interfaces of model servers: which bodies are understood, what is read from them and from their answers."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import yaml

from conformance.kit import wire
from conformance.kit.picker import Picker
from conformance.kit.talk import Refused, destinations, refuse, route, served, talk
from conformance.kit.wait import eventually
from conformance.kit.world import Pool, Standing, World

NO_PROMPT = "v1.3 knows completions and chat completions only, and refuses bodies without a prompt or messages"
NO_MODEL = "v1.3 refuses every body without a model"
ONLY_JSON = "v1.3 decodes every body as JSON"
PARSERS = "parsers are of later versions"
ONLY_USAGE = "v1.3 reads the usage of the completion interfaces only, and dies of a plain one with other names"
NAME = "v1.3 leaves the names of models in answers alone"
REENCODES = "v1.3 decodes and re-encodes bodies"
RESPONDER = "models-responder is of later versions"
REWRITE = {"x-gateway-model-name-rewrite": "target"}
FORM = {"content-type": 'multipart/form-data; boundary="edge"'}
GRPC = {"content-type": "application/grpc"}


def encoded(**members: Any) -> bytes:
    return json.dumps(members).encode()


def form(model: str = "whisper", size: int = 1000) -> bytes:
    """An audio upload."""
    return (
        b'--edge\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n'
        b"Content-Type: audio/wav\r\n\r\n" + b"\0\xff\r\n--edg" * (size // 9) + b"\r\n"
        b'--edge\r\nContent-Disposition: form-data; name="model"\r\n\r\n' + model.encode() + b"\r\n--edge--\r\n"
    )


def grpc(document: bytes) -> bytes:
    """JSON in the message of Vertex AI's PredictionService: an endpoint, and an HttpBody with a type and data."""
    http = _field(1, b"application/json") + _field(2, document)
    message = _field(1, b"projects/p/locations/l/endpoints/e") + _field(2, http)
    return b"\0" + len(message).to_bytes(4, "big") + message


def _field(number: int, value: bytes) -> bytes:
    length, size = b"", len(value)
    while size > 127:
        length += bytes([size & 127 | 128])
        size >>= 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + value


def config(*parsers: str, plugins: tuple[str, ...] = ()) -> str:
    """A configuration with these parsers, if any, and more plugins."""
    document: dict[str, Any] = {
        "apiVersion": "inference.networking.x-k8s.io/v1alpha1",
        "kind": "EndpointPickerConfig",
        "plugins": [{"type": name} for name in ("queue-scorer", *plugins, *parsers)],
        "schedulingProfiles": [{"name": "default", "plugins": [{"pluginRef": "queue-scorer"}]}],
    }
    if parsers:
        document["requestHandler"] = {"parsers": [{"pluginRef": name} for name in parsers]}
    return yaml.safe_dump(document)


class Counted:
    """Sums of the picker's own metrics for a model."""

    def __init__(self, picker: Picker, model: str) -> None:
        self._picker, self._model = picker, model

    def tokens(self, kind: str) -> float:
        return self._picker.metrics().value(f"inference_objective_{kind}_sum", model_name=self._model)

    def requests(self) -> float:
        return self._picker.metrics().value("inference_objective_request_total", model_name=self._model)


BODIES = [
    ("/v1/messages", {"model": "m", "max_tokens": 9, "system": "be", "messages": [{"role": "user", "content": "hi"}]}),
    ("/v1/messages/count_tokens", {"model": "m", "messages": [{"role": "user", "content": "hi"}]}),
    ("/inference/v1/generate", {"token_ids": [1, 2, 3], "sampling_params": {"max_tokens": 4}}),
    ("/v1/conversations", {"items": [{"type": "message", "role": "user", "content": "hi"}]}),
    ("/v1/images/generations", {"prompt": "a cat"}),
    ("/v1/audio/speech", {"input": "hello"}),
    ("/v1/chat/completions/render", {"model": "m", "messages": []}),
    ("/v2/rerank", {"model": "m", "query": "q", "documents": ["a", "b"]}),
    ("/tokenize", {"model": "m", "prompt": "hello"}),
    ("/something/new", {"model": "m", "whatever": 1}),
]


class TestBodies:
    """With the parsers that are there when nobody configures any."""

    @pytest.mark.differs(go=NO_PROMPT)
    @pytest.mark.parametrize(("path", "body"), BODIES, ids=[path for path, _ in BODIES])
    def test_each_goes_on_as_it_came(self, picker: Picker, pool: Pool, path: str, body: dict[str, Any]) -> None:
        """The body goes to an endpoint, byte by byte."""
        sent = json.dumps(body, indent=1).encode()
        found = route(picker, sent, path=path)
        assert found.destination in pool.hostports
        assert found.body == sent

    @pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens"])
    def test_anthropic_needs_a_model(self, picker: Picker, path: str) -> None:
        """Without a model: 400."""
        assert refuse(picker, encoded(messages=[]), path=path).status == 400

    @pytest.mark.differs(go=ONLY_JSON)
    @pytest.mark.parametrize("body", [b"\0\1\2", b"{", b"[]", b'{"model": 7}'])
    def test_what_nobody_knows_passes(self, picker: Picker, body: bytes) -> None:
        """On a path that no parser knows anything goes on."""
        assert route(picker, body, path="/custom").body == body

    @pytest.mark.differs(go=NO_PROMPT)
    def test_a_conversation_stays_where_its_beginning_is(self, picker: Picker) -> None:
        """Anthropic's messages with the same system prompt go where its prefix is cached."""
        system = "You are a careful assistant. " * 400

        def ask(turns: int) -> str:
            messages = [{"role": "user", "content": f"turn {number}"} for number in range(turns)]
            body = encoded(model="m", max_tokens=9, system=system, messages=messages)
            return served(picker, body, path="/v1/messages").destination

        first = ask(1)
        assert {ask(turns) for turns in range(2, 9)} == {first}


class TestForms:
    """Uploads of audio."""

    @pytest.mark.differs(go=ONLY_JSON)
    @pytest.mark.parametrize("path", ["/v1/audio/transcriptions", "/v1/audio/translations"])
    def test_the_model_is_a_field(self, picker: Picker, path: str) -> None:
        """The form's model is the request's."""
        counted = Counted(picker, f"form{len(path)}")
        found = route(picker, form(f"form{len(path)}"), FORM, path=path)
        assert found.body == form(f"form{len(path)}")
        eventually(lambda: counted.requests() == 1)

    @pytest.mark.differs(go=ONLY_JSON)
    @pytest.mark.parametrize("pieces", [1, 7])
    def test_it_is_rewritten_where_it_stands(self, picker: Picker, pieces: int) -> None:
        """A rewrite changes the bytes of this field, and no others."""
        body = form(size=200_000)
        found = route(picker, body, {**FORM, **REWRITE}, path="/v1/audio/transcriptions", pieces=pieces)
        assert found.body == body.replace(b"whisper", b"target")

    @pytest.mark.differs(go=ONLY_JSON)
    def test_a_form_without_a_model(self, picker: Picker) -> None:
        """It goes on."""
        body = form().replace(b'name="model"', b'name="other"')
        assert route(picker, body, FORM, path="/v1/audio/transcriptions").body == body


@pytest.fixture(scope="module")
def configured(around: World, main_pool: Pool) -> Iterator[Callable[[str], Picker]]:
    """Pickers by configuration, one at a time."""
    running = contextlib.ExitStack()
    current: dict[str, Standing] = {}

    def get(text: str) -> Picker:
        if text not in current:
            running.close()
            current.clear()
            current[text] = running.enter_context(Standing(around, main_pool.name, config=text))
        return current[text].get()

    yield get
    running.close()


Configured = Callable[[str], Picker]


class TestLists:
    """Parsers by configuration."""

    @pytest.mark.differs(go=PARSERS)
    def test_without_a_fallback_unknown_paths_are_refused(self, configured: Configured) -> None:
        """400, and it says which path."""
        found = refuse(configured(config("openai-parser")), encoded(model="m", messages=[]), path="/v1/messages")
        assert found.status == 400
        assert "/v1/messages" in found.body

    @pytest.mark.differs(go=PARSERS)
    def test_known_paths_are_not(self, configured: Configured) -> None:
        """What the parser knows goes on."""
        assert route(configured(config("openai-parser")), encoded(model="m", prompt="x"), path="/v1/completions")

    @pytest.mark.differs(go=PARSERS)
    def test_requests_without_a_body_need_no_parser(self, configured: Configured) -> None:
        """GET /whatever goes on."""
        assert route(configured(config("openai-parser")), b"", method="GET", path="/whatever")

    @pytest.mark.differs(go=PARSERS)
    def test_several(self, configured: Configured) -> None:
        """Each of the parsers knows its own."""
        found = configured(config("openai-parser", "anthropic-parser", "sglanghttp-parser"))
        assert route(found, encoded(model="m", messages=[]), path="/v1/messages")
        assert route(found, encoded(text="hello"), path="/generate")
        assert route(found, encoded(model="m", prompt="x"), path="/v1/completions")

    @pytest.mark.differs(go=PARSERS)
    def test_vllms_parser_knows_the_openai_api(self, configured: Configured) -> None:
        """vllmhttp-parser alone takes both."""
        found = configured(config("vllmhttp-parser"))
        assert route(found, encoded(token_ids=[1]), path="/inference/v1/generate")
        assert refuse(found, encoded(prompt="x"), path="/v1/completions").status == 400

    @pytest.mark.differs(go=PARSERS)
    @pytest.mark.parametrize("body", [b"{", b"\0\1", encoded(prompt="x")])
    def test_passthrough_alone_looks_at_nothing(self, configured: Configured, body: bytes) -> None:
        """Anything goes on, on any path."""
        assert route(configured(config("passthrough-parser")), body, path="/v1/completions").body == body

    @pytest.mark.differs(go=PARSERS)
    @pytest.mark.parametrize("method", ["ChatCompletions", "RawPredict"])
    def test_vertex_ai(self, configured: Configured, method: str) -> None:
        """JSON inside of gRPC: the model is read, and rewritten with all lengths around it."""
        found = configured(config("vertexai-parser"))
        path = f"/google.cloud.aiplatform.v1beta1.PredictionService/{method}"
        document = encoded(model="gemma", messages=[{"role": "user", "content": "x" * 300}], input="y")
        assert route(found, grpc(document), {**GRPC, **REWRITE}, path=path).body == grpc(
            document.replace(b'"gemma"', b'"target"')
        )
        counted = Counted(found, "gemma")
        eventually(lambda: counted.requests() >= 1)


VLLM_GRPC = "/vllm.grpc.engine.VllmEngine/"


def framed(message: bytes) -> bytes:
    """A gRPC message that is not compressed."""
    return b"\0" + len(message).to_bytes(4, "big") + message


def _number(number: int, value: int) -> bytes:
    """A field of a protobuf message: a number below 128."""
    return bytes([number << 3, value])


@pytest.mark.differs(go=PARSERS)
class TestVLLMsGRPC:
    """Generate and Embed of vLLM's gRPC server, with vllmgrpc-parser."""

    TEXT = framed(_field(1, b"r-1") + _field(3, b"hello " * 60) + _field(4, _number(8, 9)) + _number(5, 1))
    IDS = framed(_field(1, b"r-2") + _field(2, _field(2, bytes(range(100)) * 3)))
    CHUNK = framed(_field(1, _field(1, b"\5\6\7") + _number(2, 15) + _number(3, 3) + _number(4, 7)))
    END = framed(_field(2, _field(1, b"\7") + _field(2, b"stop") + _number(3, 15) + _number(4, 3) + _number(5, 7)))

    @pytest.fixture
    def grpc_picker(self, configured: Configured) -> Picker:
        return configured(config("vllmgrpc-parser"))

    @pytest.mark.parametrize(("method", "body"), [("Generate", TEXT), ("Generate", IDS), ("Embed", IDS)])
    def test_a_request(self, grpc_picker: Picker, pool: Pool, method: str, body: bytes) -> None:
        """It goes to an endpoint as it came, also where the model is rewritten: it names none."""
        found = route(grpc_picker, body, {**GRPC, **REWRITE}, path=VLLM_GRPC + method)
        assert found.destination in pool.hostports
        assert found.body == body

    def test_the_prefix_stays(self, configured: Configured) -> None:
        """Equal prompts, as text or as token ids, go where they went before."""
        document = yaml.safe_load(config("vllmgrpc-parser"))
        document["plugins"].append({"type": "prefix-cache-scorer"})
        document["schedulingProfiles"][0]["plugins"] = [{"pluginRef": "prefix-cache-scorer"}]
        found = configured(yaml.safe_dump(document))
        for prompt in (self.TEXT, self.IDS):
            seen = {route(found, prompt, GRPC, path=VLLM_GRPC + "Generate").destination for _ in range(12)}
            assert len(seen) == 1

    @pytest.mark.parametrize("body", [b"\0\0", b"\1" + TEXT[1:], TEXT + b"x", framed(_number(5, 1)), framed(b"\x0b")])
    def test_what_cannot_be_read(self, grpc_picker: Picker, body: bytes) -> None:
        """Cut short, compressed, more than one message, without a prompt, no protobuf: 400."""
        assert refuse(grpc_picker, body, GRPC, path=VLLM_GRPC + "Generate").status == 400

    def test_other_methods(self, grpc_picker: Picker, pool: Pool) -> None:
        """They pass unread."""
        assert route(grpc_picker, b"\1?", GRPC, path=VLLM_GRPC + "HealthCheck").destination in pool.hostports

    @pytest.mark.parametrize("pieces", [1, 7, 1000])
    def test_usage(self, grpc_picker: Picker, pieces: int) -> None:
        """Pieces of a streamed answer are added up; its last message counts nothing twice."""
        model = f"grpc {pieces}"
        answer = self.CHUNK * 7 + self.END
        with talk(grpc_picker) as one:
            asked = {**GRPC, "x-gateway-model-name": model}
            assert not isinstance(one.ask(self.TEXT, asked, path=VLLM_GRPC + "Generate"), Refused)
            assert one.answer(answer, "application/grpc", pieces=pieces) == answer
            one.finish()
        counted = Counted(grpc_picker, model)
        eventually(lambda: counted.tokens("output_tokens") == 21)
        assert (counted.tokens("input_tokens"), counted.tokens("prompt_cached_tokens")) == (15, 7)


MESSAGE_START = encoded(
    type="message_start",
    message={
        "id": "1",
        "model": "target",
        "usage": {
            "input_tokens": 5,
            "cache_read_input_tokens": 7,
            "cache_creation_input_tokens": 3,
            "output_tokens": 1,
        },
    },
)
ANTHROPIC = (
    b"event: message_start\ndata: "
    + MESSAGE_START
    + b"\n\n"
    + b'event: content_block_delta\ndata: {"type":"content_block_delta","delta":{"text":"hello "}}\n\n' * 600
    + b'event: message_delta\ndata: {"type":"message_delta","delta":{},"usage":{"output_tokens":21}}\n\n'
    + b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
)
RESPONSES = (
    b'event: response.created\ndata: {"type":"response.created","response":{"usage":null}}\n\n'
    b'event: response.output_text.delta\ndata: {"delta":"x"}\n\n'
    b'event: response.completed\ndata: {"type":"response.completed","response":{"output":[],"usage":{"input_tokens":15,'
    b'"input_tokens_details":{"cached_tokens":7},"output_tokens":21,"total_tokens":36},"user":null}}\n\n'
)
SGLANG = b'{"text":"x","meta_info":{"prompt_tokens":15,"completion_tokens":21,"cached_tokens":7}}'
ANSWERS = {
    "Anthropic, plain": (
        "/v1/messages",
        json.dumps({"usage": json.loads(MESSAGE_START)["message"]["usage"] | {"output_tokens": 21}}).encode(),
        wire.JSON,
    ),
    "Anthropic, streamed": ("/v1/messages", ANTHROPIC, wire.EVENTS),
    "responses, streamed": ("/v1/responses", RESPONSES, wire.EVENTS),
    "SGLang, plain": ("/generate", SGLANG, wire.JSON),
    "SGLang, streamed": ("/generate", b"data: " + SGLANG + b"\n\ndata: [DONE]\n\n", wire.EVENTS),
}


class TestUsage:
    """Token counts in the answers of each interface."""

    @pytest.mark.differs(go=ONLY_USAGE)
    @pytest.mark.parametrize("name", ANSWERS)
    @pytest.mark.parametrize("pieces", [1, 40])
    def test_it_is_counted(self, picker: Picker, name: str, pieces: int) -> None:
        """Input, output and cached tokens."""
        path, answer, kind = ANSWERS[name]
        model = f"{name} {pieces}"
        with talk(picker) as one:
            outcome = one.ask(encoded(model=model, prompt="x", messages=[], input="x"), path=path)
            assert not isinstance(outcome, Refused)
            assert one.answer(answer, kind, pieces=pieces) == answer
            one.finish()
        counted = Counted(picker, model)
        eventually(lambda: counted.tokens("output_tokens") == 21)
        assert (counted.tokens("input_tokens"), counted.tokens("prompt_cached_tokens")) == (15, 7)

    @pytest.mark.differs(go=NAME)
    def test_names_in_anthropics_events_change_back(self, picker: Picker) -> None:
        """The client sees the model that it asked for."""
        with talk(picker) as one:
            one.ask(encoded(model="asked", messages=[]), REWRITE, path="/v1/messages")
            assert one.answer(ANTHROPIC, wire.EVENTS, pieces=90) == ANTHROPIC.replace(b'"target"', b'"asked"')


@pytest.mark.differs(go=RESPONDER)
class TestModels:
    """GET /v1/models, answered by the picker."""

    @pytest.fixture
    def listed(self, around: World) -> Iterator[tuple[Pool, Picker]]:
        """Three engines with different models."""
        with around.pool("listed") as pool:
            for number, engine in enumerate(pool.engines):
                engine.models = ("base", f"lora-{number}")
            with around.picker(pool.name, config=config(plugins=("models-responder",))) as found:
                yield pool, found

    def ask(self, found: Picker, **more: Any) -> list[str]:
        """The ids of an answer with 200."""
        answer = refuse(found, b"", method="GET", path="/v1/models", **more)
        assert (answer.status, answer.headers.get("content-type")) == (200, "application/json")
        return [each["id"] for each in json.loads(answer.body)["data"]]

    def test_all_of_them(self, listed: tuple[Pool, Picker]) -> None:
        """Each model once, of all endpoints; of the gateway's subset only; all else passes."""
        pool, found = listed
        everything = ["base", "lora-0", "lora-1", "lora-2"]
        eventually(lambda: self.ask(found) == everything)
        assert self.ask(found, hint=[pool.hostports[1]]) == ["base", "lora-1"]
        assert refuse(found, b"", method="GET", path="/v1/models", hint=["10.9.9.9:1"]).status == 503
        assert route(found, b"", method="GET", path="/health").destination in pool.hostports
        assert destinations(found, 20) <= set(pool.hostports)

    def test_of_an_empty_pool(self, around: World) -> None:
        """503."""
        with around.pool("unlisted", engines=0) as pool:
            with around.picker(pool.name, config=config(plugins=("models-responder",))) as found:
                assert refuse(found, b"", method="GET", path="/v1/models").status == 503
