package manager

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"holdfast/api"
	"holdfast/state"
	"holdfast/ublk"
)

// orphans are devices in the driver that have this state directory's mark, and no record: nobody
// will serve them, and who uses one waits.
type orphans struct {
	driver driver
	peers  *peers
	period time.Duration
	dir    string // of records
	log    zerolog.Logger

	mu      sync.Mutex
	suspect map[state.Disk]bool // seen once: a device that is just being created has no record for a moment
	found   map[int]state.Disk
	failed  string // why the driver could not be asked
}

func newOrphans(cfg *Config, ps *peers) *orphans {
	return &orphans{driver: cfg.driver, peers: ps, period: cfg.pace.scan, dir: ps.records.Dir, log: cfg.Log, suspect: map[state.Disk]bool{}, found: map[int]state.Disk{}}
}

func (o *orphans) run(ctx context.Context) {
	tick := time.NewTicker(o.period)
	defer tick.Stop()
	for {
		o.scan(ctx)
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// scan compares what the driver has with what there are records of.
func (o *orphans) scan(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, o.period)
	defer cancel()
	disks, err := o.driver.ours(ctx)
	if err != nil {
		o.mu.Lock()
		defer o.mu.Unlock()
		if ctx.Err() == nil && o.failed != err.Error() {
			o.failed = err.Error()
			o.log.Warn().Err(err).Msg("what the driver has without a record is not known")
		}
		return
	}
	ids, all := o.peers.numbers()
	o.mu.Lock()
	defer o.mu.Unlock()
	o.failed = ""
	suspect, found := map[state.Disk]bool{}, map[int]state.Disk{}
	for _, d := range disks {
		if ids[d.ID] {
			continue
		}
		suspect[d] = true
		if _, was := o.found[d.ID]; was || all && o.suspect[d] {
			found[d.ID] = d
			if !was {
				p := o.problem(d.ID)
				o.log.Error().Str("file", p.File).Msgf("%s; %s", p.Reason, p.Advice)
			}
		}
	}
	o.suspect, o.found = suspect, found
}

// numbers are those in the driver that belong to a device, served or not. all: every device has
// said whether it has one.
func (ps *peers) numbers() (ids map[int]bool, all bool) {
	ids, all = map[int]bool{}, true
	for _, p := range ps.list() {
		o := p.observation()
		if o.report != nil && o.report.Path != "" {
			ids[o.report.ID] = true
		}
		if o.rec != nil && o.rec.BootID == ps.boot {
			ids[o.rec.ID] = true
		}
		if o.asOf.IsZero() && !o.driverAsked {
			all = false
		}
	}
	return ids, all
}

func (o *orphans) problem(id int) api.Problem {
	return api.Problem{
		File:   fmt.Sprintf("/dev/ublkb%d", id),
		Reason: "a device of ours without a record; its I/O waits",
		Advice: fmt.Sprintf("put its record back into %s, or give the device up: 'holdfast remove --force ublkb%d'", o.dir, id),
	}
}

// problems are all of them.
func (o *orphans) problems() (all []api.Problem) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for id := range o.found {
		all = append(all, o.problem(id))
	}
	return all
}

// get is the one with a number.
func (o *orphans) get(id int) (state.Disk, bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	d, ok := o.found[id]
	return d, ok
}

// named is the one with a name of the kernel's.
func (o *orphans) named(name string) (state.Disk, bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for id, d := range o.found {
		if name == fmt.Sprintf("ublkb%d", id) {
			return d, true
		}
	}
	return state.Disk{}, false
}

// removeTime is how long the driver may take to hear of the server's end.
const removeTime = 10 * time.Second

// remove deletes one.
func (o *orphans) remove(ctx context.Context, d state.Disk, force bool) error {
	if !force {
		return api.Errorf(api.CodeBusy, "/dev/ublkb%d has no record, and whoever uses it waits; 'holdfast remove --force ublkb%d' gives it up: its I/O fails", d.ID, d.ID)
	}
	ctx, cancel := context.WithTimeout(ctx, removeTime)
	defer cancel()
	err := o.driver.delete(ctx, d)
	if errors.Is(err, ublk.ErrUnreleased) {
		return api.Errorf(api.CodeBusy, "/dev/ublkb%d can't be given up now: %w", d.ID, err)
	}
	if err != nil {
		return api.Errorf(api.CodeInternal, "/dev/ublkb%d: %w", d.ID, err)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.found, d.ID)
	return nil
}
