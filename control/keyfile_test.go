package control

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/rs/zerolog"

	"holdfast/state"
)

// TestKeyWord: other processes see whether the standby check is on, over the daemon's death
// and restart, and a file that somebody spoils is mended.
func TestKeyWord(t *testing.T) {
	f := newFixture(t)
	server, err := state.OpenKey(f.runDir(), zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	wantWord := func(want uint32, when string) {
		t.Helper()
		if got := server.Load(); got != want {
			t.Errorf("%s: %d, want %d", when, got, want)
		}
	}
	turn := func(on bool) {
		t.Helper()
		if _, err := f.c.SetKey(ctx, on); err != nil {
			t.Fatal(err)
		}
	}
	wantWord(0, "at first")
	turn(true)
	wantWord(1, "turned on")
	f.die()
	wantWord(1, "without a daemon")
	f.start()
	wantWord(1, "with the next daemon")
	if info := f.d.Key(); !info.On || !f.d.check.On() {
		t.Errorf("the next daemon: %+v", info)
	}

	path := filepath.Join(f.runDir(), "key")
	for what, spoil := range map[string]func() error{
		"written to": func() error { return os.WriteFile(path, []byte("0\n"), 0o600) },
		"removed":    func() error { return os.Remove(path) },
	} {
		if err := spoil(); err != nil {
			t.Fatal(err)
		}
		waitFor(t, "the file, "+what+", is mended", func() bool {
			k, err := state.OpenKey(f.runDir(), zerolog.Nop())
			return err == nil && k.Load() == 1
		})
	}

	f.die()
	if err := os.WriteFile(filepath.Join(f.runDir(), "key.json"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	f.start()
	if server, err = state.OpenKey(f.runDir(), zerolog.Nop()); err != nil {
		t.Fatal(err)
	}
	wantWord(0, "with nobody who is known to hold it")
	turn(true)
	turn(false)
	wantWord(0, "turned off")
}
