# shellcheck shell=bash
# What runs inside of the node's namespaces.

inside() {
    local name what=${1:-}
    shift
    RUN=$INSIDE
    case "$what" in
        init) inside_init "$@" ;;
        start) inside_start "$1" ;;
        stop) process_stop "$1" ;;
        pid) process_pid "$1" ;;
        status)
            for name in "${COMPONENTS[@]}"; do
                if pid=$(process_pid "$name"); then
                    printf '%-26s %-8s %s MiB\n' "$name" "$pid" "$(awk '/^VmRSS/ { print int($2 / 1024) }' "/proc/$pid/status")"
                else
                    printf '%-26s does not run\n' "$name"
                fi
            done
            ;;
        *) die "inside of a node there is no $what" ;;
    esac
}

# The first process of the node: makes its surroundings, then stays and takes in orphans.
inside_init() {
    hostname node
    # A /run and /var of its own, so that whatever the node's programs leave there is in its folder. They are made
    # before they hide what is in the machine's.
    mount --bind "$1" "$NODE/programs"
    mount --bind "$here" "$NODE/scripts"
    mkdir -p "$NODE/run/node" "$NODE/var"/{lib,log,cache,tmp}
    chmod 1777 "$NODE/var/tmp"
    ln -sfn /run "$NODE/var/run"
    mount --rbind "$NODE" "$NODE/run/node"
    mount --rbind "$NODE/var" "$NODE/run/node/var"
    mount --rbind "$NODE/run" /run
    mount --rbind /run/node/var /var
    inside_network
    inside_cgroups
    touch "$INSIDE/made"
    # Orphans become this shell's children, and a shell in `wait` buries them.
    while :; do
        sleep 3600 &
        wait $! || true
    done
}

# One pair of interfaces whose ends both stay here: an address for the node, and a device for the default route that
# the API server asks for. Nothing leads out.
inside_network() {
    ip link set lo up
    ip link add node0 type veth peer name node1
    ip link set node0 up
    ip link set node1 up
    ip address add "$ADDRESS/24" dev node0
    ip route add default dev node0
    echo 1 >/proc/sys/net/ipv4/ip_forward
}

# A cgroup of its own at each root, in which the kubelet makes those of the pods.
inside_cgroups() {
    local root
    if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
        mkdir -p "/sys/fs/cgroup/$CGROUP"
        return
    fi
    for root in /sys/fs/cgroup/*/; do
        [ -L "${root%/}" ] || [ ! -e "$root/cgroup.procs" ] || mkdir -p "$root/$CGROUP"
    done
}

inside_start() {
    local flags=() kube=$PROGRAMS/kube etcd=http://127.0.0.1:2379
    case "$1" in
        etcd)
            flags=("$kube" etcd --name=node --data-dir="$INSIDE/etcd" --unsafe-no-fsync --log-level=warn)
            ;;
        kube-apiserver)
            mapfile -t flags < <(apiserver_flags "$INSIDE" "$etcd" "$ADDRESS" 6443)
            # By name, `exec` and `logs` would wait for a DNS that does not know the node.
            flags=("$kube" kube-apiserver "${flags[@]}" --kubelet-preferred-address-types=InternalIP
                --kubelet-client-certificate="$INSIDE/pki/kubelet-client.crt"
                --kubelet-client-key="$INSIDE/pki/kubelet-client.key")
            ;;
        containerd)
            flags=(containerd --config "$INSIDE/etc/containerd.toml")
            ;;
        kube-controller-manager)
            flags=("$kube" kube-controller-manager --kubeconfig="$INSIDE/controller-manager.kubeconfig"
                --leader-elect=false --use-service-account-credentials
                --service-account-private-key-file="$INSIDE/pki/service-account.key"
                --root-ca-file="$INSIDE/pki/ca.crt")
            ;;
        kube-scheduler)
            flags=("$kube" kube-scheduler --kubeconfig="$INSIDE/scheduler.kubeconfig" --leader-elect=false)
            ;;
        kubelet)
            flags=("$kube" kubelet --config="$INSIDE/etc/kubelet.yaml" --kubeconfig="$INSIDE/kubelet.kubeconfig"
                --hostname-override=node --node-ip="$ADDRESS" --root-dir="$INSIDE/kubelet" --cert-dir="$INSIDE/kubelet-pki")
            ;;
        kube-proxy)
            # The sizes of the connection table belong to the machine, and cannot be written here.
            flags=("$kube" kube-proxy --kubeconfig="$INSIDE/proxy.kubeconfig" --proxy-mode=iptables
                --hostname-override=node --oom-score-adj=0 --iptables-min-sync-period=100ms --conntrack-max-per-core=0
                --conntrack-tcp-timeout-established=0 --conntrack-tcp-timeout-close-wait=0)
            ;;
        dns)
            flags=("$PROGRAMS/dns" -conf "$INSIDE/etc/Corefile")
            ;;
        *) die "there is no program $1: ${COMPONENTS[*]}" ;;
    esac
    process_start "$1" "${flags[@]}"
}
