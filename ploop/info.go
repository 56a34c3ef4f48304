package ploop

import (
	"encoding/hex"
	"fmt"

	"golang.org/x/sys/unix"

	"holdfast/ploop/internal/format"
	"holdfast/ploop/internal/storage"
)

// Format is the format of an image file. As text it is raw, ploop1 or ploop2.
type Format int

// The formats. The ploop ones have the number of their version.
const (
	FormatRaw Format = 0
	FormatV1  Format = 1
	FormatV2  Format = 2
)

func (f Format) String() string {
	switch f {
	case FormatRaw:
		return "raw"
	case FormatV1:
		return "ploop1"
	case FormatV2:
		return "ploop2"
	}
	return fmt.Sprintf("Format(%d)", int(f))
}

// MarshalText is for JSON.
func (f Format) MarshalText() ([]byte, error) { return []byte(f.String()), nil }

// UnmarshalText is the inverse of MarshalText.
func (f *Format) UnmarshalText(b []byte) error {
	for _, k := range []Format{FormatRaw, FormatV1, FormatV2} {
		if string(b) == k.String() {
			*f = k
			return nil
		}
	}
	return fmt.Errorf("image format %q: there are raw, ploop1 and ploop2", b)
}

// Info is what an image says of itself. Sizes and offsets are in bytes.
type Info struct {
	File        string `json:"file"`
	Format      Format `json:"format"`
	Size        int64  `json:"size"` // of the disk
	ClusterSize int64  `json:"cluster_size,omitempty"`
	Clusters    uint64 `json:"clusters,omitempty"` // of the disk
	BATEntries  uint32 `json:"bat_entries,omitempty"`
	Allocated   uint64 `json:"allocated,omitempty"`   // clusters in the file
	BadEntries  uint64 `json:"bad_entries,omitempty"` // BAT entries that point nowhere sensible
	DataOffset  int64  `json:"data_offset,omitempty"`
	FileSize    int64  `json:"file_size"`
	DiskUsage   int64  `json:"disk_usage"` // what the file system stores of the file
	// InUse says that the image is open for writing, or was and wasn't
	// closed; Locked, that someone has it open now (where the file system
	// carries locks).
	InUse     bool     `json:"in_use"`
	Locked    bool     `json:"locked"`
	Flags     uint32   `json:"flags,omitempty"`
	Heads     uint32   `json:"heads,omitempty"`
	Cylinders uint32   `json:"cylinders,omitempty"`
	Extension *ExtInfo `json:"extension,omitempty"`
	// Problems say, a line each, what of the header can't be right, and by
	// what guess the rest was read.
	Problems []string `json:"problems,omitempty"`
}

// ExtInfo describes the format extension of an image.
type ExtInfo struct {
	Offset   int64         `json:"offset"`
	Ignored  bool          `json:"ignored,omitempty"` // not valid now, for the Reason
	Reason   string        `json:"reason,omitempty"`  // one of the Ignored constants
	Error    string        `json:"error,omitempty"`   // why it can't be taken
	Bitmaps  []BitmapInfo  `json:"bitmaps,omitempty"`
	Sections []SectionInfo `json:"sections,omitempty"` // unknown ones
}

// Why a format extension isn't valid.
const (
	IgnoredOpen    = "open"    // the image is open for writing, or wasn't closed cleanly
	IgnoredUnknown = "unknown" // it was last closed by software that doesn't know extensions
)

// BitmapInfo describes a dirty bitmap.
type BitmapInfo struct {
	ID          string `json:"id"`          // as a UUID
	Granularity int64  `json:"granularity"` // in bytes
	Dirty       int64  `json:"dirty"`       // in bytes, whole granules
}

// SectionInfo describes a section of the extension that this software doesn't know.
type SectionInfo struct {
	Magic     string `json:"magic"`
	Size      int    `json:"size"`
	Necessary bool   `json:"necessary,omitempty"` // who can't read it must not write the image
	Transit   bool   `json:"transit,omitempty"`   // who can't read it must carry it
}

// ReadInfo reads an image's header and counts its clusters. It takes no lock
// and so works on images in use, whose figures may be old when it returns.
func ReadInfo(ref ImageRef) (*Info, error) {
	d, err := format.Open(ref, storage.OpenUnlocked, false, false, format.Tolerance{Damaged: true, OddRaw: true})
	if err != nil {
		return nil, err
	}
	defer d.File.Close()
	h := &d.Header
	i := &Info{File: ref.Path, Format: Format(h.Version), Size: int64(h.Sectors) * SectorSize, FileSize: d.Size, Problems: d.Guesses()}
	var st unix.Stat_t
	if err := unix.Fstat(d.File.Fd(), &st); err != nil {
		return nil, d.IOError("stat", -1, err)
	}
	i.DiskUsage = st.Blocks * 512
	lk := unix.Flock_t{Type: unix.F_WRLCK}
	if unix.FcntlFlock(uintptr(d.File.Fd()), unix.F_OFD_GETLK, &lk) == nil {
		i.Locked = lk.Type != unix.F_UNLCK
	}
	if ref.Raw {
		return i, nil
	}
	i.ClusterSize, i.Clusters, i.BATEntries = h.ClusterSize(), h.Clusters(), h.BATEntries
	i.DataOffset = int64(h.DataStart()) * SectorSize
	i.InUse, i.Flags, i.Heads, i.Cylinders = h.InUse == format.InUseDirty, h.Flags, h.Heads, h.Cylinders
	if h.ExtOff != 0 {
		i.Extension = extInfo(d)
	}
	_, err = d.ScanBAT(func(uint64, uint64) { i.Allocated++ }, func(uint64, uint32, format.Problem) error {
		i.BadEntries++
		return nil
	})
	return i, err
}

func extInfo(d *format.Delta) *ExtInfo {
	x := &ExtInfo{Offset: int64(d.Header.ExtOff) * SectorSize, Ignored: d.Header.InUse != format.InUseClosed}
	switch {
	case d.Header.InUse == format.InUseDirty:
		x.Reason = IgnoredOpen
	case x.Ignored:
		x.Reason = IgnoredUnknown
	}
	if d.ExtErr != nil {
		x.Error = d.ExtErr.Error()
	}
	if d.Ext == nil {
		return x
	}
	for _, b := range d.Ext.Bitmaps {
		g := int64(b.Granularity) * SectorSize
		x.Bitmaps = append(x.Bitmaps, BitmapInfo{ID: uuid(b.ID), Granularity: g, Dirty: int64(b.Dirty()) * g})
	}
	for _, s := range d.Ext.Unknown {
		x.Sections = append(x.Sections, SectionInfo{Magic: fmt.Sprintf("%#x", s.Magic), Size: len(s.Data),
			Necessary: s.Flags&format.SectionNeeded != 0, Transit: s.Flags&format.SectionTransit != 0})
	}
	return x
}

func uuid(id [16]byte) string {
	s := hex.EncodeToString(id[:])
	return s[:8] + "-" + s[8:12] + "-" + s[12:16] + "-" + s[16:20] + "-" + s[20:]
}
