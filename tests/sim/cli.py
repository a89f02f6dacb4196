# SPDX-License-Identifier: GPL-3.0-or-later
"""Flags → settings → running servers. vLLM's own flag names where they exist, so that its arguments work unchanged."""

from __future__ import annotations

import argparse
import ipaddress
import json
import logging
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, Final

from sim import __version__
from sim.run import RunSettings, run
from sim.settings import EngineSettings, Faults, LoraModule, ServerSettings, SettingsError, TimingModel

LOG: Final = logging.getLogger("sim")

# Flags of vLLM that cannot matter without a model or a GPU: accepted, named in the log, and without effect.
_VALUE_FLAGS_WITHOUT_EFFECT: Final = (
    "--dtype",
    "--tokenizer",
    "--load-format",
    "--download-dir",
    "--quantization",
    "--kv-cache-dtype",
    "--generation-config",
    "--seed",
    "--tensor-parallel-size",
    "-tp",
    "--pipeline-parallel-size",
    "-pp",
    "--gpu-memory-utilization",
    "--swap-space",
    "--chat-template",
    "--uvicorn-log-level",
    "--max-log-len",
    "--distributed-executor-backend",
    "--tool-call-parser",
    "--reasoning-parser",
    "--max-lora-rank",
    "--max-cpu-loras",
    "--max-seq-len-to-capture",
    "--attention-backend",
    "--model-impl",
    "--revision",
)
_BARE_FLAGS_WITHOUT_EFFECT: Final = (
    "--trust-remote-code",
    "--enforce-eager",
    "--disable-log-requests",
    "--disable-log-stats",
    "--enable-chunked-prefill",
    "--no-enable-log-requests",
    "--disable-uvicorn-access-log",
    "--enable-auto-tool-choice",
    "--async-scheduling",
)


def main(argv: Sequence[str]) -> int:
    """Run the program; return its exit status: 0 after SIGTERM or SIGINT, 1 if it cannot listen, 2 for wrong flags."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    parser = make_parser()
    arguments = parser.parse_args(normalise(argv))
    try:
        server, where = settings_from(arguments)
    except SettingsError as error:
        parser.error(str(error))
    if arguments.without_effect:
        LOG.info("accepted without effect: %s", " ".join(sorted(set(arguments.without_effect))))
    try:
        return run(server, where)
    except OSError as error:
        LOG.error("cannot listen: %s", error)
        return 1


def normalise(argv: Sequence[str]) -> list[str]:
    """Return the arguments in one spelling: without a leading `serve`, and with dashes in flag names, as vLLM allows
    both.
    """
    rest = list(argv[1:] if argv and argv[0] == "serve" else argv)
    return [re.sub(r"^--[^=]*", lambda match: match[0].replace("_", "-"), argument) for argument in rest]


class _Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows a flag's default where there is one to show."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        """Return the help of a flag."""
        return super()._get_help_string(action) if action.default else action.help


class _WithoutEffect(argparse.Action):
    """Remembers that a flag without effect was given."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        """Note the flag's name."""
        namespace.without_effect = [*namespace.without_effect, option_string]


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all flags."""
    parser = argparse.ArgumentParser(
        prog="vllm-sim",
        description="A simulator of the vLLM model server. `vllm-sim serve MODEL ...` takes what `vllm serve` takes.",
        formatter_class=_Formatter,
        allow_abbrev=False,
    )
    parser.set_defaults(without_effect=[])
    parser.add_argument("--version", action="version", version=f"vllm-sim {__version__}")
    _add_server_flags(parser)
    _add_engine_flags(parser)
    _add_timing_flags(parser)
    _add_instance_flags(parser)
    ignored = parser.add_argument_group("flags of vLLM that are accepted without effect")
    for flag in _VALUE_FLAGS_WITHOUT_EFFECT:
        ignored.add_argument(flag, action=_WithoutEffect, default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    for flag in _BARE_FLAGS_WITHOUT_EFFECT:
        ignored.add_argument(flag, action=_WithoutEffect, nargs=0, default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    ignored.description = " ".join([*_VALUE_FLAGS_WITHOUT_EFFECT, *_BARE_FLAGS_WITHOUT_EFFECT])
    return parser


def _add_server_flags(parser: argparse.ArgumentParser) -> None:
    """Add vLLM's flags of the HTTP server and the models."""
    group = parser.add_argument_group("server (vLLM's names)")
    group.add_argument("model_tag", nargs="?", metavar="MODEL", help="the model; the same as --model")
    group.add_argument("--model", help="name or path of the model")
    group.add_argument(
        "--served-model-name", nargs="+", metavar="NAME", help="names to serve it under (default: the model)"
    )
    group.add_argument("--host", default="0.0.0.0", help="address to listen on; the first one with --count")
    group.add_argument("--port", type=int, default=8000, help="port to listen on; the first one with --port-step")
    group.add_argument("--api-key", nargs="+", default=[], metavar="KEY", help="bearer tokens that /v1 asks for")
    group.add_argument(
        "--enable-request-id-headers",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="answer with X-Request-Id, the request's own or a new one",
    )
    group.add_argument(
        "--enable-prompt-tokens-details",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="say in `usage` how many prompt tokens were cached (vLLM's default is off)",
    )
    group.add_argument("--enable-lora", action="store_true", help="serve LoRA adapters")
    group.add_argument("--max-loras", type=int, default=1, help="adapters that can run at the same time")
    group.add_argument(
        "--lora-modules", nargs="+", default=[], metavar="NAME=PATH", help='adapters; also {"name", "path"}'
    )


