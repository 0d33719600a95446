#!/bin/bash
# First process of a sandbox, in network, mount, pid, host name, ipc and cgroup namespaces of its own: gives it its own view of the
# machine, then keeps its daemons running.
# usage: node-init.sh NAME FOLDER node|hub     FOLDER/daemons: lines `NAME SHELL-COMMAND`; FOLDER/../mounts: lines `SRC DST`
set -eu
name=$1 folder=$2 role=$3

hostname "$name"
mount --make-rprivate /
mount --make-rshared / # pods may ask for Bidirectional mounts
mount -t tmpfs -o mode=755 run /run # own xtables lock, runc state and shim sockets
mkdir -p /run/lock

# Own sysfs (this network namespace's) and own cgroup root: two kubelets must not share /kubepods.
umount -R /sys/fs/cgroup
umount -l /sys
mount -t sysfs sysfs /sys
mount -t tmpfs -o mode=755 cgroup /sys/fs/cgroup
while IFS=: read -r _ controllers _; do
  case $controllers in
    '') mkdir /sys/fs/cgroup/unified && mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified ;;
    name=*) at=/sys/fs/cgroup/${controllers#name=} && mkdir "$at" && mount -t cgroup -o "none,$controllers" cgroup "$at" ;;
    *)
      at=/sys/fs/cgroup/$controllers
      mkdir "$at"
      mount -t cgroup -o "$controllers" cgroup "$at"
      for one in ${controllers//,/ }; do [ -e "/sys/fs/cgroup/$one" ] || ln -s "$controllers" "/sys/fs/cgroup/$one"; done
      ;;
  esac
done < /proc/self/cgroup

# What a kubelet would set for the whole machine it finds already set here; and every node is a machine of its own.
over() {
  printf '%s\n' "$2" > "$folder/mask-${1##*/}"
  mount --bind "$folder/mask-${1##*/}" "$1"
}
over /proc/sys/vm/overcommit_memory 1
over /proc/sys/kernel/panic 10
over /proc/sys/kernel/panic_on_oops 1
over /proc/sys/kernel/random/boot_id "$(cat /proc/sys/kernel/random/uuid)"
[ ! -e /etc/machine-id ] || over /etc/machine-id "$(printf %s "$name-$folder" | md5sum | cut -c1-32)"

if [ "$role" = node ]; then
  for own in /var/lib/kubelet /var/lib/cni /var/lib/headrace /var/log; do # the usual paths, with contents of its own
    mkdir -p "$folder/own$own" "$own"
    mount --bind "$folder/own$own" "$own"
  done
  mount -t tmpfs -o mode=755 opt /opt
  while read -r source target; do
    mkdir -p "$target"
    mount --bind "$source" "$target"
    mount -o remount,bind,ro "$target"
  done < "$folder/../mounts"
fi

umask 022
keep() { # keep NAME COMMAND: runs it again 1 s after it ends
  local daemon=$1 command=$2
  while :; do
    bash -c "$command" >> "$folder/$daemon.log" 2>&1 || :
    echo "== $daemon ended at $(date +%T)" >> "$folder/$daemon.log"
    sleep 1
  done
}
while read -r daemon command; do
  keep "$daemon" "$command" &
done < "$folder/daemons"
trap 'exit 0' TERM INT
while :; do
  wait -n || : # also reaps what containers leave behind
  sleep 1
done
