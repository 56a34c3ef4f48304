package process

import (
	"testing"
	"time"

	"holdfast/internal/sdtest"

	"github.com/rs/zerolog"
)

// TestWatchdog: the watchdog is fed while the slowest queue answers in time.
func TestWatchdog(t *testing.T) {
	p := sdtest.Play(t)
	t.Setenv("NOTIFY_SOCKET", p.Path)
	t.Setenv("WATCHDOG_USEC", "20000000")
	n := newNotifier(zerolog.Nop())
	if n.watchdog != 20*time.Second {
		t.Fatalf("a watchdog of %v", n.watchdog)
	}
	n.beat(0)
	p.Received("WATCHDOG=1")
	n.beat(9 * time.Second)
	p.Received("WATCHDOG=1")
	p.Silent("WATCHDOG", func() {
		n.beat(11 * time.Second)
		n.beat(16 * time.Second)
	})
	n.beat(0)
	p.Received("WATCHDOG=1")
}
