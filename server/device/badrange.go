package device

import (
	"errors"
	"fmt"
	"time"

	"holdfast/api"
	"holdfast/ploop"
	"holdfast/ploop/stack"
	"holdfast/standby"
	"holdfast/ublk"
)

// ofSpace are the operations that take or give back space.
var ofSpace = map[string]bool{"allocate": true, "truncate": true, "zero": true, "punch": true}

// errorPlace is the place of an error in a stack's files. Of an operation whose length is not
// known the first sector stands for the whole. A sync, and what takes or gives back space, are
// matters of the file as a whole.
func errorPlace(s *stack.Stack, err error) standby.Place {
	var e *ploop.IOError
	if !errors.As(err, &e) || e.Offset < 0 || ofSpace[e.Op] {
		return standby.Place{}
	}
	for _, im := range s.Status().Images {
		if im.Path == e.File {
			return standby.Place{Op: e.Op, Level: im.Level, Off: e.Offset, Len: ploop.SectorSize}
		}
	}
	return standby.Place{}
}

// place of a transfer that failed.
func (f *failedTransfer) place(op ublk.Op) standby.Place {
	switch {
	case f.sync:
		return standby.Place{}
	case op == ublk.OpRead:
		return standby.Place{Op: "read", Level: f.level, Off: f.off, Len: f.len}
	}
	return standby.Place{Op: "write", Level: f.level, Off: f.off, Len: f.len}
}

// answers says, of an error that may be its place's own, whether the file answers elsewhere.
// It may read, which counts as a call on the stack for as long as that takes, and is not
// waited for longer than probeTime.
func (d epochs) answers(g *generation, err error, p standby.Place, again bool) bool {
	errno, ok := storageError(err)
	if !ok || p.Len == 0 || !d.machine.Known(errno, p, again) {
		return false
	}
	key := fmt.Sprintf("elsewhere\x00%d", p.Level)
	if !d.reopenState.beginProbe(key) {
		return false
	}
	if !g.enter() {
		d.reopenState.endProbe(key)
		return false
	}
	answer := make(chan error, 1)
	go func() {
		defer d.reopenState.endProbe(key)
		err := g.stack.Elsewhere(p.Level, p.Off, p.Len)
		d.end(g)
		answer <- err
	}()
	t := time.NewTimer(probeTime)
	defer t.Stop()
	select {
	case err := <-answer:
		return err == nil
	case <-t.C:
	case <-d.closing:
	}
	return false
}

// badRanges are those of a picture of the machine.
func badRanges(list []standby.BadRange, images []api.ImageStatus) []api.BadRange {
	var out []api.BadRange
	for _, b := range list {
		r := api.BadRange{Op: b.Op, Level: b.Level, Offset: b.Off, Length: b.Len, Errno: api.ErrnoName(b.Errno)}
		if b.Level < len(images) {
			r.File = images[b.Level].Path
		}
		out = append(out, r)
	}
	return out
}

// deadline is when a standby has lasted too long, with what came before it in the same
// episode.
func deadline(m *standby.Status, limit time.Duration) time.Time {
	return m.Since.Add(max(limit-m.Spent, 0))
}
