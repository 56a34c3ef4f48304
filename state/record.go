package state

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sort"
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
	ID      int       `json:"id"` // device number, -1 until the driver gave one
	BootID  string    `json:"boot_id"`
	PID     int       `json:"pid"` // of the daemon that serves it
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
	// daemon, and nobody knows what happened to them since.
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
	Copy string // "": none
	Boot string // of copies that count
	// failed is why the directory could not be written to the last time; nil: it could.
	Failed *atomic.Pointer[string]
}

func (r Records) Path(name string) string { return filepath.Join(r.Dir, name+RecordSuffix) }

// Save makes rec durable under its spec's name: temporary file, fsync, rename,
// fsync of the directory. After an error the copy may have it.
func (r Records) Save(rec *Record) error {
	rec.Serial++
	if r.Copy != "" {
		// The state directory is what counts while it can be written to.
		_ = Records{Dir: r.Copy}.write(rec)
	}
	err := r.write(rec)
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

func (r Records) write(rec *Record) error {
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
	err = renameio.WriteFile(r.Path(rec.Spec.Name), append(data, '\n'), 0o600, renameio.WithTempDir(r.Dir))
	if err == nil {
		err = syncDir(r.Dir)
	}
	if err != nil {
		return fmt.Errorf("cannot note device %q in the state directory: %w", rec.Spec.Name, err)
	}
	return nil
}

// Remove forgets a name, durably. A record that isn't there is no error.
func (r Records) Remove(name string) error {
	if r.Copy != "" {
		// First, so that a crash in between leaves what it left before.
		_ = Records{Dir: r.Copy}.Remove(name)
	}
	err := os.Remove(r.Path(name))
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		err = syncDir(r.Dir)
	}
	if err != nil {
		return fmt.Errorf("cannot remove the note of device %q: %w", name, err)
	}
	return nil
}

// Load reads every record. One that can't be used is renamed to
// NAME.json.damaged and becomes a problem, as do those of earlier starts, unless there is
// a copy: then nothing was lost. Copies also stand for records that are missing, or
// could not be written any more.
func (r Records) Load() ([]*Record, []api.Problem, error) {
	found, problems, err := r.read()
	if err != nil {
		return nil, nil, fmt.Errorf("state directory: %w", err)
	}
	if r.Copy != "" {
		copies, _, err := Records{Dir: r.Copy}.read()
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, nil, fmt.Errorf("run directory: %w", err)
		}
		for name, c := range copies {
			if rec := found[name]; c.BootID != r.Boot || rec != nil && rec.Serial >= c.Serial {
				continue
			}
			found[name] = c
			_ = r.write(c) // if it can be written to now
			for i := range problems {
				if problems[i].Device == name {
					problems[i].Advice = "nothing is lost, the run directory had a copy: delete the file"
				}
			}
		}
	}
	recs := slices.Collect(maps.Values(found))
	sort.Slice(recs, func(i, j int) bool { return recs[i].Spec.Name < recs[j].Spec.Name })
	return recs, problems, nil
}

// read reads one directory.
func (r Records) read() (map[string]*Record, []api.Problem, error) {
	entries, err := os.ReadDir(r.Dir)
	if err != nil {
		return nil, nil, err
	}
	recs := map[string]*Record{}
	var problems []api.Problem
	for _, e := range entries {
		file, path := e.Name(), filepath.Join(r.Dir, e.Name())
		name, _, _ := strings.Cut(file, RecordSuffix)
		switch {
		case strings.HasPrefix(file, ".") && strings.Contains(file, RecordSuffix):
			os.Remove(path) // a save that a crash cut off before its rename
		case strings.Contains(file, RecordSuffix+DamagedSuffix):
			p := damagedProblem(path, "put aside by an earlier start")
			p.Device = name
			problems = append(problems, p)
		case strings.HasSuffix(file, RecordSuffix):
			rec, err := ReadRecord(path)
			if err == nil && rec.Spec.Name != name {
				err = fmt.Errorf("it is the record of %q", rec.Spec.Name)
			}
			if err != nil {
				p := r.putAside(path, err)
				p.Device = name
				problems = append(problems, p)
				continue
			}
			recs[name] = rec
		}
	}
	return recs, problems, nil
}

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
func (r Records) putAside(path string, why error) api.Problem {
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
	syncDir(r.Dir)
	return damagedProblem(to, why.Error())
}

func damagedProblem(path, why string) api.Problem {
	return api.Problem{
		File:   path,
		Reason: "damaged record of a device: " + why,
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

// CopyName is the directory of the records' copies, in the run directory.
const CopyName = "devices"
