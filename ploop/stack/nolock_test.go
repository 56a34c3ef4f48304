package stack

import (
	"bytes"
	"errors"
	"testing"

	"holdfast/ploop/image"
)

// Where nothing tells whether a dead server still writes, nothing is written: least of all
// is the end of the file cut off, which may have a cluster whose entry is on its way.
func TestWithoutTheLockNothingIsWritten(t *testing.T) {
	m, s := mountScene(t)
	f := m.w.files["top"]
	if _, err := f.Allocate(int64(len(f.now)), s.ClusterSize()); err != nil { // that cluster
		t.Fatal(err)
	}
	was := bytes.Clone(f.now)
	m.noLocks = true
	clear(m.locks) // it dies
	refs, o := []image.Ref{{Path: "b/top"}}, Options{open: m.open, TakeOver: true, Continue: true, Locked: true}
	if _, err := Open(refs, o); !errors.Is(err, ErrNoLock) {
		t.Fatalf("without locks: %v", err)
	}
	if !bytes.Equal(was, f.now) {
		t.Error("the file was changed")
	}
	o.Locked = false
	again, err := Open(refs, o)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Equal(was, f.now) {
		t.Error("the end was not cut off: the test shows nothing")
	}
	wantScene(t, again)
	closeClean(t, m, again)
}
