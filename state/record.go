package state

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"

	"holdfast/api"
	"holdfast/ploop/image"
)

// A record is what the state directory knows of a device.
type Record struct {
	Spec    api.Spec  `json:"spec"`
	ID      int       `json:"id"`            // device number, -1 until the driver gave one
	Tag     Tag       `json:"tag,omitempty"` // 0: the device was made before there were such; see Disk
	BootID  string    `json:"boot_id"`
	PID     int       `json:"pid"` // of the server
	Created time.Time `json:"created"`
	Images  []ImageID `json:"images"` // in the order of Spec.Images
	// Evidence is of the same files, as they were opened last; one that is zero, or missing
	// in an old record, was never opened. Size is the disk's, in bytes, 0: not known.
	Evidence []image.Evidence `json:"evidence,omitempty"`
	Size     int64            `json:"size,omitempty"`
	// Earlier are further mounts by which writes of the server may be under way.
	Earlier []image.Mount `json:"earlier,omitempty"`
	// Generation counts changes of the spec since the device was made.
	Generation uint64 `json:"generation,omitempty"`
	// Leases are those that were taken by hand, TargetLeases those of targets.
	Leases       []string `json:"leases,omitempty"`
	TargetLeases []string `json:"target_leases,omitempty"`
	// Closed: the images of a persistent device were closed cleanly at the end of its
	// server, and nobody knows what happened to them since.
	Closed bool `json:"closed,omitempty"`
	// Left: its server left it in order, and nothing was under way.
	Left bool `json:"left,omitempty"`
	// Standby is the one that the device is in.
	Standby *Standby `json:"standby,omitempty"`
	// Serial counts the changes of the record: of two copies the higher one is right.
	Serial uint64 `json:"serial,omitempty"`
}

type Standby struct {
	ByHand bool      `json:"by_hand,omitempty"`
	Errno  int       `json:"errno,omitempty"`
	Cause  string    `json:"cause"`
	Since  time.Time `json:"since"`
}

// ImageID tells whether a path still leads to the file that it led to.
type ImageID struct {
	Dev uint64 `json:"dev"` // only compared within one boot: numbers of disks move
	Ino uint64 `json:"ino"`
}

// recordFile is a record on disk. The sum is there because a spec with one
// wrong letter in a path would still be a spec.
type recordFile struct {
	Version int             `json:"version"` // 1
	CRC32C  string          `json:"crc32c"`  // of Device without insignificant white space
	Device  json.RawMessage `json:"device"`
}

const (
	recordVersion = 1
	RecordSuffix  = ".json"
	DamagedSuffix = ".damaged"
	// maxRecord bounds what is read: 253 images with paths of 4 KiB, escaped.
	MaxRecord = 8 << 20
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Records is the directory of them. A copy of each is kept in the run directory, which
// ends with the boot: while a device lives, a state directory that is damaged, or that
// nothing can be written to, loses nothing of it.
type Records struct {
	Dir  string
	Run  string // the run directory, for the copies; "": there are none
	Boot string // of copies that count
	// Failed is why the directory could not be written to the last time; nil: it could.
	Failed *atomic.Pointer[string]
}

// Path is a record's file.
func (r Records) Path(name string) string { return filepath.Join(r.Dir, name+RecordSuffix) }

// CopyPath is its copy's.
func (r Records) CopyPath(name string) string {
	return Run(r.Run).Device(name).Record()
}

// copies is the directory in the run directory that has one for each device.
const copies = "devices"

// Save makes rec durable under its spec's name: temporary file, fsync, rename,
// fsync of the directory. After an error the copy may have it.
func (r Records) Save(rec *Record) error {
	rec.Serial++
	if r.Run != "" {
		// The state directory is what counts while it can be written to.
		path := r.CopyPath(rec.Spec.Name)
		if os.MkdirAll(filepath.Dir(path), 0o700) == nil {
			_ = write(path, rec)
		}
	}
	err := write(r.Path(rec.Spec.Name), rec)
	if r.Failed != nil {
		r.Failed.Store(nil)
		if err != nil {
			why := err.Error()
			r.Failed.Store(&why)
		}
	}
	return err
}

// Problem tells of a directory that can't be written to.
func (r Records) Problem() (api.Problem, bool) {
	why := r.Failed.Load()
	if why == nil {
		return api.Problem{}, false
	}
	return api.Problem{File: r.Dir, Reason: *why,
		Advice: "see to the space and the rights there; devices are served, and until the machine goes down the run directory knows what the records should"}, true
}

func write(path string, rec *Record) error {
	inner, err := json.Marshal(rec)
	if err != nil {
		return err
	}
	data, err := json.MarshalIndent(recordFile{
		Version: recordVersion,
		CRC32C:  fmt.Sprintf("%08x", crc32.Checksum(inner, castagnoli)),
		Device:  inner,
	}, "", "  ")
	if err != nil {
		return err
	}
	// The temporary file must lie in the same directory: a rename from /tmp
	// would be a copy on another file system, and not found by load's cleaning.
	err = renameio.WriteFile(path, append(data, '\n'), 0o600, renameio.WithTempDir(filepath.Dir(path)))
	if err == nil {
		err = syncDir(filepath.Dir(path))
	}
	if err != nil {
		return fmt.Errorf("cannot write the record of device %q to the state directory: %w", rec.Spec.Name, err)
	}
	return nil
}

// Remove forgets a name, durably. A record that isn't there is no error.
func (r Records) Remove(name string) error {
	if r.Run != "" {
		// First, so that a crash in between leaves what it left before.
		path := r.CopyPath(name)
		_ = os.Remove(path)
		_ = os.Remove(filepath.Dir(path)) // if nothing else is there
		_ = os.Remove(r.oldCopyPath(name))
	}
	err := os.Remove(r.Path(name))
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		err = syncDir(r.Dir)
	}
	if err != nil {
		return fmt.Errorf("cannot remove the record of device %q: %w", name, err)
	}
	return nil
}

