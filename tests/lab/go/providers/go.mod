// The modules that hold the CRDs of what the roles write objects for but do not install, the older InferencePool among
// them. Tests read them; the lab does not. Nothing is built from them, so `go mod tidy` would drop the lines: after a
// change of a version, make go.sum with `go mod download`.
module inferops.cluster/lab/providers

go 1.25.0

require (
	github.com/kserve/kserve v0.17.0
	github.com/prometheus-operator/prometheus-operator v0.85.0
	istio.io/api v1.30.8
	sigs.k8s.io/gateway-api-inference-extension v1.3.0
)