def _add_engine_flags(parser: argparse.ArgumentParser) -> None:
    """Add vLLM's flags of the scheduler and the cache."""
    defaults = EngineSettings()
    group = parser.add_argument_group("scheduler and KV cache (vLLM's names, except the last)")
    group.add_argument("--max-num-seqs", type=int, default=defaults.max_num_seqs, help="sequences in a batch")
    group.add_argument(
        "--max-num-batched-tokens",
        type=_tokens,
        default=defaults.max_num_batched_tokens,
        help="tokens in a step; longer prompts are computed in chunks",
    )
    group.add_argument(
        "--max-model-len",
        type=_tokens,
        help="longest prompt and answer together, in tokens; default: 131072, or what the cache holds",
    )
    group.add_argument("--block-size", type=int, default=defaults.block_size, help="tokens in a block")
    group.add_argument(
        "--num-gpu-blocks-override", type=int, default=defaults.num_gpu_blocks, help="blocks of KV cache"
    )
    group.add_argument(
        "--enable-prefix-caching", action=argparse.BooleanOptionalAction, default=True, help="reuse blocks"
    )
    group.add_argument("--max-waiting-queue-length", type=int, help="answer 429 when so many wait; default: no limit")


def _add_timing_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the timing model."""
    defaults = TimingModel()
    group = parser.add_argument_group("timing model (durations: seconds, or with a unit: 5ms, 4us)")
    group.add_argument(
        "--prefill-overhead",
        type=_seconds,
        default=defaults.prefill_overhead,
        help="time of a step in which a prefill starts",
    )
    group.add_argument(
        "--prefill-time-per-token",
        type=_seconds,
        default=defaults.prefill_time_per_token,
        help="time of each uncached prompt token",
    )
    group.add_argument(
        "--inter-token-latency",
        type=_seconds,
        default=defaults.inter_token_latency,
        help="time of a decode step with one sequence",
    )
    group.add_argument(
        "--time-factor-under-load",
        type=float,
        default=defaults.time_factor_under_load,
        help="how many times longer a decode step is with --max-num-seqs sequences; linear in between",
    )
    group.add_argument(
        "--lora-load-time", type=_seconds, default=defaults.lora_load_time, help="time to bring an adapter into a slot"
    )
    group.add_argument(
        "--output-tokens-mean",
        type=float,
        default=128.0,
        help="mean length of an answer that nothing cuts; each prompt has its own, within half and one and a half",
    )
    group.add_argument("--time-scale", type=float, default=1.0, help="seconds of model time per second")


def _add_instance_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that only a simulator has."""
    group = parser.add_argument_group("instances, faults, life cycle")
    group.add_argument("--count", type=int, default=1, help="servers in this process, on consecutive addresses")
    group.add_argument(
        "--port-step", type=int, default=0, help="with --count: consecutive ports, this far apart, instead"
    )
    group.add_argument("--instance-header", action="store_true", help="answer with x-sim-instance: <address>:<port>")
    group.add_argument("--fail-rate", type=_share, default=0.0, help="share of generation requests answered with 500")
    group.add_argument(
        "--reset-rate", type=_share, default=0.0, help="share of generation requests whose connection is reset"
    )
    group.add_argument("--fault-seed", type=int, default=0, help="seed of the choice of requests that fail")
    group.add_argument(
        "--startup-delay", type=_seconds, default=0.0, help="time before the ports open, as if a model loaded"
    )
    group.add_argument(
        "--shutdown-timeout",
        type=_seconds,
        default=25.0,
        help="time that running requests have to finish after SIGTERM",
    )


