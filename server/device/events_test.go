package device

import (
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/api"
	"holdfast/standby"
	"holdfast/ublk"
)

// TestStandbyEvents: an event says what happened, and of nothing that did not.
func TestStandbyEvents(t *testing.T) {
	const key, lease = "key", "lease"
	for _, tt := range []struct {
		name  string
		fuses []string
		do    func(m *standby.Device)
		want  string // all messages
	}{
		{"by hand, then replaced", []string{key, lease}, func(m *standby.Device) { m.Set(); m.Resume() },
			"by hand; requests are held|standby was ended by a replacement: what was held is served"},
		{"an error, then reopened", []string{key, lease}, func(m *standby.Device) { m.Fault(unix.EIO, "a read", standby.Place{}, false); m.Reopened() },
			"a read; requests are held|standby was ended by reopening the files, which answer again: what was held is served"},
		{"given up", []string{key, lease}, func(m *standby.Device) { m.Set(); m.Clear("by hand") },
			"by hand; requests are held|standby was ended by hand, without a resume: what was held failed"},
		{"a mark with a fuse off", []string{lease}, func(m *standby.Device) { m.Restore(standby.Restored{Cause: "a read"}); m.Clear("by hand") },
			"a read; nothing is held, as a fuse is off|the mark of a standby was cleared by hand; nothing was held, as a fuse was off"},
		{"too long", []string{key, lease}, func(m *standby.Device) { m.Set(); m.Expire(m.Status().Since) },
			"by hand; requests are held|standby has lasted longer than its time-out of 1s: requests fail until it ends"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var said []string
			d := (&Device{spec: api.Spec{Name: "v", StandbyTimeout: api.Duration(time.Second)}, event: func(e api.Event) { said = append(said, e.Message) }}).assemble()
			k := newTestKey()
			m := standby.NewDevice(k.Switch, standby.Options{Changed: func(c standby.Change) {
				switch c.Kind {
				case standby.Entered, standby.Resumed, standby.Cleared, standby.Expired:
					d.holding.emitChange(c)
				}
			}})
			if slices.Contains(tt.fuses, key) {
				k.Enable("test")
			}
			if slices.Contains(tt.fuses, lease) {
				m.Attach("test")
			}
			tt.do(m)
			if got := strings.Join(said, "|"); got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
		})
	}
}

// TestSubject: a FLUSH has no offset (the block layer's sector is -1).
func TestSubject(t *testing.T) {
	for _, tt := range []struct {
		op     ublk.Op
		offset int64
		sync   bool
		want   string
	}{
		{ublk.OpFlush, -512, true, "sync for FLUSH"},
		{ublk.OpFlush, -512, false, "FLUSH"},
		{ublk.OpWrite, 4096, true, "sync for WRITE at offset 4096"},
		{ublk.OpRead, 0, false, "READ at offset 0"},
	} {
		if got := subject(tt.op, tt.offset, tt.sync); got != tt.want {
			t.Errorf("got %q, want %q", got, tt.want)
		}
	}
}
