# shellcheck shell=bash
# Processes that outlive the command that started them. Each is known by its PID together with the time of its start
# (a PID alone may belong to somebody else by now), written down before it becomes what it is to be.
# $RUN is where `pids` and `logs` are.

# The start of a process in ticks since boot, or nothing.
process_since() {
    local stat
    stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 0
    # The name, in parentheses, may hold anything; what follows it is fields 3 and on, of which this is field 22.
    read -ra stat <<<"${stat##*) }"
    # A zombie runs no more.
    [ "${stat[0]}" = Z ] || echo "${stat[19]}"
}

# Prints the PID when it runs.
process_pid() {
    local pid since
    read -r pid since 2>/dev/null <"$RUN/pids/$1" || return 1
    [ -n "$since" ] && [ "$(process_since "$pid")" = "$since" ] || return 1
    echo "$pid"
}

# process_start NAME COMMAND...: nothing, when it runs already.
process_start() {
    local name=$1 record=$RUN/pids/$1 try
    shift
    ! process_pid "$name" >/dev/null || return 0
    mkdir -p "$RUN/pids" "$RUN/logs"
    rm -f "$record"
    # Without our locks (descriptor 9 and 8), and in a session of its own: a Ctrl-C is not meant for it.
    # shellcheck disable=SC2016
    setsid --fork bash -c '
        record=$1; shift
        read -r stat </proc/$$/stat
        read -ra stat <<<"${stat##*) }"
        echo "$$ ${stat[19]}" >"$record.new" && mv "$record.new" "$record" && exec "$@"
    ' start "$record" "$@" </dev/null >>"$RUN/logs/$name.log" 2>&1 9>&- 8>&-
    for ((try = 0; try < 100; try++)); do
        [ ! -e "$record" ] || return 0
        sleep 0.05
    done
    die "$name was not started"
}

# process_stop NAME [SECONDS]: asks it to end, and after some seconds no longer asks.
process_stop() {
    local name=$1 patience=${2:-10} pid step
    if pid=$(process_pid "$name"); then
        kill -TERM "$pid" 2>/dev/null || true
        for ((step = 0; step < patience * 20; step++)); do
            process_pid "$name" >/dev/null || break
            sleep 0.05
        done
        ! process_pid "$name" >/dev/null || kill -KILL "$pid" 2>/dev/null || true
        for ((step = 0; step < 100; step++)); do
            process_pid "$name" >/dev/null || break
            sleep 0.05
        done
    fi
    rm -f "$RUN/pids/$name"
}

# wait_for SECONDS WHAT COMMAND...: until the command succeeds; on time-out fails and says what it waited for.
wait_for() {
    local seconds=$1 what=$2 end=$((SECONDS + $1))
    shift 2
    until "$@" >/dev/null 2>&1; do
        ((SECONDS < end)) || { say "$what did not happen within $seconds s"; return 1; }
        sleep 0.1
    done
}