def settings_from(arguments: argparse.Namespace) -> tuple[ServerSettings, RunSettings]:
    """Return the settings that parsed flags mean. Raises SettingsError naming what does not go together."""
    model = arguments.model or arguments.model_tag
    if not model:
        raise SettingsError("no model: give MODEL or --model")
    if arguments.model and arguments.model_tag and arguments.model != arguments.model_tag:
        raise SettingsError(f"two models: {arguments.model_tag!r} and --model {arguments.model!r}")
    if arguments.lora_modules and not arguments.enable_lora:
        raise SettingsError("--lora-modules needs --enable-lora")
    if arguments.max_loras < 1:
        raise SettingsError(f"--max-loras must be at least 1, not {arguments.max_loras}")
    if arguments.fail_rate + arguments.reset_rate > 1:
        raise SettingsError("--fail-rate and --reset-rate together must not exceed 1")
    if arguments.time_scale <= 0 or arguments.time_factor_under_load < 1 or arguments.output_tokens_mean < 1:
        raise SettingsError(
            "--time-scale must be above 0; --time-factor-under-load and --output-tokens-mean at least 1"
        )
    server = ServerSettings(
        model=model,
        served_model_names=arguments.served_model_name or [model],
        engine=_engine_settings(arguments),
        lora_modules=[_lora_module(text) for text in arguments.lora_modules],
        output_tokens_mean=arguments.output_tokens_mean,
        enable_request_id_headers=arguments.enable_request_id_headers,
        enable_prompt_tokens_details=arguments.enable_prompt_tokens_details,
        instance_header=arguments.instance_header,
        api_keys=frozenset(arguments.api_key),
        faults=Faults(arguments.fail_rate, arguments.reset_rate, arguments.fault_seed),
        time_scale=arguments.time_scale,
    )
    where = RunSettings(
        addresses=addresses(arguments.host, arguments.port, arguments.count, arguments.port_step),
        startup_delay=arguments.startup_delay,
        shutdown_timeout=arguments.shutdown_timeout,
    )
    return server, where


def _engine_settings(arguments: argparse.Namespace) -> EngineSettings:
    """Return the part of the settings that the engine reads."""
    return EngineSettings(
        block_size=arguments.block_size,
        num_gpu_blocks=arguments.num_gpu_blocks_override,
        enable_prefix_caching=arguments.enable_prefix_caching,
        max_num_seqs=arguments.max_num_seqs,
        max_num_batched_tokens=arguments.max_num_batched_tokens,
        max_waiting=arguments.max_waiting_queue_length,
        max_model_len=arguments.max_model_len,
        max_loras=arguments.max_loras if arguments.enable_lora else 0,
        timing=TimingModel(
            prefill_overhead=arguments.prefill_overhead,
            prefill_time_per_token=arguments.prefill_time_per_token,
            inter_token_latency=arguments.inter_token_latency,
            time_factor_under_load=arguments.time_factor_under_load,
            lora_load_time=arguments.lora_load_time,
        ),
    )


def addresses(host: str, port: int, count: int, port_step: int) -> list[tuple[str, int]]:
    """Return where each of `count` instances listens. Raises SettingsError when consecutive places do not exist."""
    if count < 1:
        raise SettingsError(f"--count must be at least 1, not {count}")
    if not 0 <= port + (count - 1) * port_step <= 65_535:
        raise SettingsError(f"--port {port} with --count {count} and --port-step {port_step} leaves the range of ports")
    if port_step or count == 1:
        return [(host, port + number * port_step) for number in range(count)]
    try:
        first = ipaddress.ip_address(host)
    except ValueError as error:
        raise SettingsError(f"--count {count} needs an IP address in --host, not {host!r}, or --port-step") from error
    if first.is_unspecified:
        raise SettingsError(
            f"--count {count} on {host}: give the first address, such as --host 127.1.0.1, or --port-step"
        )
    return [(str(first + number), port) for number in range(count)]


def _lora_module(text: str) -> LoraModule:
    """Return the adapter in `name=path` or a JSON object. Raises SettingsError for anything else."""
    if text.startswith("{"):
        try:
            value = json.loads(text)
            return LoraModule(str(value["name"]), str(value["path"]))
        except (ValueError, KeyError) as error:
            raise SettingsError(f"--lora-modules {text}: an object with name and path is needed") from error
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise SettingsError(f"--lora-modules {text!r}: NAME=PATH is needed")
    return LoraModule(name, path)


def _argument(convert: Callable[[str], float], text: str, what: str) -> float:
    """Return `convert(text)`, or raise argparse's error saying what is needed."""
    try:
        return convert(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not {what}") from error


def _seconds(text: str) -> float:
    """Return a duration in seconds from a number or one with a unit (us, ms, s, m)."""
    match = re.fullmatch(r"([0-9.]+(?:e-?[0-9]+)?)(us|ms|s|m)?", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a duration such as 0.005 or 5ms")
    factor = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, None: 1.0}[match[2]]
    return _argument(float, match[1], "a duration such as 0.005 or 5ms") * factor


def _tokens(text: str) -> int:
    """Return a number of tokens; k, m and g are powers of 1000, K, M and G of 1024, as in vLLM."""
    factors = {"k": 10**3, "m": 10**6, "g": 10**9, "K": 2**10, "M": 2**20, "G": 2**30}
    factor = factors.get(text[-1:], 1)
    digits = text[:-1] if factor > 1 else text
    return int(_argument(float, digits, "a number of tokens such as 8192 or 8k") * factor)


def _share(text: str) -> float:
    """Return a share in [0, 1]."""
    value = _argument(float, text, "a share between 0 and 1")
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not a share between 0 and 1")
    return value
