package launch

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/dbus"
	"github.com/coreos/go-systemd/v22/unit"
)

// The units, which systemd/ has.
const (
	template = "holdfast-device@.service"
	target   = "holdfast.target" // pulls the enabled ones in at boot
)

const (
	unitsKept = "/etc/systemd/system" // drop-ins that stay
	unitsGone = "/run/systemd/system" // drop-ins until the next boot
)

// startWait is how long Start waits for systemd to say that it couldn't.
const startWait = 2 * time.Second

// manager is what is used of systemd.
type manager interface {
	StartUnitContext(ctx context.Context, name, mode string, ch chan<- string) (int, error)
	StopUnitContext(ctx context.Context, name, mode string, ch chan<- string) (int, error)
	ResetFailedUnitContext(ctx context.Context, name string) error
	EnableUnitFilesContext(ctx context.Context, files []string, runtime, force bool) (bool, []dbus.EnableUnitFileChange, error)
	DisableUnitFilesContext(ctx context.Context, files []string, runtime bool) ([]dbus.DisableUnitFileChange, error)
	ListUnitsByPatternsContext(ctx context.Context, states, patterns []string) ([]dbus.UnitStatus, error)
	ListUnitFilesByPatternsContext(ctx context.Context, states, patterns []string) ([]dbus.UnitFile, error)
	GetUnitPropertiesContext(ctx context.Context, unit string) (map[string]any, error)
	GetUnitTypePropertyContext(ctx context.Context, unit, unitType, propertyName string) (*dbus.Property, error)
	ReloadContext(ctx context.Context) error
	Connected() bool
	Close()
}

// Systemd is the launcher that leaves it to systemd: NAME is holdfast-device@NAME.service. It
// speaks to systemd's own socket, and so works before there is D-Bus.
type Systemd struct {
	dial  func(context.Context) (manager, error)
	kept  string // directories of units
	gone  string
	reset reloads

	mu     sync.Mutex
	conn   manager // nil: none yet
	closed bool
}

var _ Launcher = (*Systemd)(nil)

// ErrAbsent is returned by Detect when systemd can't be the launcher of this host, now and later:
// it is not the init, or has no units.
var ErrAbsent = errors.New("systemd can't keep servers here")

// Detect says why systemd can't be the launcher here; nil if it can. Another error than ErrAbsent
// says that it couldn't be asked.
func Detect(ctx context.Context) error {
	if fi, err := os.Lstat(unitsGone); err != nil || !fi.IsDir() { // sd_booted(3)
		return fmt.Errorf("%w: the init is another one", ErrAbsent)
	}
	s := NewSystemd()
	defer s.Close()
	return s.detect(ctx)
}

func (s *Systemd) detect(ctx context.Context) error {
	var files []dbus.UnitFile
	err := s.call(ctx, func(m manager) (err error) {
		files, err = m.ListUnitFilesByPatternsContext(ctx, nil, []string{template})
		return err
	})
	if err != nil {
		return err
	}
	if len(files) == 0 {
		return fmt.Errorf("%w: it has no unit %s", ErrAbsent, template)
	}
	return nil
}

// NewSystemd makes a launcher. It connects to systemd when it has something to say.
func NewSystemd() *Systemd {
	s := &Systemd{kept: unitsKept, gone: unitsGone, dial: func(ctx context.Context) (manager, error) {
		return dbus.NewSystemdConnectionContext(ctx)
	}}
	s.reset.do = func(ctx context.Context) error {
		return s.call(ctx, func(m manager) error { return m.ReloadContext(ctx) })
	}
	return s
}

// unitName is NAME's.
func unitName(name string) string {
	return strings.Replace(template, "@", "@"+unit.UnitNameEscape(name), 1)
}

// nameOf is what unitName was made of.
func nameOf(unitName string) (string, bool) {
	prefix, suffix, _ := strings.Cut(template, "@")
	instance, ok := strings.CutPrefix(unitName, prefix+"@")
	instance, isUnit := strings.CutSuffix(instance, suffix)
	name := unit.UnitNameUnescape(instance)
	return name, ok && isUnit && checkName(name) == nil
}

// Start implements [Launcher]. systemd goes on to start a unit that is to be started again when it
// fails, and so failed, until Stop.
func (s *Systemd) Start(ctx context.Context, name string) error {
	if err := checkName(name); err != nil {
		return err
	}
	u := unitName(name)
	done := make(chan string, 1)
	err := s.call(ctx, func(m manager) error {
		if err := m.ResetFailedUnitContext(ctx, u); err != nil && !is(err, noUnit) {
			return err
		}
		_, err := m.StartUnitContext(ctx, u, "replace", done)
		return err
	})
	if err != nil {
		return fmt.Errorf("starting %s: %w", u, err)
	}
	timer := time.NewTimer(startWait)
	defer timer.Stop()
	select {
	case result := <-done:
		return startError(u, result)
	case <-timer.C: // for file systems, or for the process to be ready
		return nil
	case <-ctx.Done():
		return fmt.Errorf("starting %s: %w", u, ctx.Err())
	}
}

