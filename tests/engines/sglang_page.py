# SPDX-License-Identifier: GPL-3.0-or-later
"""Prints SGLang's metrics page with given figures, by SGLang's own collector: a program for its environment.

    python sglang_page.py '{"waiting": 3, "running": 5, "kv": 0.25, "page_size": 64, "pages": 99}'

The engine itself needs a GPU and does not run. Its module `metrics_collector` is imported as it is and prints the page;
the modules that it imports beside prometheus_client, of which most want CUDA, are replaced by the few values that it
asks them for: what the server's command line says, and the ranks of this process.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

OPTIONS = {
    "get_observability": SimpleNamespace(
        enable_metrics=True,
        enable_metrics_for_all_schedulers=False,
        kv_events_config=None,
        extra_metric_labels=None,
    ),
    "get_parallel": SimpleNamespace(attn_tp_rank=0, attn_cp_rank=0, tp_rank=0, pp_rank=0, moe_ep_rank=0, dp_rank=None),
    "get_disagg": SimpleNamespace(enable_pd_role_switch=False, disaggregation_mode="null"),
    "get_schedule": SimpleNamespace(
        prefill_delayer_max_delay_passes=30,
        prefill_delayer_forward_passes_buckets=None,
        prefill_delayer_wait_seconds_buckets=None,
    ),
}
"""What the engine's context answers, as without any flag but `--enable-metrics`."""
_BALANCEDNESS = "exports_expert_balancedness_to_prometheus"
_STAGES = {"FORWARD_OVERLAP_CATEGORIES": (), "FORWARD_OVERLAP_NONE": "none", "SCHEDULER_STAGE_CATEGORIES": ()}


class _Mode:
    """Stands in for DisaggregationMode: a server that does both, as it is without flags."""

    @staticmethod
    def to_engine_type(mode: str) -> str:
        return {"null": "unified"}.get(mode, mode)


def _package(name: str, folder: Path) -> None:
    """A package of SGLang without what its `__init__` imports."""
    module = ModuleType(name)
    module.__path__ = [str(folder)]
    sys.modules[name] = module


def _same[T](answer: T) -> T:
    return answer


def _stand_in(name: str, **values: Any) -> None:
    module = ModuleType(name)
    vars(module).update(values)
    sys.modules[name] = module


def collectors(model: str) -> Any:
    """SGLang's own module of collectors."""
    spec = find_spec("sglang")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("sglang is not installed here")
    root = Path(next(iter(spec.submodule_search_locations)))
    for name in ("sglang", "sglang.srt", "sglang.srt.observability", "sglang.srt.utils"):
        _package(name, root.parent / name.replace(".", "/"))
    serving = SimpleNamespace(served_model_name=model, enable_streaming_session=False)
    unpublished = SimpleNamespace(is_config_namespace_published=lambda name: False)
    answers = {**OPTIONS, "get_serving": serving, "get_context": unpublished, _BALANCEDNESS: False}
    _stand_in("sglang.srt.runtime_context", **{name: partial(_same, answer) for name, answer in answers.items()})
    _stand_in("sglang.srt.server_args", ServerArgs=object)
    _stand_in("sglang.srt.disaggregation.utils", DisaggregationMode=_Mode)
    _stand_in("sglang.srt.model_executor.forward_batch_info", ForwardMode=object)
    _stand_in("sglang.srt.observability.scheduler_stage_metrics", **_STAGES)
    vars(sys.modules["sglang.srt.utils"])["get_bool_env_var"] = lambda *_: False
    return import_module("sglang.srt.observability.metrics_collector")


def page(figures: dict[str, Any]) -> str:
    """The page. With `priorities` (priority → requests that wait) the server schedules by priority."""
    from prometheus_client import generate_latest

    module = collectors(figures["model"])
    priorities = {int(key): value for key, value in figures.get("priorities", {}).items()} or None
    made = module.SchedulerMetricsCollector.init_new(
        server_args=SimpleNamespace(),
        enable_priority_scheduling=priorities is not None,
        enable_lora=False,
        enable_hierarchical_cache=False,
    ).collector
    stats = module.SchedulerStats()
    stats.num_running_reqs = module.QueueCount(figures["running"])
    stats.num_queue_reqs = module.QueueCount(figures["waiting"], priorities)
    stats.token_usage = figures["kv"]
    made.log_stats(stats)
    made.emit_constants(
        max_total_num_tokens=figures["page_size"] * figures["pages"],
        max_total_num_tokens_swa=None,
        weight_memory_usage_gb=1.0,
        kv_cache_memory_usage_gb=1.0,
        graph_memory_usage_gb={},
        max_running_requests_under_SLO=None,
        page_size=figures["page_size"],
        num_pages=figures["pages"],
        context_len=4096,
        startup_available_gpu_memory_gb=1.0,
    )
    return generate_latest().decode()


if __name__ == "__main__":
    sys.stdout.write(page(json.loads(sys.argv[1])))
