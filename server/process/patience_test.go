package process

import (
	"bytes"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rs/zerolog"
)

// TestPatience: the log names what ended the wait for users, and nothing else.
func TestPatience(t *testing.T) {
	for _, tt := range []struct {
		name     string
		signal   bool // instead of the time-out
		restarts bool
		during   bool // a signal in the middle of the sync
		remove   bool
		says     string
		not      []string
	}{
		{"signal", true, false, false, true, "second signal", []string{"stop-timeout", "synced"}},
		{"time-out", false, false, false, true, "file systems are synced\"", []string{"second signal"}},
		{"time-out, then a signal", false, false, true, true, "sync of file systems is not waited for", []string{"file systems are synced\""}},
		{"time-out, and a manager follows", false, true, false, false, "", []string{"second signal", "I/O fails"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var log bytes.Buffer
			signals := make(chan os.Signal, 1)
			hang := make(chan struct{})
			defer close(hang)
			p := patience{log: zerolog.New(&log), signals: signals, limit: time.Nanosecond, succeeded: func() bool { return tt.restarts }, sync: func() {
				if tt.during {
					signals <- syscall.SIGTERM
					<-hang
				}
			}}
			if tt.signal {
				p.limit = 0
				signals <- syscall.SIGTERM
			}
			if got := p.wait(); got != tt.remove {
				t.Errorf("remove %v, want %v", got, tt.remove)
			}
			if !strings.Contains(log.String(), tt.says) {
				t.Errorf("the log doesn't say %q: %s", tt.says, &log)
			}
			for _, not := range tt.not {
				if strings.Contains(log.String(), not) {
					t.Errorf("the log says %q: %s", not, &log)
				}
			}
		})
	}
}