// ReadRecord reads one file.
func ReadRecord(path string) (*Record, error) {
	// O_NONBLOCK: a FIFO in the directory must not stop the start.
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if fi, err := f.Stat(); err != nil {
		return nil, err
	} else if !fi.Mode().IsRegular() {
		return nil, errors.New("it is not a regular file")
	}
	data, err := io.ReadAll(io.LimitReader(f, MaxRecord+1))
	if err != nil {
		return nil, err
	}
	if len(data) > MaxRecord {
		return nil, fmt.Errorf("it is larger than %d bytes", MaxRecord)
	}
	return parseRecord(data)
}

func parseRecord(data []byte) (*Record, error) {
	if len(bytes.TrimSpace(data)) == 0 {
		return nil, errors.New("it is empty")
	}
	var file recordFile
	if err := json.Unmarshal(data, &file); err != nil {
		return nil, fmt.Errorf("it is not valid JSON: %v", err)
	}
	if file.Version != recordVersion {
		return nil, fmt.Errorf("it has version %d, and this program knows %d", file.Version, recordVersion)
	}
	var inner bytes.Buffer
	if err := json.Compact(&inner, file.Device); err != nil {
		return nil, fmt.Errorf("it is not valid JSON: %v", err)
	}
	if sum := fmt.Sprintf("%08x", crc32.Checksum(inner.Bytes(), castagnoli)); sum != file.CRC32C {
		return nil, fmt.Errorf("its checksum is %s, and says %q", sum, file.CRC32C)
	}
	rec := new(Record)
	if err := json.Unmarshal(inner.Bytes(), rec); err != nil {
		return nil, fmt.Errorf("it is not a device: %v", err)
	}
	if err := rec.Spec.Validate(); err != nil {
		return nil, fmt.Errorf("its spec is wrong: %v", err)
	}
	if len(rec.Images) != len(rec.Spec.Images) {
		return nil, fmt.Errorf("it identifies %d images of %d", len(rec.Images), len(rec.Spec.Images))
	}
	return rec, nil
}

// putAside renames a bad record so that its name is free and nothing is lost.
func putAside(path string, why error) api.Problem {
	to := path + DamagedSuffix
	for i := 1; ; i++ {
		if _, err := os.Lstat(to); errors.Is(err, fs.ErrNotExist) {
			break
		}
		to = fmt.Sprintf("%s%s.%d", path, DamagedSuffix, i)
	}
	if err := os.Rename(path, to); err != nil {
		p := damagedProblem(path, why.Error())
		p.Reason += fmt.Sprintf(" (and it could not be renamed: %v)", err)
		return p
	}
	syncDir(filepath.Dir(path))
	return damagedProblem(to, why.Error())
}

// damagedReason begins the reason of a damaged record.
const damagedReason = "damaged record of a device: "

func damagedProblem(path, why string) api.Problem {
	return api.Problem{
		File:   path,
		Reason: damagedReason + why,
		Advice: "the device's images may still be marked in use: look into the file for their names, run 'holdfast image check --repair' on them, then delete the file",
	}
}

// Writable is the image that the device writes to, or nil.
func (rec *Record) Writable() *ImageID {
	if rec.Spec.ReadOnly || len(rec.Images) == 0 {
		return nil
	}
	return &rec.Images[len(rec.Images)-1]
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// BootID is different after every boot of the machine.
func BootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}
