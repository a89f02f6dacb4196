# SPDX-License-Identifier: GPL-3.0-or-later
"""Flags: vLLM's spellings are understood, and what cannot work is refused with its reason."""

from __future__ import annotations

import pytest

from sim.cli import addresses, main, make_parser, normalise, settings_from
from sim.run import RunSettings
from sim.settings import LoraModule, ServerSettings, SettingsError


def parse(*argv: str) -> tuple[ServerSettings, RunSettings]:
    """Return the settings of a command line."""
    return settings_from(make_parser().parse_args(normalise(argv)))


def test_the_arguments_of_vllm_serve_work_unchanged() -> None:
    server, where = parse(
        *("serve", "meta/llama", "--served-model-name", "llama", "chat", "--port", "9000", "--max_num_seqs=32"),
        *("--max-model-len", "16k", "--block-size", "32", "--num-gpu-blocks-override", "1000", "--enable-lora"),
        *("--max-loras", "2", "--lora-modules", "a=/adapters/a", '{"name": "b", "path": "/adapters/b"}'),
        *("--tensor-parallel-size", "2", "--gpu-memory-utilization=0.9", "--trust-remote-code", "--dtype", "auto"),
        *("--no-enable-prefix-caching", "--enable-request-id-headers"),
    )
    assert (server.model, list(server.served_model_names)) == ("meta/llama", ["llama", "chat"])
    assert where.addresses == [("0.0.0.0", 9000)]
    engine = server.engine
    assert (engine.max_num_seqs, engine.context_length, engine.block_size, engine.capacity) == (32, 16_000, 32, 32_000)
    assert (engine.max_loras, engine.enable_prefix_caching) == (2, False)
    assert list(server.lora_modules) == [LoraModule("a", "/adapters/a"), LoraModule("b", "/adapters/b")]
    assert server.enable_request_id_headers


def test_durations_and_token_counts_take_units() -> None:
    server, _ = parse("m", "--prefill-overhead", "5ms", "--prefill-time-per-token=4us", "--inter-token-latency", "0.25")
    timing = server.engine.timing
    assert timing.prefill_overhead == pytest.approx(0.005)
    assert timing.prefill_time_per_token == pytest.approx(4e-6)
    assert timing.inter_token_latency == pytest.approx(0.25)
    assert parse("m", "--max-model-len", "8K")[0].engine.context_length == 8192


def test_instances_lie_side_by_side() -> None:
    assert addresses("127.1.0.254", 8000, 3, 0) == [
        ("127.1.0.254", 8000),
        ("127.1.0.255", 8000),
        ("127.1.1.0", 8000),
    ]
    assert addresses("localhost", 8000, 3, 2) == [("localhost", 8000), ("localhost", 8002), ("localhost", 8004)]


@pytest.mark.parametrize(
    ("argv", "reason"),
    [
        ([], "no model"),
        (["m", "--model", "other"], "two models"),
        (["m", "--lora-modules", "a=b"], "--enable-lora"),
        (["m", "--enable-lora", "--lora-modules", "a"], "NAME=PATH"),
        (["m", "--enable-lora", "--lora-modules", "{}"], "name and path"),
        (["m", "--enable-lora", "--max-loras", "0"], "--max-loras"),
        (["m", "--count", "2"], "--host 127.1.0.1"),
        (["m", "--count", "2", "--host", "localhost"], "--port-step"),
        (["m", "--count", "0"], "--count"),
        (["m", "--port", "65535", "--count", "2", "--port-step", "1"], "range of ports"),
        (["m", "--max-num-seqs", "0"], "--max-num-seqs"),
        (["m", "--time-scale", "0"], "--time-scale"),
        (["m", "--fail-rate", "0.6", "--reset-rate", "0.6"], "must not exceed 1"),
        (["m", "--max-model-len", "1M", "--num-gpu-blocks-override", "10"], "KV cache"),
    ],
)
def test_what_cannot_work_is_refused_with_its_reason(argv: list[str], reason: str) -> None:
    with pytest.raises(SettingsError, match=reason):
        parse(*argv)


@pytest.mark.parametrize(
    ("argv", "reason"),
    [
        (["m", "--no-such-flag"], "unrecognized arguments: --no-such-flag"),
        (["m", "--inter-token-latency", "fast"], "'fast' is not a duration"),
        (["m", "--max-model-len", "many"], "'many' is not a number of tokens"),
        (["m", "--fail-rate", "2"], "not a share between 0 and 1"),
        ([], "no model: give MODEL or --model"),
    ],
)
def test_the_program_ends_with_2_and_says_why(argv: list[str], reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(argv)
    assert end.value.code == 2
    assert reason in capsys.readouterr().err


def test_every_flag_with_an_effect_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    for action in make_parser()._actions:
        if action.help != "==SUPPRESS==":
            assert action.help
            assert all(flag in text for flag in action.option_strings)
