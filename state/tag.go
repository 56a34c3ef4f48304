package state

import (
	"encoding"
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"path/filepath"
	"strconv"
	"time"
)

// A Tag is the mark that a device has in the driver, which keeps it for the device's life and
// does not look at it (ublksrv_flags): from the high bits to the low ones "hf" in ASCII, 16 bits of
// a hash of the state directory's name, and 32 bits of one of the device's name and of when it
// was created. So a device that has only the number of another one of ours is not taken for it.
//
// Before there were such marks, all devices of a state directory had the same one: "hold", and
// 32 bits of the hash. A record of such a device has none (Record.Tag is 0), and of these the
// number alone tells one from another.
type Tag uint64

const (
	tagMark    = 0x6866     // "hf"
	oldTagMark = 0x686f6c64 // "hold"
)

// NewTag is the mark for a device that is made now.
func NewTag(stateDir, name string, created time.Time) Tag {
	h := fnv.New32a()
	h.Write([]byte(name))
	h.Write(binary.BigEndian.AppendUint64([]byte{0}, uint64(created.UnixNano())))
	return tagMark<<48 | Tag(dirHash(stateDir)&0xffff)<<32 | Tag(h.Sum32())
}

// OldTag is the mark that devices of a state directory had before NewTag.
func OldTag(stateDir string) Tag { return oldTagMark<<32 | Tag(dirHash(stateDir)) }

// Of says whether a device with this mark is, as far as the mark tells, one of the state directory.
func (t Tag) Of(stateDir string) bool {
	return t == OldTag(stateDir) || t>>32 == tagMark<<16|Tag(dirHash(stateDir)&0xffff)
}

func dirHash(stateDir string) uint32 {
	if abs, err := filepath.Abs(stateDir); err == nil {
		stateDir = abs
	}
	h := fnv.New32a()
	h.Write([]byte(stateDir))
	return h.Sum32()
}

var (
	_ encoding.TextMarshaler   = Tag(0)
	_ encoding.TextUnmarshaler = (*Tag)(nil)
)

// MarshalText is the mark in hexadecimal: not every reader of JSON has integers of 64 bits.
func (t Tag) MarshalText() ([]byte, error) { return fmt.Appendf(nil, "%016x", uint64(t)), nil }

// UnmarshalText takes what MarshalText makes.
func (t *Tag) UnmarshalText(text []byte) error {
	n, err := strconv.ParseUint(string(text), 16, 64)
	if err != nil {
		return fmt.Errorf("tag %q: %w", text, err)
	}
	*t = Tag(n)
	return nil
}

// A Disk is a device as the driver knows it. A number alone means little: it is given again once
// its device is gone.
type Disk struct {
	ID  int
	Tag Tag
}

func (d Disk) String() string { return fmt.Sprintf("/dev/ublkb%d", d.ID) }

// Disk is what the driver has of the record's device, if it has anything.
func (r *Record) Disk(stateDir string) Disk {
	if r.Tag == 0 {
		return Disk{r.ID, OldTag(stateDir)}
	}
	return Disk{r.ID, r.Tag}
}
