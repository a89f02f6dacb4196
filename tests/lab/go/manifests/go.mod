// The module whose CRDs the lab installs. Nothing is built from it, so `go mod tidy` would drop the line:
// after a change of the version, make go.sum with `go mod download`.
module inferops.cluster/lab/manifests

go 1.25.0

require sigs.k8s.io/gateway-api-inference-extension v1.5.0
