# shellcheck shell=bash
# What each program of the control plane is told. DIR is where keys and tokens are.

# Who may speak to the API server by a token: NAME USER GROUPS.
identities() {
    cat <<'TEXT'
admin admin system:masters
controller-manager system:kube-controller-manager
scheduler system:kube-scheduler
kubelet system:node:node system:nodes
proxy system:kube-proxy
dns system:coredns
TEXT
}

# write_tokens DIR
write_tokens() {
    local name user groups
    (
        umask 077
        while read -r name user groups; do
            echo "$(head -c 24 /dev/urandom | od -An -tx1 | tr -d ' \n'),$user,$name,\"$groups\""
        done < <(identities) >"$1/tokens.csv"
    )
}

# token_of DIR NAME
token_of() {
    local token user name groups
    while IFS=, read -r token user name groups; do
        [ "$name" != "$2" ] || { echo "$token"; return; }
    done <"$1/tokens.csv"
    die "nobody is named $2"
}

# write_kubeconfig FILE SERVER CA TOKEN
write_kubeconfig() {
    (umask 077 && cat >"$1") <<TEXT
apiVersion: v1
kind: Config
clusters: [{name: test, cluster: {server: "$2", certificate-authority-data: "$(base64 -w0 "$3")"}}]
users: [{name: test, user: {token: "$4"}}]
contexts: [{name: test, context: {cluster: test, user: test}}]
current-context: test
TEXT
}

# apiserver_flags DIR ETCD ADDRESS PORT: one flag a line.
apiserver_flags() {
    cat <<TEXT
--etcd-servers=$2
--bind-address=$3
--advertise-address=$3
--secure-port=$4
--cert-dir=$1/pki
--tls-cert-file=$1/pki/apiserver.crt
--tls-private-key-file=$1/pki/apiserver.key
--client-ca-file=$1/pki/ca.crt
--token-auth-file=$1/tokens.csv
--authorization-mode=Node,RBAC
--service-account-issuer=https://kubernetes.default.svc
--service-account-key-file=$1/pki/service-account.pub
--service-account-signing-key-file=$1/pki/service-account.key
--service-cluster-ip-range=$SERVICE_RANGE
--allow-privileged=true
--profiling=false
TEXT
}

SERVICE_RANGE=10.96.0.0/16
