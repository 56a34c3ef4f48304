package control

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestDamagedRecordIsReportedByTheDaemon(t *testing.T) {
	f := newFixture(t)
	f.create("v", "i")
	f.crash()
	path := filepath.Join(f.stateDir(), "devices", "v.json")
	if err := os.Truncate(path, 20); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(f.runDir(), "devices")); err != nil {
		t.Fatal(err)
	}
	f.start()
	snap, err := f.c.Snapshot(ctx)
	if err != nil || len(snap.Devices) != 0 || len(snap.Problems) != 1 || !strings.Contains(snap.Problems[0].File, "v.json.damaged") {
		t.Fatalf("%+v, %v", snap, err)
	}
	f.create("v", "i")
	os.Remove(snap.Problems[0].File)
	if snap, _ = f.c.Snapshot(ctx); len(snap.Problems) != 0 || len(snap.Devices) != 1 {
		t.Errorf("%+v", snap)
	}
}
