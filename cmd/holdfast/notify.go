package main

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/rs/zerolog"

	"holdfast/control"
	"holdfast/internal/spawner"
)

// manager is the service manager that started us, if any: it is told what becomes of us
// (sd_notify(3)), and kills us when we don't feed its watchdog. All is silence without one.
type manager struct {
	log     zerolog.Logger
	spawner *spawner.Spawner
	// watchdog is the time within which it wants to hear of us; 0: it doesn't.
	watchdog time.Duration
	status   string // the last one told
	starving bool
}

func newManager(log zerolog.Logger, s *spawner.Spawner) *manager {
	m := &manager{log: log, spawner: s}
	// Not daemon.SdWatchdogEnabled: it wants our number in WATCHDOG_PID, and after
	// an upgrade in place that is the number of the process that was before us.
	if us, err := strconv.ParseInt(os.Getenv("WATCHDOG_USEC"), 10, 64); err == nil && us > 0 {
		m.watchdog = time.Duration(us) * time.Microsecond
	}
	return m
}

func (m *manager) tell(state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		m.log.Warn().Msgf("the service manager can't be told %q: %v", state, err)
	}
}

// readyLimit is how long we keep those waiting who start after us, for devices that are to
// be created again.
const readyLimit = 10 * time.Second

// ready says that clients are answered, once devices have been restored, as far as can be,
// or time is up. Until done is closed.
func (m *manager) ready(restored, done <-chan struct{}) {
	select {
	case <-restored:
	case <-time.After(readyLimit):
	case <-done:
		return
	}
	m.tell(daemon.SdNotifyReady)
}

// handedOver says that another process is the main one from now on. It must know before we
// end: a main process that ends takes the others with it.
func (m *manager) handedOver(pid int) { m.tell(fmt.Sprintf("MAINPID=%d", pid)) }

func (m *manager) stopping() { m.tell(daemon.SdNotifyStopping) }

// willRestart says whether another daemon can be expected after us: the manager is there, and
// is not about to shut the machine down. Without a clear answer it is not so.
func (m *manager) willRestart() bool {
	if os.Getenv("NOTIFY_SOCKET") == "" {
		return false
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	// Its exit code is 0 in the first case only.
	out, err := m.spawner.Output(ctx, "systemctl", "is-system-running")
	switch state := strings.TrimSpace(string(out)); state {
	case "running", "degraded", "starting", "initializing", "maintenance":
		return true
	default:
		m.log.Info().Msgf("the service manager says %q (%v): no other daemon is expected", state, err)
		return false
	}
}

// How a manager that has no watchdog is told of the devices' number.
const statusPeriod = 5 * time.Second

// keep feeds the watchdog until done is closed, while every queue of every device moves, and
// keeps the status line up to date. Four times per period: so a sign of life that is
// late once does no harm. A queue may be silent for half of the period.
func (m *manager) keep(pulse func() control.Pulse, done <-chan struct{}) {
	if os.Getenv("NOTIFY_SOCKET") == "" {
		return
	}
	period := statusPeriod
	if m.watchdog > 0 {
		period = min(period, m.watchdog/4)
	}
	tick := time.NewTicker(period)
	defer tick.Stop()
	for {
		m.beat(pulse())
		select {
		case <-tick.C:
		case <-done:
			return
		}
	}
}

func (m *manager) beat(p control.Pulse) {
	if status := statusLine(p); status != m.status {
		m.status = status
		m.tell("STATUS=" + status)
	}
	if m.watchdog == 0 {
		return
	}
	starving := p.Unanswered > m.watchdog/2
	if starving && !m.starving {
		m.log.Error().Str("device", p.Device).Msgf("a queue of the device has not moved for %v: the watchdog is not fed any more", p.Unanswered.Round(time.Millisecond))
	}
	if m.starving = starving; !starving {
		m.tell(daemon.SdNotifyWatchdog)
	}
}

func statusLine(p control.Pulse) string {
	s := fmt.Sprintf("%d devices served", p.Live)
	if p.Live == 1 {
		s = "1 device served"
	}
	if p.Other > 0 {
		s += fmt.Sprintf(", %d not served", p.Other)
	}
	if p.Stopping {
		s = "Stopping: " + s
	}
	return s
}
