# shellcheck shell=bash
# The programs of Kubernetes, built from Go modules into a cache outside of the work tree: once for each state of
# their sources.

CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/tower-mesh
# Inside of the node, the folder is where the node has it.
PROGRAMS=${PROGRAMS:-$CACHE/kubernetes-$(cd "$here/programs" && find . -type f | LC_ALL=C sort | xargs sha256sum | sha256sum | cut -c1-16)}

programs_build() {
    [ ! -e "$PROGRAMS/complete" ] || return 0
    command -v go >/dev/null || die "Go is needed to build Kubernetes: https://go.dev/doc/install (go.mod says which)"
    mkdir -p "$CACHE"
    (
        # Two at once would do the same work twice.
        flock 9
        [ ! -e "$PROGRAMS/complete" ] || exit 0
        say "building Kubernetes, CoreDNS and Helm into $PROGRAMS: about ten minutes on two cores, once"
        local begun=$SECONDS fresh=$PROGRAMS.new
        rm -rf "$fresh"
        mkdir -p "$fresh"
        cd "$here/programs" || exit
        for program in ./pause ./kube ./dns helm.sh/helm/v3/cmd/helm; do
            say "  go build $program"
            # Not linked to the machine's C library: `pause` runs in an image without one.
            CGO_ENABLED=0 nice -n 5 go build -buildvcs=false -trimpath -ldflags="$(tr '\n' ' ' <ldflags)" \
                -o "$fresh/" "$program" 9>&- || exit
        done
        cp kubectl "$fresh/" || exit
        touch "$fresh/complete"
        rm -rf "$PROGRAMS"
        mv "$fresh" "$PROGRAMS"
        # Those of earlier sources that nobody has used for long.
        find "$CACHE" -maxdepth 1 -name 'kubernetes-*' -mtime +14 -exec rm -rf {} +
        say "  built in $((SECONDS - begun)) s"
    ) 9>"$CACHE/lock"
}
