package control

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
	"sort"
	"strings"
	"time"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"

	"holdfast/device"
	"holdfast/ploop"
)

// A record is what the state directory knows of a device.
type record struct {
	Spec    device.Spec `json:"spec"`
	ID      int         `json:"id"` // device number, -1 until the driver gave one
	BootID  string      `json:"boot_id"`
	PID     int         `json:"pid"` // of the daemon that serves it
	Created time.Time   `json:"created"`
	Images  []imageID   `json:"images"` // in the order of Spec.Images
	// Generation counts changes of the spec since the device was made.
	Generation uint64 `json:"generation,omitempty"`
	// Leases are those that were taken by hand; targets take their own.
	Leases []string `json:"leases,omitempty"`
}

// imageID tells whether a path still leads to the file that it led to.
type imageID struct {
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
	recordSuffix  = ".json"
	damagedSuffix = ".damaged"
	// maxRecord bounds what is read: 253 images with paths of 4 KiB, escaped.
	maxRecord = 8 << 20
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// records is the directory of them.
type records struct{ dir string }

func (r records) path(name string) string { return filepath.Join(r.dir, name+recordSuffix) }

// save makes rec durable under its spec's name: temporary file, fsync, rename,
// fsync of the directory.
func (r records) save(rec *record) error {
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
	err = renameio.WriteFile(r.path(rec.Spec.Name), append(data, '\n'), 0o600, renameio.WithTempDir(r.dir))
	if err == nil {
		err = syncDir(r.dir)
	}
	if err != nil {
		return fmt.Errorf("cannot note device %q in the state directory: %w", rec.Spec.Name, err)
	}
	return nil
}

// remove forgets a name, durably. A record that isn't there is no error.
func (r records) remove(name string) error {
	err := os.Remove(r.path(name))
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		err = syncDir(r.dir)
	}
	if err != nil {
		return fmt.Errorf("cannot remove the note of device %q: %w", name, err)
	}
	return nil
}

// load reads every record. One that can't be used is renamed to
// NAME.json.damaged and becomes a problem, as do those of earlier starts.
func (r records) load() ([]*record, []Problem, error) {
	entries, err := os.ReadDir(r.dir)
	if err != nil {
		return nil, nil, fmt.Errorf("state directory: %w", err)
	}
	var recs []*record
	var problems []Problem
	for _, e := range entries {
		name, path := e.Name(), filepath.Join(r.dir, e.Name())
		switch {
		case strings.HasPrefix(name, ".") && strings.Contains(name, recordSuffix):
			os.Remove(path) // a save that a crash cut off before its rename
		case strings.Contains(name, recordSuffix+damagedSuffix):
			problems = append(problems, damagedProblem(path, "put aside by an earlier start"))
		case strings.HasSuffix(name, recordSuffix):
			rec, err := readRecord(path)
			if err == nil && rec.Spec.Name != strings.TrimSuffix(name, recordSuffix) {
				err = fmt.Errorf("it is the record of %q", rec.Spec.Name)
			}
			if err != nil {
				problems = append(problems, r.putAside(path, err))
				continue
			}
			recs = append(recs, rec)
		}
	}
	sort.Slice(recs, func(i, j int) bool { return recs[i].Spec.Name < recs[j].Spec.Name })
	return recs, problems, nil
}

func readRecord(path string) (*record, error) {
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
	data, err := io.ReadAll(io.LimitReader(f, maxRecord+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxRecord {
		return nil, fmt.Errorf("it is larger than %d bytes", maxRecord)
	}
	return parseRecord(data)
}

func parseRecord(data []byte) (*record, error) {
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
	rec := new(record)
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
func (r records) putAside(path string, why error) Problem {
	to := path + damagedSuffix
	for i := 1; ; i++ {
		if _, err := os.Lstat(to); errors.Is(err, fs.ErrNotExist) {
			break
		}
		to = fmt.Sprintf("%s%s.%d", path, damagedSuffix, i)
	}
	if err := os.Rename(path, to); err != nil {
		p := damagedProblem(path, why.Error())
		p.Reason += fmt.Sprintf(" (and it could not be renamed: %v)", err)
		return p
	}
	syncDir(r.dir)
	return damagedProblem(to, why.Error())
}

func damagedProblem(path, why string) Problem {
	return Problem{
		File:   path,
		Reason: "damaged record of a device: " + why,
		Advice: "the device's images may still be marked in use: look into the file for their names, run 'holdfast image check --repair' on them, then delete the file",
	}
}

// identify looks up the files of a stack.
func identify(refs []ploop.ImageRef) ([]imageID, error) {
	ids := make([]imageID, len(refs))
	for i, ref := range refs {
		var st unix.Stat_t
		if err := unix.Stat(ref.Path, &st); err != nil {
			return nil, fail(CodeImage, "image %w", &fs.PathError{Op: "stat", Path: ref.Path, Err: err})
		}
		ids[i] = imageID{Dev: st.Dev, Ino: st.Ino}
	}
	return ids, nil
}

// changed names the first image that isn't the file it was when the record was
// written, or why it can't be told; "" if all are the same.
func (rec *record) changed(boot string) string {
	for i, ref := range rec.Spec.Images {
		ids, err := identify(rec.Spec.Images[i : i+1])
		if err != nil {
			return err.Error()
		}
		was := rec.Images[i]
		if ids[0].Ino != was.Ino || boot == rec.BootID && ids[0].Dev != was.Dev {
			return fmt.Sprintf("image %q is another file than the one that was served (inode %d, now %d)", ref.Path, was.Ino, ids[0].Ino)
		}
	}
	return ""
}

// writable is the image that the device writes to, or nil.
func (rec *record) writable() *imageID {
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

// bootID is different after every boot of the machine.
func bootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}
