#!/bin/sh
# The main job, told as a story: a disk image becomes a block device, a file
# system lives on it, and the image is whole afterwards. Runs as root on a
# machine whose kernel has ublk, or in the guest that `make demo` boots.
set -eu

cd "$(dirname "$0")/../.."
PATH=$PWD/bin:$PATH
dir=$(mktemp -d /tmp/holdfast-demo.XXXXXX)
HOLDFAST_RUN_DIR=$dir/run
export HOLDFAST_RUN_DIR
daemon=

finish() {
	status=$?
	if [ $status -ne 0 ] && [ -s "$dir/daemon.log" ]; then
		echo; echo "The daemon's log:"; cat "$dir/daemon.log"
	fi
	umount "$dir/mnt" 2>/dev/null || true
	if [ -n "$daemon" ]; then
		# Twice: the second signal removes devices that are still in use.
		kill "$daemon" 2>/dev/null && sleep 1 && kill "$daemon" 2>/dev/null || true
		wait "$daemon" 2>/dev/null || true
	fi
	rm -rf "$dir"
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

sums() { (cd "$1" && find . -type f -print0 | sort -z | xargs -0 sha256sum); }

echo "holdfast: a ploop image as a block device, on Linux $(uname -r)"
modprobe ublk_drv 2>/dev/null || true

part "1. Somebody else's tool makes an image"
check qemu-img create -q -f parallels -o size=256M "$dir/base.hds"
check holdfast image info "$dir/base.hds"

part "2. A daemon serves it"
holdfast daemon --state-dir "$dir/state" --log-format console >"$dir/daemon.log" 2>&1 &
daemon=$!
for _ in $(seq 100); do
	[ -S "$dir/run/control.sock" ] && break
	sleep 0.1
done
check holdfast create demo --image "$dir/base.hds"
disk=$(cat "$dir/out")
check lsblk "$disk"

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

part "4. What is in use is not taken away"
if holdfast remove demo >"$dir/out" 2>&1; then
	echo "  The device was removed from under its file system!"
	exit 1
fi
echo "  \$ holdfast remove demo"
show <"$dir/out"

part "5. The bytes come back, through a fresh mount"
check umount "$dir/mnt"
check mount "$disk" "$dir/mnt"
sums "$dir/mnt/tree" | cmp - "$dir/sums"
echo "  $(wc -l <"$dir/sums") files, all checksums as written"
check umount "$dir/mnt"
check holdfast remove demo

part "6. Two judges agree that the image is whole"
check qemu-img check -f parallels "$dir/base.hds"
check holdfast image check "$dir/base.hds"

part "7. A second delta over the first: new writes go to it, the base stays"
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

part "8. QEMU reads the same disk out of the two files"
check qemu-img compare --image-opts \
	"driver=parallels,file.filename=$dir/top.hds,backing.driver=parallels,backing.file.filename=$dir/base.hds" \
	"driver=raw,file.filename=$dir/disk.raw"

printf '\nThe story ends well.\n'
