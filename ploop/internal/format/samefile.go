package format

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash/fnv"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/ploop/image"
	"holdfast/ploop/internal/storage"
)

const (
	// Sampled are the entries or sectors that are remembered, at most: enough to tell two
	// images apart, and few enough for a record of 253 of them.
	Sampled = 24
	// Examined are the entries or sectors that these are chosen from, at most: evenly over the
	// disk, and at its beginning.
	Examined = 4096
)

// birthSlack is by how much the time of birth may differ: FAT stores it in units of 10 ms, and
// memory knows it better than the disk.
const birthSlack = 2 * time.Second

// FileNumbers asks an open file for its inode number, st_dev and time of birth; zero: not known.
func FileNumbers(fd int) (inode, device uint64, birth time.Time, err error) {
	var st unix.Statx_t
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_INO|unix.STATX_BTIME, &st); err != nil {
		return 0, 0, birth, err
	}
	if st.Mask&unix.STATX_BTIME != 0 && st.Btime.Sec != 0 {
		birth = time.Unix(st.Btime.Sec, int64(st.Btime.Nsec)).UTC()
	}
	return st.Ino, unix.Mkdev(st.Dev_major, st.Dev_minor), birth, nil
}

// Constant are the fields that a server never changes.
func (h *Header) Constant() string {
	c := *h
	c.InUse, c.Flags, c.ExtOff = 0, 0, 0
	return hex.EncodeToString(c.Encode())
}

// Samples calls visit with numbers below n, at most Examined of them, until it says no.
func Samples(n uint64, visit func(i uint64) bool) {
	first := min(n, Examined/2)
	for i := range first {
		if !visit(i) {
			return
		}
	}
	for i := range uint64(Examined / 2) {
		if at := n / (Examined / 2) * i; at >= first && !visit(at) {
			return
		}
	}
}

// SampleSectors takes some from the beginning, where partitions and file systems have their
// names, and others from all over the disk.
func (d *Delta) SampleSectors() (found [][2]uint64, err error) {
	n := uint64(d.Size / image.SectorSize)
	at := []uint64{0, 1, 2, 8, 128}
	for i := range uint64(Sampled - len(at)) {
		at = append(at, n/Sampled*(i+1))
	}
	slices.Sort(at)
	for _, i := range slices.Compact(at) {
		if i >= n {
			continue
		}
		sum, err := d.sumSector(i)
		if err != nil {
			return nil, err
		}
		if sum != 0 {
			found = append(found, [2]uint64{i, sum})
		}
	}
	return found, nil
}

// sumSector is 0 for zeroes.
func (d *Delta) sumSector(i uint64) (uint64, error) {
	b := storage.AlignedBuffer(storage.BufferAlign)
	off := int64(i) * image.SectorSize / storage.BufferAlign * storage.BufferAlign // what 4Kn storage reads, too
	in := int64(i)*image.SectorSize - off
	if err := d.ReadSectors(b, off, in+image.SectorSize); err != nil {
		return 0, d.IOError("read", off, err)
	}
	b = b[in : in+image.SectorSize]
	if len(strings.Trim(string(b), "\x00")) == 0 {
		return 0, nil
	}
	h := fnv.New64a()
	h.Write(b)
	return h.Sum64(), nil
}

// withNumbers are file systems whose inode numbers stay, apart from those on disks: of
// the latter only FAT, exFAT and those of FUSE are known not to.
var withNumbers = []string{"btrfs", "zfs", "bcachefs", "ubifs", "tmpfs", "ramfs", "nfs", "nfs4", "ceph", "fuse.glusterfs", "lustre", "devtmpfs"}

// KeepsNumbers says whether the inode numbers of a mount's files stay.
func KeepsNumbers(m image.Mount) bool {
	switch m.Type {
	case "vfat", "msdos", "exfat":
		return false
	}
	return slices.Contains(withNumbers, m.Type) || unix.Major(m.Super) != 0 && !storage.IsFUSE(m.Type)
}

