#!/bin/bash
# Runs inside the container of systemd_root.sh, as its last boot job: installs the service and lives through a day of it.
# Arguments: the penstock program. Prints "ok …" or "FAILED …" lines, then powers off.
penstock=$1
failed=0
check() { if eval "$2"; then echo "ok      $1"; else echo "FAILED  $1"; failed=1; systemctl status --no-pager -n 20 penstock@main; fi; }
wait_for() { for _ in $(seq "$2"); do eval "$1" && return 0; sleep 0.5; done; return 1; }
main_pid() { systemctl show -p MainPID --value penstock@main; }

mkdir -p /etc/penstock
echo 'PENSTOCK_ARGS=--port 8080 loopback' > /etc/penstock/main.env
check "the unit is installed" '"$penstock" service install main >/dev/null 2>&1'
begun=$(date +%s%N)
check "start waits for READY" 'systemctl start penstock@main'
echo "        start to READY: $(( ($(date +%s%N) - begun) / 1000000 )) ms"
check "it answers" 'curl -sf http://127.0.0.1:8080/health/ready >/dev/null'
check "STATUS tells what it does" 'systemctl show -p StatusText --value penstock@main | grep -q "0 sessions"'
check "it is no known user" '[ "$(stat -c %U /proc/$(main_pid))" != root ]'
check "the journal has JSON lines" 'journalctl -u penstock@main -o cat | grep -q "^{\"ts\""'
check "reload keeps the process" 'pid=$(main_pid); systemctl reload penstock@main && sleep 1 && [ "$(main_pid)" = "$pid" ]'
check "it is hardened" 'systemd-analyze security --threshold=30 penstock@main >/dev/null'
pid=$(main_pid); kill -STOP "$pid"
check "a process that stands still is replaced by the watchdog" 'wait_for "[ \"\$(main_pid)\" != $pid ] && systemctl is-active -q penstock@main" 120'
check "and answers again" 'wait_for "curl -sf http://127.0.0.1:8080/health/ready >/dev/null" 60'
pid=$(main_pid); kill -KILL "$pid"
check "a killed process is restarted" 'wait_for "[ \"\$(main_pid)\" != $pid ] && systemctl is-active -q penstock@main" 60'
begun=$(date +%s%N)
check "it stops cleanly" 'systemctl stop penstock@main && [ "$(systemctl show -p Result --value penstock@main)" = success ]'
echo "        stop: $(( ($(date +%s%N) - begun) / 1000000 )) ms"
printf '[Socket]\nListenStream=127.0.0.1:8081\n' > /etc/systemd/system/penstock@main.socket
systemctl daemon-reload
check "socket activation starts it for the first client" 'systemctl start penstock@main.socket && wait_for "curl -sf --max-time 20 http://127.0.0.1:8081/health/ready >/dev/null" 40'
echo "systemd: $([ $failed = 0 ] && echo all passed || echo some failed)"