// startError is what the result of a job to start a unit comes to.
func startError(u, result string) error {
	switch result {
	case "done", "skipped": // it runs
		return nil
	case "canceled":
		return fmt.Errorf("starting %s: it was stopped meanwhile", u)
	case "dependency":
		return fmt.Errorf("starting %s: what it needs can't be had, such as the file system of an image: systemctl list-dependencies '%[1]s'", u)
	}
	return fmt.Errorf("starting %s: %s: systemctl status '%[1]s'", u, result)
}

// Missed says whether NAME, which is enabled, was not started since boot, and is not about to be:
// something that it needs couldn't be had, and systemd doesn't try again. A unit that somebody has
// stopped was started before.
func (s *Systemd) Missed(ctx context.Context, name string) (bool, error) {
	if err := checkName(name); err != nil {
		return false, err
	}
	u := unitName(name)
	var p map[string]any
	err := s.call(ctx, func(m manager) (err error) {
		p, err = m.GetUnitPropertiesContext(ctx, u)
		return err
	})
	if err != nil {
		return false, fmt.Errorf("asking for %s: %w", u, err)
	}
	job, _ := p["Job"].([]any) // number and path
	started, ok := p["InactiveExitTimestampMonotonic"].(uint64)
	return ok && started == 0 && len(job) == 2 && job[0] == uint32(0) && p["ActiveState"] == "inactive" && p["UnitFileState"] == "enabled", nil
}

// Restarts implements [Launcher].
func (s *Systemd) Restarts(ctx context.Context, name string) (int, error) {
	if err := checkName(name); err != nil {
		return 0, err
	}
	u := unitName(name)
	var p *dbus.Property
	err := s.call(ctx, func(m manager) (err error) {
		p, err = m.GetUnitTypePropertyContext(ctx, u, "Service", "NRestarts")
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("asking for %s: %w", u, err)
	}
	n, ok := p.Value.Value().(uint32)
	if !ok {
		return 0, fmt.Errorf("asking for %s: NRestarts is %v", u, p.Value)
	}
	return int(n), nil
}

// Log implements [Launcher].
func (s *Systemd) Log(name string) string {
	return fmt.Sprintf("journalctl -u '%s'", unitName(name))
}

// Stop implements [Launcher].
func (s *Systemd) Stop(ctx context.Context, name string) error {
	if err := checkName(name); err != nil {
		return err
	}
	u := unitName(name)
	err := s.call(ctx, func(m manager) error {
		_, err := m.StopUnitContext(ctx, u, "replace", nil)
		return err
	})
	if err != nil && !is(err, noUnit) {
		return fmt.Errorf("stopping %s: %w", u, err)
	}
	return nil
}

// Enable implements [Launcher]. systemd isn't told to read its units again: it does at boot,
// and nothing before depends on it.
func (s *Systemd) Enable(ctx context.Context, name string, on bool) error {
	if err := checkName(name); err != nil {
		return err
	}
	u := unitName(name)
	err := s.call(ctx, func(m manager) error {
		if !on {
			_, err := m.DisableUnitFilesContext(ctx, []string{u}, false)
			return err
		}
		_, changes, err := m.EnableUnitFilesContext(ctx, []string{target, u}, false, false)
		for _, c := range changes {
			if err == nil && c.Type == "symlink" {
				err = syncDir(filepath.Dir(c.Filename))
			}
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("having %s start at boot (%t): %w", u, on, err)
	}
	return nil
}

// Mounts implements [Launcher].
func (s *Systemd) Mounts(ctx context.Context, name string, paths []string) error {
	return s.dropIn(ctx, name, s.kept, "images.conf", func() (string, error) { return mountsFor(paths) })
}

// SetBinary implements [Launcher].
func (s *Systemd) SetBinary(ctx context.Context, name, path string) error {
	return s.dropIn(ctx, name, s.gone, "binary.conf", func() (string, error) { return execStart(path) })
}

// Forget implements [Launcher]. What the journal has stays.
func (s *Systemd) Forget(ctx context.Context, name string) error {
	err := errors.Join(s.Enable(ctx, name, false), s.Mounts(ctx, name, nil), s.SetBinary(ctx, name, ""))
	if err != nil {
		return err
	}
	err = s.call(ctx, func(m manager) error { return m.ResetFailedUnitContext(ctx, unitName(name)) })
	if err != nil && !is(err, noUnit) {
		return fmt.Errorf("forgetting %s: %w", unitName(name), err)
	}
	return nil
}

// List implements [Launcher].
func (s *Systemd) List(ctx context.Context) ([]string, error) {
	var units []dbus.UnitStatus
	err := s.call(ctx, func(m manager) (err error) {
		units, err = m.ListUnitsByPatternsContext(ctx, nil, []string{strings.Replace(template, "@", "@*", 1)})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("listing units: %w", err)
	}
	var list []string
	for _, u := range units {
		if name, ok := nameOf(u.Name); ok && u.ActiveState != "inactive" {
			list = append(list, name)
		}
	}
	slices.Sort(list)
	return list, nil
}

// Close implements [Launcher].
func (s *Systemd) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	if s.conn != nil {
		s.conn.Close()
		s.conn = nil
	}
	return nil
}