// SameFile says whether a path leads to the file that the evidence is of: nil, it does; an
// ErrDiverged says what is another; ErrUnproven: it may, and nothing tells. The time
// of birth and the content are asked only where the inode number doesn't tell, or with
// anew, where the file system itself may be another one. It hangs with the file's storage.
func SameFile(e *image.Evidence, ref image.Ref, anew bool) error {
	fd, err := unix.Open(ref.Path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: ref.Path, Err: err}
	}
	inode, _, birth, err := FileNumbers(fd)
	var now image.Mount
	if err == nil {
		now, err = storage.MountOfOpen(fd)
	}
	unix.Close(fd)
	if err != nil {
		return &os.PathError{Op: "stat", Path: ref.Path, Err: err}
	}
	switch {
	case inode == e.Inode && !anew:
		return nil
	case inode != e.Inode && KeepsNumbers(now) && KeepsNumbers(e.Mount):
		return otherFile(ref, "file", fmt.Sprintf("inode %d", inode), fmt.Sprintf("inode %d, as it was served", e.Inode))
	}
	if err := fits(e, ref); err != nil {
		return err
	}
	if !birth.IsZero() && !e.Birth.IsZero() {
		if d := birth.Sub(e.Birth).Abs(); d > birthSlack {
			return otherFile(ref, "file", "one made at "+birth.Format(time.RFC3339), e.Birth.Format(time.RFC3339)+", as the one that was served")
		}
		return nil
	}
	if ref.Raw && len(e.Sectors) == 0 {
		return fmt.Errorf("image %q: %w: its inode number is another (%d, was %d), and it was empty", ref.Path, image.ErrUnproven, inode, e.Inode)
	}
	return nil
}

func otherFile(ref image.Ref, what, found, want string) error {
	return &image.FormatError{File: ref.Path, Offset: -1, What: what, Found: found, Want: want, Class: image.ErrDiverged}
}

// fits compares the content.
func fits(e *image.Evidence, ref image.Ref) error {
	if ref.Raw != (e.Head == "") {
		return otherFile(ref, "format", "raw: "+fmt.Sprint(ref.Raw), "as it was served")
	}
	raw := int64(0)
	if ref.Raw {
		raw = e.Size
	}
	d, err := OpenKnown(ref, storage.OpenUnlocked, false, true, Tolerance{Damaged: true}, raw)
	if err != nil {
		return err
	}
	defer d.File.Close()
	if ref.Raw {
		return fitsRaw(e, d)
	}
	if d.Header.Constant() != e.Head {
		return otherFile(ref, "header", d.Header.Constant(), e.Head+", as it was served")
	}
	if (d.Header.InUse == InUseDirty) != e.Written {
		return d.Diverged(44, "in_use", fmt.Sprintf("%#x", d.Header.InUse), "as it was left")
	}
	if d.Size < e.Size && !e.Written {
		return otherFile(ref, "size", fmt.Sprintf("%d bytes", d.Size), fmt.Sprintf("%d, as it was served", e.Size))
	}
	for _, want := range e.Index {
		b := storage.AlignedBuffer(image.SectorSize)
		at := HeaderSize + BATEntrySize*int64(want[0])
		if err := d.ReadSectors(b, at/image.SectorSize*image.SectorSize, at%image.SectorSize+BATEntrySize); err != nil {
			return d.IOError("read BAT", at, err)
		}
		raw := binary.LittleEndian.Uint32(b[at%image.SectorSize:])
		if found := d.Header.SectorOf(raw); found != want[1] && (raw != 0 || !e.Written) { // or discarded since
			return d.Diverged(at, fmt.Sprintf("BAT entry of cluster %d", want[0]), fmt.Sprintf("sector %d", found), fmt.Sprintf("sector %d, as it was served", want[1]))
		}
	}
	return nil
}

// fitsRaw wants the same sectors, and half of them where they may have been written to.
func fitsRaw(e *image.Evidence, d *Delta) error {
	same := 0
	for _, want := range e.Sectors {
		sum, err := d.sumSector(want[0])
		if err != nil {
			return err
		}
		if sum == want[1] {
			same++
		}
	}
	if same == len(e.Sectors) || e.Written && 2*same >= len(e.Sectors) {
		return nil
	}
	err := d.Diverged(-1, "content", fmt.Sprintf("%d of %d sectors that are as they were", same, len(e.Sectors)), "those of the image that was served")
	if e.Written {
		return fmt.Errorf("%w: %w", image.ErrUnproven, err)
	}
	return err
}
