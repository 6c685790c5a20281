#!/bin/bash
# The service under a real systemd, in a root file system of its own: `make test-systemd`, as root.
# Needs debootstrap and systemd-nspawn (apt install debootstrap systemd-container), and a minute or two. Nothing of
# this machine's own systemd or root file system is touched; the root is kept in $ROOT for the next time.
set -euo pipefail
here=$(cd "$(dirname "$0")/../.." && pwd)
ROOT=${ROOT:-/var/tmp/penstock-systemd-root}
base=$("$here/.venv/bin/python" -c 'import sys; print(sys.base_prefix)')
[ "$(id -u)" = 0 ] || { echo "test-systemd needs root: a container is started"; exit 1; }
for tool in debootstrap systemd-nspawn; do
  command -v $tool >/dev/null || { echo "test-systemd needs $tool (apt install debootstrap systemd-container)"; exit 1; }
done
if [ ! -e "$ROOT/.complete" ]; then
  echo "making $ROOT (some 250 MB, once)"
  debootstrap --variant=minbase --include=systemd,systemd-sysv,dbus,curl stable "$ROOT" >"$ROOT.log" 2>&1 || { tail -5 "$ROOT.log"; exit 1; }
  touch "$ROOT/.complete"
fi
chmod 755 "$ROOT/root"  # of the container: a dynamic user must reach an interpreter bound below it
cat > "$ROOT/etc/systemd/system/check.service" <<UNIT
[Unit]
After=multi-user.target
[Service]
Type=oneshot
ExecStart=/bin/bash -c '/bin/bash $here/tests/harness/systemd_inside.sh $here/.venv/bin/penstock > /check.log 2>&1; systemctl poweroff'
[Install]
WantedBy=multi-user.target
UNIT
mkdir -p "$ROOT/etc/systemd/system/multi-user.target.wants"
ln -sf ../check.service "$ROOT/etc/systemd/system/multi-user.target.wants/check.service"
rm -f "$ROOT/check.log"
timeout 400 systemd-nspawn -q --register=no --keep-unit -D "$ROOT" --bind-ro="$here" --bind-ro="$base" -b >"$ROOT.boot.log" 2>&1 </dev/null || true
[ -e "$ROOT/check.log" ] || { echo "the container did not boot:"; tail -20 "$ROOT.boot.log"; exit 1; }
cat "$ROOT/check.log"
grep -q "all passed" "$ROOT/check.log"
