package control

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/google/renameio/v2"

	"holdfast/api"
	"holdfast/state"
	"holdfast/target"
)

// keyFile is who holds the standby check. It belongs to the boot, as the run directory
// does: what held it before, holds or gives back anew after it.
type keyFile struct {
	BootID  string   `json:"boot_id"`
	Holders []string `json:"holders"`
}

func (d *Daemon) keyPath() string { return filepath.Join(d.cfg.RunDir, "key.json") }

// saveKey notes who is to hold the key, before they do.
func (d *Daemon) saveKey(holders []string) error {
	b, err := json.Marshal(keyFile{d.boot, holders})
	if err == nil {
		err = renameio.WriteFile(d.keyPath(), b, 0o600, renameio.WithTempDir(d.cfg.RunDir))
	}
	if err != nil {
		return fmt.Errorf("the holders of the standby check could not be noted: %w", err)
	}
	return nil
}

// restoreKey has the key held as it was by an earlier daemon. Targets are believed to be
// there until they are first looked at.
func (d *Daemon) restoreKey() {
	b, err := os.ReadFile(d.keyPath())
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	var f keyFile
	if err == nil {
		err = json.Unmarshal(b, &f)
	}
	if err != nil {
		d.log.Warn().Err(err).Msg("who held the standby check is not known: it is off until somebody turns it on")
		return
	}
	if f.BootID != d.boot {
		return
	}
	d.targets.mu.Lock()
	defer d.targets.mu.Unlock()
	for _, h := range f.Holders {
		switch {
		case h == handHolder:
			d.key.Enable(h)
		case d.targets.watches(h):
			d.key.Enable(h)
			d.targets.held[target.Kind(h)] = true
		}
	}
}

// enableKey takes the key for a holder, durably.
func (d *Daemon) enableKey(holder string) error {
	d.keyMu.Lock()
	defer d.keyMu.Unlock()
	err := d.saveKey(append(d.key.Holders(), holder))
	d.key.Enable(holder)
	return err
}

// disableKey gives the key back for a holder.
func (d *Daemon) disableKey(holder string) error {
	d.keyMu.Lock()
	defer d.keyMu.Unlock()
	if err := d.key.Disable(holder); err != nil {
		return err
	}
	return d.saveKey(slices.DeleteFunc(d.key.Holders(), func(h string) bool { return h == holder }))
}

// watched are those of a record's leases whose targets are watched.
func (t *targets) watched(leases []string) []string {
	return slices.DeleteFunc(slices.Clone(leases), func(k string) bool { return !t.watches(k) })
}

// inherit takes over the leases of targets that a device was recovered with.
func (t *targets) inherit(name string, dev live, leases []string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, k := range t.watched(leases) {
		t.leases[lease{target.Kind(k), name, dev}] = true
	}
}

// noteLease changes what a record says of a target's lease.
func (d *Daemon) noteLease(l lease, has bool) {
	d.mu.Lock()
	s := d.slots[l.name]
	d.mu.Unlock()
	if s == nil {
		return
	}
	kind := string(l.kind)
	err := d.noteChange(s, func(rec *state.Record) {
		rec.TargetLeases = slices.DeleteFunc(slices.Clone(rec.TargetLeases), func(k string) bool { return k == kind })
		if has {
			rec.TargetLeases = append(rec.TargetLeases, kind)
		}
	})
	if err != nil && api.CodeOf(err) != api.CodeNotFound {
		d.log.Warn().Err(err).Str("device", l.name).Msgf("the lease of target %s could not be noted", kind)
	}
}
