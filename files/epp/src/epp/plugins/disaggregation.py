# SPDX-License-Identifier: GPL-3.0-or-later
"""What the handlers for disaggregated prefill and decode share: headers for the proxy beside the decoding engine."""

from __future__ import annotations

from epp.model import Charge, Decision, Endpoint, InferenceRequest
from epp.plugins.prefixes import uncached_tokens

PREFILL_HEADER = "x-prefiller-host-port"
ENCODE_HEADER = "x-encoder-hosts-ports"
DATA_PARALLEL_HEADER = "x-data-parallel-host-port"
DECODE, PREFILL, ENCODE = "decode", "prefill", "encode"
"""Profiles' names when nobody says otherwise."""
PEER = "peer-endpoint"
"""Attribute of a request with the endpoint that will decode, while the others are chosen."""


def set_headers(decision: Decision, prefill: str, encode: str) -> None:
    """Tell the proxy who prefills (one) and who encodes (all); clients cannot."""
    prefillers, encoders = decision.profiles.get(prefill, ()), decision.profiles.get(encode, ())
    decision.headers[PREFILL_HEADER] = prefillers[0].hostport if prefillers else ""
    decision.headers[ENCODE_HEADER] = ",".join([endpoint.hostport for endpoint in encoders])


def charge(request: InferenceRequest, decision: Decision, prefill: str, encode: str) -> None:
    """The prompt costs who prefills, the answer who decodes; encoders get no tokens."""
    prefillers, encoders = decision.profiles.get(prefill, ()), decision.profiles.get(encode, ())
    charges = [decision.charges[0]]
    if prefillers:
        charges[0] = Charge(decision.endpoints[0], 0, request.output_tokens)
        charges.append(Charge(prefillers[0], uncached_tokens(request, [prefillers[0]])[0]))
    charges += [Charge(endpoint) for endpoint in encoders]
    decision.charges = tuple(charges)


def stages(decision: Decision, prefill: str, encode: str) -> str:
    """What a request came to, in the words of the reference's metric."""
    used = [name for name, profile in (("encode", encode), ("prefill", prefill)) if decision.profiles.get(profile)]
    return "-".join([*used, "decode"]) if used else "decode-only"


def through_port(decision: Decision, port: int) -> None:
    """Send the request to ``port`` of the chosen pods; a header tells the proxy there which rank is meant."""
    decision.headers[DATA_PARALLEL_HEADER] = decision.endpoints[0].hostport
    decision.destination = ",".join([_at_port(endpoint, port) for endpoint in decision.endpoints])


def _at_port(endpoint: Endpoint, port: int) -> str:
    return f"[{endpoint.address}]:{port}" if ":" in endpoint.address else f"{endpoint.address}:{port}"
