// Package sdtest plays a service manager for tests of what is sent to it (sd_notify(3)).
package sdtest

import (
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// A Manager is a service manager: it listens to what is sent to it.
type Manager struct {
	t    *testing.T
	conn *net.UnixConn
	Path string // for NOTIFY_SOCKET
}

// Play has one listen until the test ends.
func Play(t *testing.T) *Manager {
	t.Helper()
	p := &Manager{t: t, Path: filepath.Join(t.TempDir(), "notify")}
	var err error
	if p.conn, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: p.Path, Net: "unixgram"}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.conn.Close() })
	return p
}

// Received waits for a message with a line of its own that is want, and returns all that came
// before it.
func (p *Manager) Received(want string) (before []string) {
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

// Silent sees that for a while nothing comes with that word.
func (p *Manager) Silent(word string, during func()) {
	p.t.Helper()
	p.Drain(time.Millisecond)
	during()
	buf := make([]byte, 4096)
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

// Drain drops what is there already, and what comes within a time.
func (p *Manager) Drain(within time.Duration) {
	buf := make([]byte, 4096)
	for p.conn.SetReadDeadline(time.Now().Add(within)); ; {
		if _, err := p.conn.Read(buf); err != nil {
			return
		}
	}
}
