package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/rs/zerolog"
)

// serviceManager is who started the manager, if a service manager did: it is told what becomes of
// it (sd_notify(3)), and kills it when its watchdog isn't fed. All is silence without one.
type serviceManager struct {
	log zerolog.Logger
	// watchdog is the time within which it wants to hear of us; 0: it doesn't.
	watchdog time.Duration
}

func newServiceManager(log zerolog.Logger) *serviceManager {
	s := &serviceManager{log: log}
	if us, err := strconv.ParseInt(os.Getenv("WATCHDOG_USEC"), 10, 64); err == nil && us > 0 {
		s.watchdog = time.Duration(us) * time.Microsecond
	}
	return s
}

// there says whether one started us.
func (s *serviceManager) there() bool { return os.Getenv("NOTIFY_SOCKET") != "" }

func (s *serviceManager) send(state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		s.log.Warn().Msgf("the service manager can't be told %q: %v", state, err)
	}
}

// keep feeds the watchdog until done is closed, as long as alive returns: four times per period, so
// that a sign of life that is late once does no harm.
func (s *serviceManager) keep(alive func(), done <-chan struct{}) {
	if !s.there() || s.watchdog == 0 {
		return
	}
	tick := time.NewTicker(s.watchdog / 4)
	defer tick.Stop()
	for {
		alive()
		s.send(daemon.SdNotifyWatchdog)
		select {
		case <-tick.C:
		case <-done:
			return
		}
	}
}

// goesDown says whether the machine is being shut down, as far as systemd tells: without a clear
// answer it is so, as then nobody is expected to start another manager.
func (s *serviceManager) goesDown() bool {
	if !s.there() {
		return true
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	// Its exit code is 0 in the first case only.
	out, err := exec.CommandContext(ctx, "systemctl", "is-system-running").Output()
	switch state := strings.TrimSpace(string(out)); state {
	case "running", "degraded", "starting", "initializing", "maintenance":
		return false
	default:
		s.log.Info().Msgf("the service manager says %q (%v): the machine goes down", state, err)
		return true
	}
}

// forServers is the environment of servers that this manager starts: what a service manager told us
// is not about them. They begin with one of Go's processors, and take what their devices need
// (server/process).
func forServers() []string {
	env := []string{"GOMAXPROCS=1"}
	for _, v := range os.Environ() {
		switch name, _, _ := strings.Cut(v, "="); name {
		case "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "GOMAXPROCS":
		default:
			env = append(env, v)
		}
	}
	return env
}

// again starts the program of this process anew, as it may have been replaced. A socket that a
// service manager has passed is passed on; nil: none.
func again(socket *os.File) error {
	if socket != nil {
		if err := passSocket(int(socket.Fd())); err != nil {
			return fmt.Errorf("passing the control socket on: %w", err)
		}
	}
	self, err := exec.LookPath(os.Args[0])
	if err == nil {
		self, err = filepath.Abs(self)
	}
	if err == nil {
		err = syscall.Exec(self, os.Args, os.Environ())
	}
	return err
}
