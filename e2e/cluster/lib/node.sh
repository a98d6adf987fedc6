# shellcheck shell=bash
# The whole node: its own network, mount, PID, IPC and UTS namespaces, all held by one process. When that one is
# killed, the kernel ends all others and takes mounts, interfaces and rules with them; what then remains is a folder
# and empty cgroups. So `down` has one thing to do, whatever state the node is in.

# Nodes of different names stand side by side; whatever is outside of a node's namespaces has its name in it.
NAME=${CLUSTER_NAME:-tower-mesh-node}
NODE=/var/lib/$NAME
# The same folder, as the node sees it.
INSIDE=/run/node
# Of the node; its pods have others.
ADDRESS=10.99.0.1
SERVER=https://$ADDRESS:6443
CGROUP=$NAME
COMPONENTS=(etcd kube-apiserver containerd kube-controller-manager kube-scheduler kubelet kube-proxy dns)

needs_root() {
    [ "$(id -u)" = 0 ] || die "a node has namespaces and mounts of its own: run this as root"
}

needs_node() {
    needs_root
    node_pid >/dev/null || die "no node runs here: just cluster up"
}

# One `up` or `down` of a node at a time, also from different work trees.
node_lock() {
    mkdir -p "$CACHE"
    exec 8>"$CACHE/$NAME.lock"
    flock 8
}

node_pid() {
    RUN=$NODE process_pid node
}

node_packages() {
    local missing=() pair
    for pair in containerd:containerd runc:runc /usr/lib/cni/bridge:containernetworking-plugins iptables:iptables \
        conntrack:conntrack ip:iproute2 nsenter:util-linux setsid:util-linux; do
        command -v "${pair%:*}" >/dev/null || missing+=("${pair##*:}")
    done
    [ ${#missing[@]} = 0 ] || { say "installing ${missing[*]}"; "$repo/.ci/debian-packages" "${missing[@]}" >&2; }
}

node_up() {
    local begun=$SECONDS name
    needs_root
    node_lock
    programs_build
    node_packages
    if ! node_pid >/dev/null; then
        node_clean
        node_create
    fi
    for name in "${COMPONENTS[@]}"; do
        node_start "$name"
        # What the others need first.
        case "$name" in
            kube-apiserver)
                wait_for 60 "the API server's readiness" node_kubectl --request-timeout=2s get --raw=/readyz || node_failed
                node_kubectl apply --server-side -f "$here/manifests" >/dev/null
                ;;
            containerd)
                wait_for 30 "containerd's socket" node_ctr version || node_failed
                node_load_pause
                ;;
        esac
    done
    node_load
    say "waiting for the node to be ready"
    wait_for 90 "the node's readiness" node_is_ready || node_failed
    say "ready after $((SECONDS - begun)) s; KUBECONFIG=$NODE/admin.kubeconfig in the network of the node"
}

node_failed() {
    local name
    for name in "${COMPONENTS[@]}"; do
        node_enter_pid "$name" || { say "--- $name does not run:"; tail -n 8 "$NODE/logs/$name.log" >&2 || true; }
    done
    die "the node is not ready; what its programs wrote is in $NODE/logs; 'down' ends it"
}

# The namespaces, and the files that their programs read.
node_create() {
    say "making the node"
    mkdir -p "$NODE"/{var,etc/cni,programs,scripts,pids,logs}
    chmod 700 "$NODE"
    "$PROGRAMS/kube" pki "$NODE/pki" "$ADDRESS" "${SERVICE_RANGE%.*}.1" 127.0.0.1 localhost kubernetes \
        kubernetes.default kubernetes.default.svc kubernetes.default.svc.cluster.local
    write_tokens "$NODE"
    local name rest file
    while read -r name rest; do
        write_kubeconfig "$NODE/$name.kubeconfig" "$SERVER" "$NODE/pki/ca.crt" "$(token_of "$NODE" "$name")"
    done < <(identities)
    for file in $(cd "$here/config" && find . -type f); do
        sed -e "s|@INSIDE@|$INSIDE|g; s|@ADDRESS@|$ADDRESS|g; s|@CGROUP@|$CGROUP|g" "$here/config/$file" >"$NODE/etc/$file"
    done
    # An overlay cannot stand on an overlay, as in a container.
    if [ "$(stat -f -c %T "$NODE")" = overlayfs ]; then
        sed -i 's/snapshotter = "overlayfs"/snapshotter = "native"/' "$NODE/etc/containerd.toml"
    fi
    RUN=$NODE process_start node unshare --mount --propagation=private --pid --net --ipc --uts --fork --kill-child \
        --mount-proc bash "$here/cluster" inside init "$PROGRAMS"
    wait_for 20 "the node's namespaces" test -e "$NODE/made" || { cat "$NODE/logs/node.log" >&2; return 1; }
}

