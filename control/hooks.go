package control

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/api"
	"holdfast/internal/spawner"
)

// Bounds of a hook: its time, the grace after SIGTERM, what of its output goes to the
// log, and how many of a device's wait while one runs (the oldest are dropped).
const (
	hookTime    = 30 * time.Second
	hookGrace   = 5 * time.Second
	hookLines   = 100
	hookLine    = 1024
	hooksQueued = 8
)

// hooks runs the programs of one device, one after the other.
type hooks struct {
	mu      sync.Mutex
	queue   []hook
	running bool
}

type hook struct {
	path string
	env  []string
}

// hookOf is the program that a spec has for an event; "": none.
func hookOf(spec *api.Spec, kind string) string {
	switch kind {
	case api.EventStandby:
		return spec.OnStandby
	case api.EventRecovered:
		return spec.OnRecovered
	}
	return ""
}

// checkHooks refuses programs that can't be run.
func checkHooks(spec *api.Spec) error {
	for _, path := range []string{spec.OnStandby, spec.OnRecovered} {
		if path == "" {
			continue
		}
		fi, err := os.Stat(path)
		if err == nil && !fi.Mode().IsRegular() {
			err = errors.New("not a file")
		}
		if err == nil {
			err = unix.Access(path, unix.X_OK)
		}
		if err != nil {
			return api.Errorf(api.CodeInvalid, "device %q: the hook %q can't be run: %w", spec.Name, path, err)
		}
	}
	return nil
}

// runHook has the device's hook for an event run, soon and elsewhere. Events come in order.
func (d *Daemon) runHook(s *slot, spec api.Spec, dev live, e api.Event) {
	path := hookOf(&spec, e.Kind)
	if path == "" {
		return
	}
	st := dev.Status()
	state := "off"
	if e.Kind == api.EventStandby {
		state = "on"
	}
	h := hook{path, append(os.Environ(),
		"HOLDFAST_DEVICE="+spec.Name, "HOLDFAST_EVENT="+e.Kind, "HOLDFAST_STATE="+state,
		"HOLDFAST_PATH="+st.Path, "HOLDFAST_IMAGE="+spec.Images[len(spec.Images)-1].Path,
		"HOLDFAST_CAUSE="+e.Message, "HOLDFAST_ERRNO="+st.Standby.Errno,
		"HOLDFAST_HELD="+strconv.FormatInt(st.Standby.Held, 10), "HOLDFAST_RUN_DIR="+d.cfg.RunDir)}
	s.hooks.mu.Lock()
	defer s.hooks.mu.Unlock()
	if len(s.hooks.queue) == hooksQueued {
		s.hooks.queue = s.hooks.queue[1:]
	}
	s.hooks.queue = append(s.hooks.queue, h)
	if !s.hooks.running {
		s.hooks.running = true
		go d.runHooks(s)
	}
}

func (d *Daemon) runHooks(s *slot) {
	for {
		s.hooks.mu.Lock()
		if len(s.hooks.queue) == 0 {
			s.hooks.running = false
			s.hooks.mu.Unlock()
			return
		}
		h := s.hooks.queue[0]
		s.hooks.queue = s.hooks.queue[1:]
		s.hooks.mu.Unlock()
		if err := d.exec(s.name, h); err != nil {
			d.tell(s.name, api.EventHookFailed, "hook %q: %v", h.path, err)
		}
	}
}

// exec runs a program to its end or to the end of its time, in a process group of its own,
// all of which ends with it.
func (d *Daemon) exec(name string, h hook) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	p, err := d.cfg.Spawner.Start(spawner.Command{Path: h.path, Env: h.env, Dir: "/", Files: []*os.File{w, w}, Group: true})
	w.Close()
	if err != nil {
		r.Close()
		return err
	}
	go d.logOutput(name, h.path, r)
	defer p.Signal(unix.SIGKILL) // what it left running
	select {
	case <-p.Ended():
		return p.Wait()
	case <-time.After(hookTime):
	}
	p.Signal(unix.SIGTERM)
	select {
	case <-p.Ended():
	case <-time.After(hookGrace):
		p.Signal(unix.SIGKILL)
		select {
		case <-p.Ended():
		case <-time.After(hookGrace): // the next one is not to wait for storage that hangs
			return fmt.Errorf("it took longer than %v, and can't be ended: process %d hangs in the kernel, perhaps in storage", hookTime, p.PID)
		}
	}
	return fmt.Errorf("it took longer than %v and was ended", hookTime)
}

// logOutput logs a program's first lines and swallows the rest.
func (d *Daemon) logOutput(name, path string, r io.ReadCloser) {
	defer r.Close()
	in := bufio.NewReaderSize(r, hookLine)
	for n := 0; ; n++ {
		line, _, err := in.ReadLine()
		if err != nil {
			return
		}
		if n < hookLines {
			d.log.Info().Str("device", name).Str("hook", path).Msg(string(line))
		}
	}
}
