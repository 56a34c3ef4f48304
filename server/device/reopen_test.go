package device

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"holdfast/ploop"
)

// TestProbesThatHang has as many probes of a device's files hang as may: its files aren't
// tried any more, but an operator's file is, be it elsewhere or by the same name.
func TestProbesThatHang(t *testing.T) {
	file := ploop.ImageRef{Path: filepath.Join(t.TempDir(), "file")}
	if err := os.WriteFile(file.Path, make([]byte, 8192), 0o600); err != nil {
		t.Fatal(err)
	}
	d := (&Device{closing: make(chan struct{})}).assemble()
	for i := range mostProbes + 1 {
		if ok := d.reopenState.beginProbe("reopen\x00" + file.Path); ok != (i < mostProbes) {
			t.Fatalf("probe %d: %v", i, ok)
		}
	}
	if err := d.replacer.probe("reopen", []ploop.ImageRef{file}); err == nil || !strings.Contains(err.Error(), "umount -f") {
		t.Errorf("one more: %v", err)
	}
	if err := d.replacer.probe("replace", []ploop.ImageRef{file}); err != nil {
		t.Errorf("a replacement: %v", err)
	}
	d.reopenState.endProbe("reopen\x00" + file.Path)
	if err := d.replacer.probe("reopen", []ploop.ImageRef{file}); err != nil {
		t.Errorf("when one has come back: %v", err)
	}
}

// TestChangeUnderWay has another change of the files hang: who waits for it is told what
// may help.
func TestChangeUnderWay(t *testing.T) {
	d := (&Device{changing: make(chan struct{}, 1)}).assemble()
	if err := d.lock(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := d.Replace(ctx, Replace{}); err == nil || !strings.Contains(err.Error(), "umount -f") {
		t.Errorf("%v", err)
	}
}

// TestLastError: a failure is shown until something else has succeeded.
func TestLastError(t *testing.T) {
	var s reopenState
	shown := func(want string) {
		t.Helper()
		if _, _, err := s.get(); err != want {
			t.Errorf("shown is %q, want %q", err, want)
		}
	}
	s.replaced(errRemoved)
	shown(errRemoved.Error())
	s.replaced(nil)
	shown("")
	s.tried(errRemoved)
	shown(errRemoved.Error())
	s.tried(nil)
	shown("")
}
