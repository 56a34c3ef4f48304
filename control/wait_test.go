package control

import (
	"context"
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"holdfast/api"
)

// TestStates: all states of package device and of this one can be waited for.
func TestStates(t *testing.T) {
	found := 0
	for _, file := range []string{"../device/*.go", "*.go"} {
		files, err := filepath.Glob(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			f, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
			if err != nil {
				t.Fatal(err)
			}
			ast.Inspect(f, func(n ast.Node) bool {
				spec, ok := n.(*ast.ValueSpec)
				if !ok || !strings.HasPrefix(spec.Names[0].Name, "State") || len(spec.Values) != 1 {
					return true
				}
				if lit, ok := spec.Values[0].(*ast.BasicLit); ok && lit.Kind == token.STRING {
					state, _ := strconv.Unquote(lit.Value)
					if found++; !slices.Contains(States, state) {
						t.Errorf("%s: %s, %q, can't be waited for", file, spec.Names[0].Name, state)
					}
				}
				return true
			})
		}
	}
	if found < 13 || found != len(States) {
		t.Errorf("there are %d states, and %d that can be waited for", found, len(States))
	}
}

// waited is a wait that is under way.
type waited struct {
	dev *Device
	err error
}

func (f *fixture) wait(name string, states ...string) <-chan waited {
	done := make(chan waited, 1)
	go func() {
		dev, err := f.c.Wait(ctx, name, states)
		done <- waited{dev, err}
	}()
	return done
}

// inTime is its end.
func (f *fixture) inTime(w <-chan waited) waited {
	f.t.Helper()
	select {
	case w := <-w:
		return w
	case <-time.After(30 * time.Second):
		f.t.Fatal("still waiting")
		return waited{}
	}
}

func TestWait(t *testing.T) {
	f := newFixture(t)
	f.create("v", "i")
	if w := f.inTime(f.wait("v", StateLost, api.StateLive)); w.err != nil || w.dev.State != api.StateLive || w.dev.Name != "v" {
		t.Errorf("live: %+v", w)
	}
	if w := f.inTime(f.wait("ublkb0", api.StateLive)); w.err != nil || w.dev.Name != "v" {
		t.Errorf("by the kernel's name: %+v", w)
	}
	wantCode(t, f.inTime(f.wait("u", api.StateLive)).err, CodeNotFound)
	wantCode(t, f.inTime(f.wait("v", "alive")).err, CodeInvalid)
	wantCode(t, f.inTime(f.wait("v")).err, CodeInvalid)
	if w := f.inTime(f.wait("u", StateRemoved)); w.err != nil || w.dev.State != StateRemoved || w.dev.Name != "u" {
		t.Errorf("removed: %+v", w)
	}
	held := f.wait("v", api.StateStandby, api.StateFailing)
	f.arm("v")
	if _, err := f.c.SetStandby(ctx, "v", true); err != nil {
		t.Fatal(err)
	}
	if w := f.inTime(held); w.err != nil || w.dev.State != api.StateStandby {
		t.Errorf("standby: %+v", w)
	}
	gone, other := f.wait("v", StateRemoved), f.wait("v", StateLost)
	if err := f.c.Remove(ctx, "v", true); err != nil {
		t.Fatal(err)
	}
	if w := f.inTime(gone); w.err != nil || w.dev.State != StateRemoved {
		t.Errorf("removed: %+v", w)
	}
	wantCode(t, f.inTime(other).err, CodeNotFound) // it can't be lost any more
}

// TestWaitEnds: a wait that is given up says so, and leaves nothing behind in the daemon.
func TestWaitEnds(t *testing.T) {
	f := newFixture(t)
	f.create("v", "i")
	short, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
	defer cancel()
	_, err := f.c.Wait(short, "v", []string{StateLost})
	wantCode(t, err, CodeUnreachable)
}

// TestWaitOverRestart: a wait goes on when the daemon is restarted, and sees what the next one
// makes of the device.
func TestWaitOverRestart(t *testing.T) {
	f := newFixture(t)
	f.create("v", "i")
	lost := f.wait("v", StateLost)
	waitFor(t, "the wait to begin", func() bool { return f.waiting() > 0 })
	f.restart()
	if w := f.inTime(lost); w.err != nil || w.dev.State != StateLost {
		t.Errorf("%+v", w)
	}
	// And one that begins in a daemon that is about to end by itself is answered by it.
	f.create("v", "i")
	gone := f.wait("v", StateRemoved)
	waitFor(t, "the wait to begin", func() bool { return f.waiting() > 0 })
	if err := f.d.Shutdown(ctx, nil); err != nil {
		t.Fatal(err)
	}
	f.crash()
	if w := f.inTime(gone); w.err != nil || w.dev.State != StateRemoved {
		t.Errorf("%+v", w)
	}
}

// waiting is how many wait for a change.
func (f *fixture) waiting() int {
	f.d.changed.mu.Lock()
	defer f.d.changed.mu.Unlock()
	if f.d.changed.ch == nil {
		return 0
	}
	return 1
}

// TestWaitAsksLittle: however many wait, a device that does nothing is asked for its state once
// a second by each at most, and nobody looks for users.
func TestWaitAsksLittle(t *testing.T) {
	f := newFixture(t)
	f.create("v", "i")
	begin := time.Now()
	f.k.set(func() { f.k.asked, f.k.scans = 0, 0 })
	ended, cancel := context.WithCancel(ctx)
	done := make(chan struct{}, 10)
	for range cap(done) {
		go func() { f.c.Wait(ended, "v", []string{StateLost}); done <- struct{}{} }()
	}
	time.Sleep(300 * time.Millisecond)
	cancel()
	for range cap(done) {
		<-done
	}
	f.k.mu.Lock()
	defer f.k.mu.Unlock()
	most := cap(done) * (2 + int(time.Since(begin)/waitPeriod))
	if f.k.asked > most || f.k.scans != 0 {
		t.Errorf("asked for the state %d times (at most %d), for users %d times", f.k.asked, most, f.k.scans)
	}
}
