package manager

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/google/renameio/v2"
	"github.com/rs/zerolog"

	"holdfast/api"
	"holdfast/manager/target"
	"holdfast/standby"
	"holdfast/state"
)

// handHolder is who holds the standby check when it was turned on by hand.
const handHolder = "hand"

// check is the host's standby check: who holds it on, in key.json, and the word that all servers
// read, in key.
type check struct {
	dir, boot string
	log       zerolog.Logger
	events    *events
	word      *state.Key
	holders   *holders

	handMu sync.Mutex // one change by hand at a time
	fileMu sync.Mutex // of key.json
}

// keyFile is who holds the standby check. It belongs to the boot, as the run directory
// does: what held it before, holds or gives back anew after it.
type keyFile struct {
	BootID  string   `json:"boot_id"`
	Holders []string `json:"holders"`
}

// openCheck takes the check, as it was left. The run directory is locked.
func openCheck(runDir, boot string, log zerolog.Logger, ev *events) (*check, error) {
	c := &check{dir: runDir, boot: boot, log: log, events: ev}
	var err error
	if c.word, err = state.CreateKey(runDir, log); err != nil {
		return nil, err
	}
	c.holders = newHolders(c.word.Set, func(i standby.Inconsistency) {
		log.Warn().Str("event", api.EventInconsistency).Str("kind", string(i)).Msg(i.String())
		ev.add(newEvent("", api.EventInconsistency, string(i)+": "+i.String()))
	})
	return c, nil
}

func (c *check) path() string { return filepath.Join(c.dir, "key.json") }

// on says whether errors are held.
func (c *check) on() bool { return c.word.Load() == 1 }

// restore has the check held as it was by an earlier manager. Targets are believed to be
// there until they are first looked at.
func (c *check) restore(t *targets) {
	var f keyFile
	b, err := os.ReadFile(c.path())
	if err == nil {
		err = json.Unmarshal(b, &f)
	}
	switch {
	case err == nil && f.BootID == c.boot:
		for _, h := range f.Holders {
			if h == handHolder || t.believe(h) {
				if err := c.holders.Enable(h); err != nil {
					c.log.Error().Msg(err.Error())
				}
			}
		}
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		c.log.Warn().Err(err).Msg("who held the standby check is not known: it is off until somebody turns it on")
	}
	if err := c.holders.Apply(); err != nil {
		c.log.Error().Msg(err.Error())
	}
}

// watch sees that the word stays what its holders want: who does something to the file harms all
// devices.
func (c *check) watch(ctx context.Context) {
	c.word.Watch(ctx, func() {
		mended, err := c.holders.Mend(func(on bool) bool { return c.word.Good() && c.on() == on })
		switch {
		case err != nil:
			c.log.Error().Msg(err.Error())
		case mended:
			c.log.Warn().Msg("somebody changed the file of the standby check: it is as it was again")
		}
	})
}

// release leaves the check to another manager.
func (c *check) release() { c.word.Release() }

// save records who is to hold the check, before they do.
func (c *check) save(holders []string) error {
	b, err := json.Marshal(keyFile{c.boot, holders})
	if err == nil {
		err = renameio.WriteFile(c.path(), b, 0o600, renameio.WithTempDir(c.dir))
	}
	if err != nil {
		return fmt.Errorf("the holders of the standby check could not be recorded: %w", err)
	}
	return nil
}

// enable takes the check for a holder, durably if it can. An error is that of turning it on.
func (c *check) enable(holder string) error {
	c.fileMu.Lock()
	defer c.fileMu.Unlock()
	if err := c.save(append(c.holders.Holders(), holder)); err != nil {
		c.log.Warn().Msg(err.Error())
	}
	return c.holders.Enable(holder)
}

// disable gives the check back for a holder.
func (c *check) disable(holder string) error {
	c.fileMu.Lock()
	defer c.fileMu.Unlock()
	if err := c.holders.Disable(holder); err != nil {
		return err
	}
	return c.save(slices.DeleteFunc(c.holders.Holders(), func(h string) bool { return h == holder }))
}

// byHand turns the standby check on by hand, or takes that back. It stays on while an
// integration with a target holds it: CodeBusy.
func (c *check) byHand(on bool) error {
	c.handMu.Lock()
	defer c.handMu.Unlock()
	held := slices.Contains(c.holders.Holders(), handHolder)
	switch {
	case on && !held:
		if err := c.enable(handHolder); err != nil {
			return api.Errorf(api.CodeInternal, "%w", err)
		}
		c.events.emit("", api.EventKeyOn, "the standby check is on, by hand")
	case on: // to ask again helps when the first time failed
		if err := c.holders.Apply(); err != nil {
			return api.Errorf(api.CodeInternal, "%w", err)
		}
	case held:
		if err := c.disable(handHolder); err != nil {
			return api.Errorf(api.CodeInternal, "%w", err)
		}
		c.events.emit("", api.EventKeyOff, "the standby check is no longer on by hand")
	}
	if others := c.holders.Holders(); !on && len(others) > 0 {
		return api.Errorf(api.CodeBusy, "the standby check stays on: held by %s; 'holdfast daemon --targets none' leaves targets alone", strings.Join(others, ", "))
	}
	return nil
}

func (c *check) info() api.KeyInfo {
	info := api.KeyInfo{On: c.on(), Holders: c.holders.Holders(), Inconsistencies: map[string]uint64{}}
	for i, n := range c.holders.Inconsistencies() {
		info.Inconsistencies[string(i)] = n
	}
	return info
}

// believe has a target hold the check that did so before, if it is watched.
func (t *targets) believe(holder string) bool {
	if !t.watches(holder) {
		return false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.held[target.Kind(holder)] = true
	return true
}