# node_enter COMMAND...: in all of its namespaces, where its folder is $INSIDE.
node_enter() {
    local pid
    needs_node
    pid=$(node_pid)
    nsenter --mount="/proc/$pid/ns/mnt" --net="/proc/$pid/ns/net" --ipc="/proc/$pid/ns/ipc" --uts="/proc/$pid/ns/uts" \
        --pid="/proc/$pid/ns/pid_for_children" -- "$@"
}

# node_exec COMMAND...: in its network alone.
node_exec() {
    local pid
    needs_node
    pid=$(node_pid)
    PATH=$PROGRAMS:$PATH KUBECONFIG=$NODE/admin.kubeconfig nsenter --net="/proc/$pid/ns/net" -- "$@"
}

node_kubectl() {
    programs_build
    node_exec kubectl "$@"
}

node_helm() {
    programs_build
    node_exec helm "$@"
}

node_ctr() {
    node_enter ctr --address /run/containerd/containerd.sock --namespace k8s.io "$@"
}

node_inside() {
    node_enter env "PROGRAMS=$INSIDE/programs" bash "$INSIDE/scripts/cluster" inside "$@"
}

node_start() {
    node_enter_pid "$1" || { say "starting $1"; node_inside start "$1"; }
}

node_stop() {
    node_inside stop "$1"
}

node_enter_pid() {
    node_inside pid "$1" >/dev/null
}

node_is_ready() {
    local ready
    ready=$(node_kubectl get node node -o 'jsonpath={.status.conditions[?(@.type=="Ready")].status}') &&
        [ "$ready" = True ] && node_kubectl -n default get serviceaccount default
}

# Imports images; those that are there already, byte by byte, are left out.
node_load() {
    local image sum
    needs_node
    [ $# != 0 ] || set -- "$repo"/target/images/*.tar
    for image; do
        [ -e "$image" ] || continue
        sum=$NODE/images/$(sha256sum <"$image" | cut -c1-32)
        [ ! -e "$sum" ] || continue
        say "importing ${image##*/}"
        node_ctr images import - <"$image" >/dev/null
        mkdir -p "$NODE/images"
        touch "$sum"
    done
}

node_load_pause() {
    [ ! -e "$NODE/pause" ] || return 0
    mkdir -p "$NODE/pause"
    cp "$PROGRAMS/pause" "$NODE/pause/"
    "$repo/deploy/image/archive" "$NODE/pause.tar" docker.io/tower-mesh/pause:1 "$NODE/pause" 65535 /pause
    node_load "$NODE/pause.tar"
}

node_status() {
    local name pid
    needs_root
    if ! pid=$(node_pid); then
        say "no node runs here"
        [ ! -e "$NODE" ] || say "there are leftovers of one that crashed: 'down' removes them"
        return 1
    fi
    printf '%-26s %-8s %s\n' PROGRAM PID RSS
    printf '%-26s %-8s (outside of its namespaces)\n' node "$pid"
    node_inside status
    node_kubectl get nodes,pods --all-namespaces -o wide
}

node_down() {
    needs_root
    node_lock
    node_clean
    say "nothing is left of the node"
}

# Ends all and removes all, in whatever state it is.
node_clean() {
    local pid first
    if pid=$(node_pid); then
        say "ending the node"
        # The first process of the node, which dies with the one that made it, is gone only after all others are.
        first=$(cat "/proc/$pid/task/$pid/children")
        kill -KILL "$pid"
        wait_for 30 "the end of the node's processes" node_has_ended "$pid" "${first// /}" || return 1
    fi
    wait_for 10 "the end of the node's cgroups" node_remove_cgroups || return 1
    # Its mounts went with its namespace: were one left, nothing may be removed through it.
    [ ! -e "$NODE" ] || rm -rf --one-file-system "$NODE"
    [ ! -e "$NODE" ] || die "$NODE cannot be removed: is something mounted in it?"
}

node_has_ended() {
    local pid
    for pid; do
        [ -z "$pid" ] || [ -z "$(process_since "$pid")" ] || return 1
    done
}

node_remove_cgroups() {
    local top
    for top in "/sys/fs/cgroup/$CGROUP" /sys/fs/cgroup/*/"$CGROUP"; do
        [ ! -d "$top" ] || find "$top" -depth -type d -exec rmdir {} + 2>/dev/null || return 1
    done
}
