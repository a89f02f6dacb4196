# SPDX-License-Identifier: GPL-3.0-or-later
"""Envoy's ext_proc messages: what is read from requests, how replies are built. Pure functions, no state.

Names of headers and metadata are those of the endpoint picker protocol; new spellings (``x-llm-d-*``) stand before the
old ones (``x-gateway-*``), and the first that is present counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import IntEnum

from envoy.config.core.v3.base_pb2 import HeaderValue, HeaderValueOption
from envoy.extensions.filters.http.ext_proc.v3.processing_mode_pb2 import ProcessingMode
from envoy.service.ext_proc.v3.external_processor_pb2 import (
    BodyMutation,
    BodyResponse,
    CommonResponse,
    HeaderMutation,
    HeadersResponse,
    HttpHeaders,
    ImmediateResponse,
    ProcessingRequest,
    ProcessingResponse,
    StreamedBodyResponse,
    TrailersResponse,
)
from envoy.type.v3.http_status_pb2 import HttpStatus
from google.protobuf.struct_pb2 import Struct

from epp.model import Immediate, Rejection

DESTINATION = "x-gateway-destination-endpoint"
SCORES = "x-gateway-destination-endpoint-scores"
SUBSET = "x-gateway-destination-endpoint-subset"
SUBSET_NAMESPACE = "envoy.lb.subset_hint"
LB_NAMESPACE = "envoy.lb"
SERVED = "x-gateway-destination-endpoint-served"
REQUEST_ID = "x-request-id"
POOL = "x-gateway-inference-pool"
PREFER = "prefer"
DROPPED_REASON = "x-llm-d-request-dropped-reason"
RESPONSE_MARK = "x-went-into-resp-headers"
OBJECTIVE = ("x-llm-d-inference-objective", "x-gateway-inference-objective")
FAIRNESS_ID = ("x-llm-d-inference-fairness-id", "x-gateway-inference-fairness-id")
MODEL_REWRITE = ("x-llm-d-model-name-rewrite", "x-gateway-model-name-rewrite")
MODEL_NAME = "x-gateway-model-name"
"""Set by whatever routed the request here by its model; the only word of the model while the body is unseen."""

MAX_CHUNK = 62_000
"""Bytes of body per message: Envoy refuses larger ones than 64 KiB with its default limits."""

_OVERWRITE = HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD


class BodyMode(IntEnum):
    """How Envoy sends a body, by the numbers of its own enumeration."""

    NONE = ProcessingMode.NONE
    STREAMED = ProcessingMode.STREAMED
    BUFFERED = ProcessingMode.BUFFERED
    BUFFERED_PARTIAL = ProcessingMode.BUFFERED_PARTIAL
    FULL_DUPLEX_STREAMED = ProcessingMode.FULL_DUPLEX_STREAMED


def header_map(headers: HttpHeaders) -> dict[str, str]:
    """Header names (Envoy sends them in lower case) to values; of a repeated header the values joined with commas."""
    found: dict[str, str] = {}
    for header in headers.headers.headers:
        raw = header.raw_value
        value = raw.decode("utf-8", "replace") if raw else header.value
        key = header.key
        found[key] = f"{found[key]},{value}" if key in found else value
    return found


def first_header(headers: Mapping[str, str], names: tuple[str, ...]) -> str:
    """The value of the first of ``names`` that is present and not empty."""
    return next((value for name in names if (value := headers.get(name))), "")


def subset_hint(message: ProcessingRequest) -> frozenset[str] | None:
    """The endpoints (``ip`` or ``ip:port``) that the gateway allows; None when it does not restrict.

    The hint is a list of strings, or one string with commas. An empty hint allows nothing.
    """
    if SUBSET_NAMESPACE not in message.metadata_context.filter_metadata:
        return None
    fields = message.metadata_context.filter_metadata[SUBSET_NAMESPACE].fields
    if SUBSET not in fields:
        return None
    value = fields[SUBSET]
    if value.WhichOneof("kind") == "list_value":
        texts = [item.string_value for item in value.list_value.values]
    else:
        texts = [value.string_value]
    return frozenset(part for text in texts for part in re.split(r"[,\s]+", text) if part)


def served_endpoint(message: ProcessingRequest) -> str:
    """The endpoint that answered, by the gateway's word (``ip:port``); empty when it does not say."""
    metadata = message.metadata_context.filter_metadata
    if LB_NAMESPACE not in metadata or SERVED not in metadata[LB_NAMESPACE].fields:
        return ""
    served: str = metadata[LB_NAMESPACE].fields[SERVED].string_value
    return served.strip()


def pool_hints(message: ProcessingRequest) -> tuple[str, ...]:
    """The parts of all attributes that Envoy was configured to send (``xds.route_name``, ``xds.cluster_name`` ...).

    Gateways write the names of the objects that a route was made from into its name, separated by slashes.
    """
    texts = [value.string_value for group in message.attributes.values() for value in group.fields.values()]
    return tuple(part for text in texts for part in text.split("/") if part)


def prefers(headers: Mapping[str, str], preference: str) -> bool:
    """Whether the client states this preference (RFC 7240)."""
    stated = headers.get(PREFER, "")
    if not stated:
        return False
    tokens = (part.partition(";")[0].partition("=")[0].strip().lower() for part in stated.split(","))
    return preference in tokens


