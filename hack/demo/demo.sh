#!/bin/sh
# The main job, told as a story: a disk image becomes a block device, a file
# system lives on it, and the image is whole afterwards, though who serves it was killed;
# then the storage below is taken away, and the device waits for it. Runs as root on a machine whose
# kernel has ublk, or in the guest that `make demo` boots.
set -eu

cd "$(dirname "$0")/../.."
PATH=$PWD/bin:$PATH
dir=$(mktemp -d /tmp/holdfast-demo.XXXXXX)
HOLDFAST_RUN_DIR=$dir/run
export HOLDFAST_RUN_DIR
sys=$dir/run/sys
daemon= storage= copy=

finish() {
	status=$?
	if [ $status -ne 0 ]; then
		for log in "$dir/daemon.log" "$dir/run/devices/demo/log"; do
			if [ -s "$log" ]; then echo; echo "$log:"; cat "$log"; fi
		done
	fi
	# Before the device that it may wait for, which is removed below.
	if [ -n "$copy" ]; then kill "$copy" 2>/dev/null || true; fi
	umount "$dir/mnt" 2>/dev/null || umount -l "$dir/mnt" 2>/dev/null || true
	if [ -n "$daemon" ]; then
		# Twice: the second signal removes devices that are still in use.
		kill "$daemon" 2>/dev/null && sleep 1 && kill "$daemon" 2>/dev/null || true
		wait "$daemon" 2>/dev/null || true
	fi
	# One that was killed leaves its tree, and the servers.
	umount -l "$dir/run/sys" 2>/dev/null || true
	for lock in "$dir"/run/devices/*/lock; do
		if [ -s "$lock" ]; then kill -9 $(head -n 1 "$lock") 2>/dev/null || true; fi
	done
	umount -l "$dir/one" 2>/dev/null || true
	umount -l "$dir/two" 2>/dev/null || true
	if [ -n "$storage" ]; then kill "$storage" 2>/dev/null || true; fi
	rm -rf --one-file-system "$dir"
	exit $status
}
trap finish EXIT
trap 'exit 130' INT TERM

part() {
	if [ -t 1 ]; then printf '\n\033[1m%s\033[0m\n' "$*"; else printf '\n%s\n' "$*"; fi
}

# show prints a text without the demo's directory in it.
show() { sed "s|$dir/||g; s/^/    /"; }

# check runs a command, shows it and its output, and ends the demo if it fails.
check() {
	echo "  \$ $*" | sed "s|$dir/||g"
	if ! "$@" >"$dir/out" 2>&1; then
		show <"$dir/out"
		echo "  That should have worked: the demo ends here."
		exit 1
	fi
	show <"$dir/out"
}

# until_true runs a command again and again, for half a minute at most.
until_true() {
	for _ in $(seq 600); do
		if "$@" >/dev/null 2>&1; then return; fi
		sleep 0.05
	done
	echo "  Not within half a minute: $*" | sed "s|$dir/||g"
	exit 1
}

reads() { [ "$(cat "$1")" = "$2" ]; }
copied() { [ "$(wc -l <"$dir/copied")" -ge "$1" ]; }

# start_daemon has it start servers itself: they are to end with the demo.
start_daemon() {
	holdfast daemon --launcher fork --state-dir "$dir/state" --log-format console >>"$dir/daemon.log" 2>&1 &
	daemon=$!
	until_true holdfast list
}

# server is the process that serves the device, served_anew says that it is another one.
server() { cat "$sys/block/demo/server/pid"; }
served_anew() { [ "$(cat "$sys/block/demo/server/state")" = up ] && [ "$(server)" != "$1" ]; }

sums() { (cd "$1" && find . -type f -print0 | sort -z | xargs -0 sha256sum); }

echo "holdfast: a ploop image as a block device, on Linux $(uname -r)"
modprobe ublk_drv 2>/dev/null || true

part "1. Somebody else's tool makes an image"
check qemu-img create -q -f parallels -o size=256M "$dir/base.hds"
check holdfast image info "$dir/base.hds"

part "2. A daemon manages devices, and each is served by a process of its own"
start_daemon
check holdfast create demo --image "$dir/base.hds"
disk=$(cat "$dir/out")
check lsblk "$disk"
check cat "$sys/block/demo/server/state"
check ps -o args= -p "$(server)"

part "3. A file system lives on it"
check mkfs.ext4 -q "$disk"
mkdir "$dir/mnt" "$dir/tree"
check mount "$disk" "$dir/mnt"
for i in $(seq 40); do
	mkdir -p "$dir/tree/d$((i % 7))"
	head -c $((i * 40000)) /dev/urandom >"$dir/tree/d$((i % 7))/f$i"
done
sums "$dir/tree" >"$dir/sums"
check cp -a "$dir/tree" "$dir/mnt/"
check sync -f "$dir/mnt"
check holdfast list
check holdfast show demo

part "4. Its server is killed, then the daemon: the file system sees a pause, then nothing"
before=$(server)
echo "  \$ kill -9 $before"
kill -9 "$before"
check cp -a "$dir/tree" "$dir/mnt/again"
check sync -f "$dir/mnt"
until_true served_anew "$before"
echo "  The copy is done: process $(server) serves it now."
before=$(server)
kill -9 $daemon
wait $daemon 2>/dev/null || true
daemon=
echo "  The daemon was killed as well. Without one:"
check rm -r "$dir/mnt/again"
check sync -f "$dir/mnt"
check holdfast show demo
start_daemon
if [ "$(server)" != "$before" ]; then
	echo "  The next daemon has not adopted the server!"
	exit 1
fi
echo "  The next daemon has adopted process $before."

part "5. What is in use is not taken away"
if holdfast remove demo >"$dir/out" 2>&1; then
	echo "  The device was removed from under its file system!"
	exit 1
fi
echo "  \$ holdfast remove demo"
show <"$dir/out"

part "6. The bytes come back, through a fresh mount"
check umount "$dir/mnt"
check mount "$disk" "$dir/mnt"
sums "$dir/mnt/tree" | cmp - "$dir/sums"
echo "  $(wc -l <"$dir/sums") files, all checksums as written"
check umount "$dir/mnt"
check holdfast remove demo

part "7. Two judges agree that the image is whole"
check qemu-img check -f parallels "$dir/base.hds"
check holdfast image check "$dir/base.hds"

part "8. A second delta over the first: new writes go to it, the base stays"
sha256sum "$dir/base.hds" >"$dir/base.sum"
check holdfast image create --backing "$dir/base.hds" "$dir/top.hds"
check holdfast create demo --image "$dir/base.hds" --image "$dir/top.hds"
disk=$(cat "$dir/out")
check mount "$disk" "$dir/mnt"
rm -rf "$dir/mnt/tree/d1"
head -c 3000000 /dev/urandom >"$dir/mnt/new"
(cd "$dir/mnt" && sha256sum new) >"$dir/new.sum"
check umount "$dir/mnt"
check mount -o ro "$disk" "$dir/mnt"
cd "$dir/mnt"
check sha256sum -c "$dir/new.sum"
cd "$OLDPWD"
check umount "$dir/mnt"
check e2fsck -fn "$disk"
check dd if="$disk" of="$dir/disk.raw" bs=1M status=none
check holdfast remove demo
check sha256sum -c "$dir/base.sum"
check holdfast image check "$dir/base.hds" "$dir/top.hds"

part "9. QEMU reads the same disk out of the two files"
check qemu-img compare --image-opts \
	"driver=parallels,file.filename=$dir/top.hds,backing.driver=parallels,backing.file.filename=$dir/base.hds" \
	"driver=raw,file.filename=$dir/disk.raw"

part "10. An image on a storage that is somebody else's process"
mkdir "$dir/store" "$dir/one" "$dir/two"
bindfs -f "$dir/store" "$dir/one" &
storage=$!
until_true mountpoint -q "$dir/one"
check holdfast image create --size 256M "$dir/one/disk.hds"
check holdfast create demo --image "$dir/one/disk.hds"
disk=$(cat "$dir/out")
check cat "$sys/block/demo/queue/standby"
echo "  Two fuses: the check is switched on, and somebody says that he can wait."
echo "  \$ echo 1 >run/sys/module/parameters/standby_check"
echo 1 >"$sys/module/parameters/standby_check"
check holdfast attach demo --consumer demo
check cat "$sys/block/demo/queue/standby"

part "11. The storage is taken away in the midst of a copy"
check mkfs.ext4 -q "$disk"
check mount "$disk" "$dir/mnt"
mkdir "$dir/mnt/copy"
: >"$dir/copied"
# Each file is on the disk before the next.
(cd "$dir/tree" && find . -type f | while read -r f; do
	mkdir -p "$dir/mnt/copy/${f%/*}" && cp "$f" "$dir/mnt/copy/$f" && sync "$dir/mnt/copy/$f" || exit 1
	echo "$f" >>"$dir/copied"
done) &
copy=$!
until_true copied 5
kill -9 $storage
wait $storage 2>/dev/null || true
storage=
echo "  The storage's process was killed. What the mount says now:"
echo "  \$ ls one"
ls "$dir/one" 2>&1 | show
until_true reads "$sys/block/demo/queue/standby" on
check cat "$sys/block/demo/queue/standby"
check holdfast why demo
before=$(wc -l <"$dir/copied")
sleep 1
if ! kill -0 $copy; then
	echo "  The copy has ended without its storage!"
	exit 1
fi
echo "  A second later the copy waits still, after $before files of $(wc -l <"$dir/sums")."

part "12. The same file by another way: the copy goes on"
bindfs -f "$dir/store" "$dir/two" &
storage=$!
until_true mountpoint -q "$dir/two"
check holdfast replace demo --top "$dir/two/disk.hds"
check cat "$sys/block/demo/queue/standby"
if ! wait $copy; then
	echo "  The copy has failed!"
	exit 1
fi
copy=
check umount "$dir/mnt"
check mount "$disk" "$dir/mnt"
sums "$dir/mnt/copy" | cmp - "$dir/sums"
echo "  The copy is done: $(wc -l <"$dir/sums") files, all checksums as they should be"
check umount "$dir/mnt"
check e2fsck -fn "$disk"
check holdfast detach demo --consumer demo
check holdfast remove demo
check holdfast image check "$dir/two/disk.hds"

printf '\nThe story ends well.\n'
