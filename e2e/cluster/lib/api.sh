# shellcheck shell=bash
# etcd and the API server alone, for tests that need objects, watches, tokens and admission, but no pods. There is no
# controller: nothing makes endpoints, default service accounts or garbage collection. Any number of them run side by
# side, each in a folder of its own.

api_up() {
    local dir client peer port urls
    programs_build
    mkdir -p "$1"
    dir=$(cd "$1" && pwd)
    RUN=$dir
    if process_pid kube-apiserver >/dev/null && [ -e "$dir/ready" ]; then
        echo "$dir/kubeconfig"
        return
    fi
    api_down "$dir"
    mkdir -p "$dir"
    touch "$dir/tower-mesh-api"
    chmod 700 "$dir"
    { read -r client; read -r peer; read -r port; } < <("$PROGRAMS/kube" ports 3)
    urls=http://127.0.0.1:$client
    "$PROGRAMS/kube" pki "$dir/pki" 127.0.0.1 localhost kubernetes.default.svc
    write_tokens "$dir"
    write_kubeconfig "$dir/kubeconfig" "https://127.0.0.1:$port" "$dir/pki/ca.crt" "$(token_of "$dir" admin)"
    process_start etcd "$PROGRAMS/kube" etcd --name=test --data-dir="$dir/etcd" --unsafe-no-fsync \
        --listen-client-urls="$urls" --advertise-client-urls="$urls" \
        --listen-peer-urls="http://127.0.0.1:$peer" --initial-advertise-peer-urls="http://127.0.0.1:$peer" \
        --initial-cluster="test=http://127.0.0.1:$peer" --log-level=warn
    local flags=()
    mapfile -t flags < <(apiserver_flags "$dir" "$urls" 127.0.0.1 "$port")
    # Nobody makes the default service accounts for which that plugin asks; nobody is to be the endpoint of the
    # service `kubernetes`, which may not be on loopback.
    process_start kube-apiserver "$PROGRAMS/kube" kube-apiserver "${flags[@]}" \
        --disable-admission-plugins=ServiceAccount --endpoint-reconciler-type=none
    if ! wait_for 60 "the API server's readiness" \
        "$PROGRAMS/kube" kubectl --kubeconfig="$dir/kubeconfig" --request-timeout=2s get --raw=/readyz; then
        tail -n 20 "$dir/logs/kube-apiserver.log" >&2
        return 1
    fi
    touch "$dir/ready"
    echo "$dir/kubeconfig"
}

api_down() {
    [ -d "$1" ] || return 0
    RUN=$(cd "$1" && pwd)
    # Nothing is removed from a folder that is not ours.
    [ -e "$RUN/tower-mesh-api" ] || return 0
    process_stop kube-apiserver
    process_stop etcd
    rm -rf "$RUN"/{etcd,pki,logs,pids,kubeconfig,tokens.csv,ready,tower-mesh-api}
    rmdir "$RUN" 2>/dev/null || true
}
