package device

import (
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"holdfast/hack/faultfs"
	"holdfast/ploop"
)

func TestMain(m *testing.M) {
	faultfs.Child() // storage that fails on demand is a process of its own
	os.Exit(m.Run())
}

// longEnv asks for everything, which takes some minutes.
const longEnv = "HOLDFAST_STANDBY_LONG"

// twoMounts are two mounts of the same image files, each of which can fail.
type twoMounts struct {
	a, b    *faultfs.Storage
	backing string
}

func newTwoMounts(t testing.TB, o faultfs.Options) *twoMounts {
	t.Helper()
	if os.Getenv("HOLDFAST_VM") != "" {
		exec.Command("modprobe", "fuse").Run() // may be built in
	}
	w := &twoMounts{backing: t.TempDir()}
	for _, s := range []**faultfs.Storage{&w.a, &w.b} {
		var err error
		if *s, err = faultfs.Mount(w.backing, t.TempDir(), o); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { (*s).Close() })
	}
	return w
}

// other is the other mount.
func (w *twoMounts) other(s *faultfs.Storage) *faultfs.Storage {
	if s == w.a {
		return w.b
	}
	return w.a
}

// refs are images of the backing directory by one mount.
func refs(s *faultfs.Storage, names ...string) []ploop.ImageRef {
	all := make([]ploop.ImageRef, len(names))
	for i, n := range names {
		all[i].Path = filepath.Join(s.Dir, n)
	}
	return all
}

// blockSize is the unit in which these tests write.
const blockSize = 4096

// fill makes a version of a block: each sector says which block and version
// it is of. Version 0 is zeroes.
func fill(p []byte, block, version uint64) {
	clear(p)
	if version == 0 {
		return
	}
	for s := 0; s < len(p); s += 512 {
		binary.LittleEndian.PutUint64(p[s:], block)
		binary.LittleEndian.PutUint64(p[s+8:], version)
		binary.LittleEndian.PutUint64(p[s+496:], version)
		binary.LittleEndian.PutUint64(p[s+504:], ^block)
	}
}

// versionOf reads a sector that fill made.
func versionOf(sector []byte, block uint64) (uint64, error) {
	b, v := binary.LittleEndian.Uint64(sector), binary.LittleEndian.Uint64(sector[8:])
	v2, b2 := binary.LittleEndian.Uint64(sector[496:]), ^binary.LittleEndian.Uint64(sector[504:])
	if b == 0 && v == 0 && v2 == 0 && b2 == ^uint64(0) {
		return 0, nil
	}
	if b != block || b2 != block || v != v2 {
		return 0, fmt.Errorf("a sector of block %d is of block %d, version %d (and %d, %d)", block, b, v, b2, v2)
	}
	return v, nil
}

// disk is a device's block device, open past the page cache.
type rawDisk int

func openDisk(t testing.TB, d *Device) rawDisk {
	t.Helper()
	fd, err := unix.Open(d.Path(), unix.O_RDWR|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return rawDisk(fd)
}

func (fd rawDisk) write(block, version uint64) error {
	p := ploop.AlignedBuffer(blockSize)
	fill(p, block, version)
	return whole(unix.Pwrite(int(fd), p, int64(block)*blockSize))
}

// writeThrough is durable when it returns (FUA).
func (fd rawDisk) writeThrough(block, version uint64) error {
	p := ploop.AlignedBuffer(blockSize)
	fill(p, block, version)
	return whole(unix.Pwritev2(int(fd), [][]byte{p}, int64(block)*blockSize, unix.RWF_DSYNC))
}

// writeMany and expectMany are for several blocks in one request.
func (fd rawDisk) writeMany(block, n, version uint64) error {
	p := ploop.AlignedBuffer(int(n) * blockSize)
	for b := range n {
		fill(p[b*blockSize:][:blockSize], block+b, version)
	}
	done, err := unix.Pwrite(int(fd), p, int64(block)*blockSize)
	if err == nil && done != len(p) {
		err = fmt.Errorf("%d of %d bytes", done, len(p))
	}
	return err
}

func (fd rawDisk) expectMany(block, n, version uint64) error {
	p := ploop.AlignedBuffer(int(n) * blockSize)
	done, err := unix.Pread(int(fd), p, int64(block)*blockSize)
	if err != nil || done != len(p) {
		return fmt.Errorf("%d of %d bytes: %v", done, len(p), err)
	}
	for s := 0; s < len(p); s += 512 {
		b := block + uint64(s/blockSize)
		if v, err := versionOf(p[s:][:512], b); err != nil || v != version {
			return fmt.Errorf("block %d is of version %d, want %d: %v", b, v, version, err)
		}
	}
	return nil
}

func whole(n int, err error) error {
	if err == nil && n != blockSize {
		return fmt.Errorf("%d of %d bytes", n, blockSize)
	}
	return err
}

// read gives the version of each of the block's sectors.
func (fd rawDisk) read(block uint64) (v [blockSize / 512]uint64, err error) {
	p := ploop.AlignedBuffer(blockSize)
	if err := whole(unix.Pread(int(fd), p, int64(block)*blockSize)); err != nil {
		return v, err
	}
	for i := range v {
		if v[i], err = versionOf(p[i*512:][:512], block); err != nil {
			return v, err
		}
	}
	return v, nil
}

// expect reads a block that has to be of one version.
func (fd rawDisk) expect(block, version uint64) error {
	got, err := fd.read(block)
	if err != nil {
		return err
	}
	for _, v := range got {
		if v != version {
			return fmt.Errorf("block %d is of versions %v, want %d", block, got, version)
		}
	}
	return nil
}

func (fd rawDisk) flush() error { return unix.Fdatasync(int(fd)) }

// discard and zero take whole ranges of blocks.
func (fd rawDisk) discard(block, n uint64) error { return fd.rangeIoctl(unix.BLKDISCARD, block, n) }
func (fd rawDisk) zero(block, n uint64) error    { return fd.rangeIoctl(unix.BLKZEROOUT, block, n) }

func (fd rawDisk) rangeIoctl(op uint, block, n uint64) error {
	arg := [2]uint64{block * blockSize, n * blockSize}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), uintptr(op), uintptr(unsafe.Pointer(&arg))); errno != 0 {
		return errno
	}
	return nil
}

// eventually waits for what has no bound in time but a generous one.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain: %s", what)
		}
	}
}
