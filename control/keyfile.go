package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/google/renameio/v2"

	"holdfast/api"
	"holdfast/manager/target"
	"holdfast/standby"
	"holdfast/state"
)

// keyFile is who holds the standby check. It belongs to the boot, as the run directory
// does: what held it before, holds or gives back anew after it.
type keyFile struct {
	BootID  string   `json:"boot_id"`
	Holders []string `json:"holders"`
}

func (d *Daemon) keyPath() string { return filepath.Join(d.cfg.RunDir, "key.json") }

// openKey takes the check for this daemon, as it was left. The run directory is locked.
func (d *Daemon) openKey() (err error) {
	if d.word, err = state.CreateKey(d.cfg.RunDir, d.log); err != nil {
		return err
	}
	d.check = standby.NewSwitch(d.word)
	d.key = newHolders(d.turnKey, d.note)
	return nil
}

// turnKey turns the check on or off for all devices.
func (d *Daemon) turnKey(on bool) error {
	err := d.word.Set(on)
	d.check.Turned()
	return err
}

// holdKey makes the check what its holders want, and sees that it stays so: who does
// something to the file harms all devices.
func (d *Daemon) holdKey() {
	d.word.Take()
	if err := d.key.Apply(); err != nil {
		d.log.Error().Msg(err.Error())
	}
	ctx, cancel := context.WithCancel(d.alive)
	ended := make(chan struct{})
	d.watching.Go(func() {
		defer close(ended)
		d.word.Watch(ctx, func() {
			mended, err := d.key.Mend(func(on bool) bool { return d.word.Good() && d.check.On() == on })
			switch {
			case err != nil:
				d.log.Error().Msg(err.Error())
			case mended:
				d.log.Warn().Msg("somebody changed the file of the standby check: it is as it was again")
			}
		})
	})
	d.stopKey = func() { cancel(); <-ended }
}

// releaseKey leaves it to another daemon.
func (d *Daemon) releaseKey() {
	if d.stopKey != nil {
		d.stopKey()
	}
	if d.word != nil {
		d.word.Release()
	}
}

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
	var f keyFile
	b, err := os.ReadFile(d.keyPath())
	if err == nil {
		err = json.Unmarshal(b, &f)
	}
	switch {
	case err == nil && f.BootID == d.boot:
		d.restoreHolders(f.Holders)
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		d.log.Warn().Err(err).Msg("who held the standby check is not known: it is off until somebody turns it on")
	}
	d.holdKey()
}

func (d *Daemon) restoreHolders(holders []string) {
	d.targets.mu.Lock()
	defer d.targets.mu.Unlock()
	for _, h := range holders {
		switch {
		case h == handHolder:
		case d.targets.watches(h):
			d.targets.held[target.Kind(h)] = true
		default:
			continue
		}
		if err := d.key.Enable(h); err != nil {
			d.log.Error().Msg(err.Error())
		}
	}
}

// enableKey takes the key for a holder, durably if it can. An error is that of turning it on.
func (d *Daemon) enableKey(holder string) error {
	d.keyMu.Lock()
	defer d.keyMu.Unlock()
	if err := d.saveKey(append(d.key.Holders(), holder)); err != nil {
		d.log.Warn().Msg(err.Error())
	}
	return d.key.Enable(holder)
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