def body_mode(number: int) -> BodyMode:
    """The body mode that Envoy announced; ValueError for one that this EPP cannot serve."""
    try:
        return BodyMode(number)
    except ValueError:
        raise ValueError(
            f"body mode {number} is not supported; use FULL_DUPLEX_STREAMED, BUFFERED, BUFFERED_PARTIAL or STREAMED"
        ) from None


def routing(headers: Mapping[str, str], body: bytes | None = None, removed: Sequence[str] = ()) -> CommonResponse:
    """The part of a reply that sends the request on: headers to set and to remove, the route to be looked up again, a
    new body."""
    if not headers and not removed and body is None:
        return CommonResponse()
    common = CommonResponse(header_mutation=set_headers(headers), clear_route_cache=True)
    if removed:
        common.header_mutation.remove_headers.extend(removed)
    if body is not None:
        common.body_mutation.body = body
    return common


def set_headers(headers: Mapping[str, str]) -> HeaderMutation:
    """Headers to set in place of whatever is there, as raw bytes."""
    options = [
        HeaderValueOption(header=HeaderValue(key=key, raw_value=value.encode()), append_action=_OVERWRITE)
        for key, value in headers.items()
    ]
    return HeaderMutation(set_headers=options)


def lb_metadata(destination: str, scores: Mapping[str, float]) -> Struct:
    """Dynamic metadata for the load balancer: the destination and, if any, the score of each endpoint."""
    metadata = Struct()
    values = metadata.fields[LB_NAMESPACE].struct_value.fields
    values[DESTINATION].string_value = destination
    for endpoint, score in scores.items():
        values[SCORES].struct_value.fields[endpoint].number_value = score
    return metadata


def request_headers(common: CommonResponse | None = None) -> ProcessingResponse:
    """Answer to request headers; without ``common`` they go on as they are."""
    return ProcessingResponse(request_headers=HeadersResponse(response=common))


def request_body(common: CommonResponse | None = None) -> ProcessingResponse:
    """Answer to a request body that Envoy holds; without ``common`` it goes on as it is."""
    return ProcessingResponse(request_body=BodyResponse(response=common))


def response_headers(headers: Mapping[str, str]) -> ProcessingResponse:
    """Answer to response headers."""
    return ProcessingResponse(
        response_headers=HeadersResponse(response=CommonResponse(header_mutation=set_headers(headers)))
    )


def response_body(body: bytes | None = None, fixed_length: bool = False) -> ProcessingResponse:
    """Answer to a response body that Envoy holds; ``body`` replaces it, None lets it pass.

    With ``fixed_length`` the headers announced a length that Envoy insists on (BUFFERED), so it is announced anew.
    """
    common = replacement(body)
    if common is not None and body is not None and fixed_length:
        common.header_mutation.CopyFrom(set_headers({"content-length": str(len(body))}))
    return ProcessingResponse(response_body=BodyResponse(response=common))


def replacement(body: bytes | None) -> CommonResponse | None:
    """The mutation that puts ``body`` in place of the body (or chunk) that Envoy holds; None for no mutation."""
    if body is None:
        return None
    mutation = BodyMutation(body=body) if body else BodyMutation(clear_body=True)
    return CommonResponse(body_mutation=mutation)


def request_trailers() -> ProcessingResponse:
    """Answer to request trailers."""
    return ProcessingResponse(request_trailers=TrailersResponse())


def response_trailers() -> ProcessingResponse:
    """Answer to response trailers."""
    return ProcessingResponse(response_trailers=TrailersResponse())


def reported(
    messages: Iterable[ProcessingResponse], values: Mapping[str, Mapping[str, float]]
) -> list[ProcessingResponse]:
    """The same messages, the last of them with dynamic metadata: numbers by namespace and key."""
    answers = list(messages)
    if answers:
        metadata = answers[-1].dynamic_metadata
        for namespace, figures in values.items():
            for key, number in figures.items():
                metadata.fields[namespace].struct_value.fields[key].number_value = number
    return answers


def streamed(body: bytes, end: bool, of_request: bool) -> Iterator[ProcessingResponse]:
    """A body for FULL_DUPLEX_STREAMED, cut to size. Built one message at a time, as they are asked for."""
    view = memoryview(body)
    size = len(view)
    for start in range(0, size, MAX_CHUNK) or (0,):
        last = start + MAX_CHUNK >= size
        if not size and not end:
            return
        chunk = StreamedBodyResponse(body=bytes(view[start : start + MAX_CHUNK]), end_of_stream=end and last)
        answer = BodyResponse(response=CommonResponse(body_mutation=BodyMutation(streamed_response=chunk)))
        yield ProcessingResponse(request_body=answer) if of_request else ProcessingResponse(response_body=answer)


def immediate(answer: Immediate) -> ProcessingResponse:
    """The answer to the client of a request that goes nowhere."""
    reason = answer.reason if isinstance(answer, Rejection) else ""
    response = ImmediateResponse(status=HttpStatus(code=answer.status), body=answer.body().encode(), details=reason)
    headers = {**answer.headers(), **({DROPPED_REASON: reason} if reason else {})}
    if headers:
        response.headers.CopyFrom(set_headers(headers))
    return ProcessingResponse(immediate_response=response)
