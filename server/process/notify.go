package process

import (
	"os"
	"strconv"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/rs/zerolog"
)

// notifier tells the service manager that started us, if any, what becomes of us (sd_notify(3)).
// It kills us when we don't feed its watchdog. All is silence without one.
type notifier struct {
	log zerolog.Logger
	// watchdog is the time within which it wants to hear of us; 0: it doesn't.
	watchdog time.Duration
	starving bool
}

func newNotifier(log zerolog.Logger) *notifier {
	n := &notifier{log: log}
	if us, err := strconv.ParseInt(os.Getenv("WATCHDOG_USEC"), 10, 64); err == nil && us > 0 {
		n.watchdog = time.Duration(us) * time.Microsecond
	}
	return n
}

func (n *notifier) send(state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		n.log.Warn().Msgf("the service manager can't be told %q: %v", state, err)
	}
}

// ready says that the socket answers; it doesn't say that the device is served.
func (n *notifier) ready()    { n.send(daemon.SdNotifyReady) }
func (n *notifier) stopping() { n.send(daemon.SdNotifyStopping) }

// keep feeds the watchdog until done is closed, while every queue of the device moves. Four times
// per period: so a sign of life that is late once does no harm. A queue may be silent for half of
// the period. Storage that hangs holds up no queue, so the watchdog never kills a server for it.
func (n *notifier) keep(unanswered func() time.Duration, done <-chan struct{}) {
	if os.Getenv("NOTIFY_SOCKET") == "" || n.watchdog == 0 {
		return
	}
	tick := time.NewTicker(n.watchdog / 4)
	defer tick.Stop()
	for {
		n.beat(unanswered())
		select {
		case <-tick.C:
		case <-done:
			return
		}
	}
}

func (n *notifier) beat(unanswered time.Duration) {
	starving := unanswered > n.watchdog/2
	if starving && !n.starving {
		n.log.Error().Msgf("a queue of the device has not moved for %v: the watchdog is not fed any more", unanswered.Round(time.Millisecond))
	}
	if n.starving = starving; !starving {
		n.send(daemon.SdNotifyWatchdog)
	}
}
