# SPDX-License-Identifier: GPL-3.0-or-later
"""Third-party manifests, taken from the Go modules whose versions go.mod pins and go.sum checks; none is kept in this
repository.

CRD files are used where they lie in the module cache. Envoy Gateway's manifest is rendered from its Helm chart with
the command that makes the project's own release file, so what the roles get here is what they get from the release
page.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from pathlib import Path

from lab import binaries
from lab.errors import LabError
from lab.progress import Progress
from lab.state import FOLDERS

_ENVOY_GATEWAY = "github.com/envoyproxy/gateway"
_INFERENCE_EXTENSION = "sigs.k8s.io/gateway-api-inference-extension"
_PROVIDERS = {  # CRD files of each module, below its folder
    "github.com/kserve/kserve": (
        "config/crd/full/serving.kserve.io_clusterservingruntimes.yaml",
        "config/crd/full/serving.kserve.io_inferenceservices.yaml",
    ),
    "github.com/prometheus-operator/prometheus-operator": (
        "example/prometheus-operator-crd/monitoring.coreos.com_servicemonitors.yaml",
    ),
    "istio.io/api": ("kubernetes/customresourcedefinitions.gen.yaml",),
    # A version that still has the older InferencePool.
    _INFERENCE_EXTENSION: ("config/crd/bases/inference.networking.x-k8s.io_inferencepools.yaml",),
}
_NAMESPACE = "envoy-gateway-system"


def ensure(progress: Progress) -> dict[str, object]:
    """Have all manifests at hand; return the `manifests` part of the lab's facts. Raises LabError."""
    with progress.step("manifests"):
        gateway = module_folder("envoy-gateway", _ENVOY_GATEWAY)
        inference = module_folder("manifests", _INFERENCE_EXTENSION)
    return {
        "gateway_api": str(_existing(gateway / "charts/gateway-helm/charts/crds/crds/gatewayapi-crds.yaml")),
        "inference_extension": [str(file) for file in _inference_crds(inference)],
        "envoy_gateway": str(_render_envoy_gateway(gateway, progress)),
    }


def definitions(progress: Progress) -> list[Path]:
    """CRD files of all kinds that the roles write objects of, those included that belong to KServe, to Istio and to the
    Prometheus Operator, which no role installs. Google's for GKE are in no module. Raises LabError.
    """
    with progress.step("manifests"):
        gateway = module_folder("envoy-gateway", _ENVOY_GATEWAY)
        inference = module_folder("manifests", _INFERENCE_EXTENSION)
    found = [*sorted(gateway.glob("charts/gateway-helm/charts/crds/crds/**/*.yaml")), *_inference_crds(inference)]
    for module, files in _PROVIDERS.items():
        with progress.step(f"CRDs of {module}"):
            folder = module_folder("providers", module)
        found.extend(_existing(folder / file) for file in files)
    return found


def _inference_crds(module: Path) -> list[Path]:
    folder = module / "config" / "crd" / "bases"
    crds = sorted(folder.glob("*.yaml"))
    if not crds:
        raise LabError(f"There are no CRD files in {folder}; does this version still have them?")
    return crds


def module_folder(go_set: str, module: str) -> Path:
    """The folder of a module in Go's module cache, downloaded first when it is not there. Raises LabError."""
    command = [binaries.go_command(), "mod", "download", "-json", module]
    result = subprocess.run(command, cwd=binaries.GO_DIR / go_set, capture_output=True, text=True, check=False)
    try:
        answer = json.loads(result.stdout)
        return Path(answer["Dir"])
    except (ValueError, KeyError):
        reason = result.stderr.strip() or result.stdout.strip()
        raise LabError(f"`{' '.join(command)}` failed in {binaries.GO_DIR / go_set}: {reason}") from None


def _existing(file: Path) -> Path:
    if not file.exists():
        raise LabError(f"{file} does not exist; does this version of the module still have it?")
    return file


def _render_envoy_gateway(module: Path, progress: Progress) -> Path:
    version = binaries.version("envoy-gateway")
    head = f"# Envoy Gateway {version}, rendered from its chart with helm {binaries.version('helm')}.\n"
    target = FOLDERS.manifests / "envoy-gateway.yaml"
    if target.exists():
        with target.open(encoding="utf-8") as stream:
            if stream.readline() == head:
                return target
    helm = binaries.path("helm", progress)
    with (
        progress.step(f"render Envoy Gateway {version}"),
        tempfile.TemporaryDirectory(prefix="inferops-lab-") as scratch,
    ):
        # The chart lacks values.yaml, which upstream's release fills from this template; the module cache is read-only.
        chart = Path(scratch, "gateway-helm")
        shutil.copytree(module / "charts" / "gateway-helm", chart, copy_function=shutil.copyfile)
        for folder in (chart, *filter(Path.is_dir, chart.rglob("*"))):
            folder.chmod(0o755)
        values = (chart / "values.tmpl.yaml").read_text(encoding="utf-8")
        values = values.replace("${GatewayImage}", f"docker.io/envoyproxy/gateway:{version}")
        values = values.replace("${GatewayImagePullPolicy}", "IfNotPresent")
        (chart / "values.yaml").write_text(values, encoding="utf-8")
        command = [str(helm), "template", "eg", str(chart), "--include-crds", "--namespace", _NAMESPACE]
        result = subprocess.run(
            [*command, "--set", "createNamespace=true"], capture_output=True, text=True, check=False
        )
    if result.returncode != 0:
        raise LabError(f"`{' '.join(command)}` failed: {result.stderr.strip()}")
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(".partial")
    partial.write_text(head + result.stdout, encoding="utf-8")
    partial.rename(target)
    return target
