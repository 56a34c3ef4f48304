package process

import (
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"
)

// played is a service manager: it listens to what is sent to it.
type played struct {
	t    *testing.T
	conn *net.UnixConn
	path string
}

func play(t *testing.T) *played {
	t.Helper()
	p := &played{t: t, path: filepath.Join(t.TempDir(), "notify")}
	var err error
	if p.conn, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: p.path, Net: "unixgram"}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.conn.Close() })
	return p
}

// received waits for a message with a line of its own that is want, and returns all that came
// before it.
func (p *played) received(want string) (before []string) {
	p.t.Helper()
	p.conn.SetReadDeadline(time.Now().Add(time.Minute))
	buf := make([]byte, 4096)
	for {
		n, err := p.conn.Read(buf)
		if err != nil {
			p.t.Fatalf("not told %q, only %q: %v", want, before, err)
		}
		msg := string(buf[:n])
		for _, line := range strings.Split(msg, "\n") {
			if line == want {
				return before
			}
		}
		before = append(before, msg)
	}
}

// silent sees that for a while nothing comes with that word.
func (p *played) silent(word string, during func()) {
	p.t.Helper()
	// What is there already was told before.
	buf := make([]byte, 4096)
	for p.conn.SetReadDeadline(time.Now().Add(time.Millisecond)); ; {
		if _, err := p.conn.Read(buf); err != nil {
			break
		}
	}
	during()
	for p.conn.SetReadDeadline(time.Now().Add(time.Millisecond)); ; {
		n, err := p.conn.Read(buf)
		if err != nil {
			return
		}
		if strings.Contains(string(buf[:n]), word) {
			p.t.Errorf("told %q", buf[:n])
		}
	}
}

// TestWatchdog: the watchdog is fed while the slowest queue answers in time.
func TestWatchdog(t *testing.T) {
	p := play(t)
	t.Setenv("NOTIFY_SOCKET", p.path)
	t.Setenv("WATCHDOG_USEC", "20000000")
	n := newNotifier(zerolog.Nop())
	if n.watchdog != 20*time.Second {
		t.Fatalf("a watchdog of %v", n.watchdog)
	}
	n.beat(0)
	p.received("WATCHDOG=1")
	n.beat(9 * time.Second)
	p.received("WATCHDOG=1")
	p.silent("WATCHDOG", func() {
		n.beat(11 * time.Second)
		n.beat(16 * time.Second)
	})
	n.beat(0)
	p.received("WATCHDOG=1")
}
