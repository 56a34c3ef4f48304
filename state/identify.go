package state

import (
	"fmt"
	"path/filepath"
	"strings"
)

// An Identity is what a block device of the driver is to us.
type Identity struct {
	Name     string // the device's
	Instance string // of the manager and the servers; "": that of the default directories
	// Served: a server has the device, and did not hold its requests when it last wrote its
	// record. I/O of one that isn't served waits.
	Served bool
	// IOTimeout is what its queue/io_timeout is to be; "": as it is.
	IOTimeout string
}

// Link is the device's stable name below /dev.
func (i Identity) Link() string {
	if i.Instance == "" {
		return "holdfast/" + i.Name
	}
	return "holdfast-" + i.Instance + "/" + i.Name
}

// IdentityOf looks for the disk's record with the instances whose mark it may have.
func IdentityOf(run, state string, disk Disk, boot string) (*Identity, error) {
	more, err := filepath.Glob(state + "-*")
	if err != nil {
		return nil, err
	}
	var unknown error
	for _, dir := range append([]string{state}, more...) {
		if !disk.Tag.Of(dir) {
			continue
		}
		instance := strings.TrimPrefix(strings.TrimPrefix(dir, state), "-")
		runDir := run + strings.TrimPrefix(dir, state)
		// What is below the run directory is of this boot, and is there even when the
		// state directory is not.
		recs, _, err := Records{Dir: filepath.Join(dir, "devices"), Run: runDir, Boot: boot}.Read()
		if err != nil {
			return nil, err
		}
		for _, rec := range recs {
			if rec.Disk(dir) == disk && rec.BootID == boot {
				return &Identity{Name: rec.Spec.Name, Instance: instance, Served: rec.Standby == nil}, nil
			}
		}
		// It may yet be one of another directory's, with the same hash.
		unknown = fmt.Errorf("%v was made with the state directory %q, and no record there has it", disk, dir)
	}
	return nil, unknown
}
