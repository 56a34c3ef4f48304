package stack

import (
	"errors"
	"os"
	"testing"

	"holdfast/ploop/image"
	"holdfast/ploop/internal/format"
)

// TestCloseDead: a close that the storage doesn't take, at whatever point,
// leaves in_use set or the file complete, and what was acknowledged.
func TestCloseDead(t *testing.T) {
	for k := 1; ; k++ {
		m, s := mountScene(t)
		writeByte(t, s, 200, 20)
		n := 0
		m.w.fault = func(f *simFile, kind string, off, _ int64) simFault {
			if n++; n >= k {
				return simFault{err: errGone}
			}
			return simFault{}
		}
		err := s.Close()
		m.w.fault = nil
		if err == nil {
			if k < 4 {
				t.Errorf("a close of %d operations", k-1)
			}
			return
		}
		if !errors.Is(err, errGone) {
			t.Errorf("%v", err)
		}
		if !s.top.File.(*simHandle).closed.Load() {
			t.Error("the file is still open")
		}
		s, err = Open([]image.Ref{{Path: "a/top"}}, Options{open: m.open, TakeOver: true})
		if err != nil {
			t.Fatalf("failing from operation %d on: %v", k, err)
		}
		wantScene(t, s)
		wantByte(t, s, 200, 20)
		closeClean(t, m, s)
	}
}

// TestEmptyFlag: software that believes in the flag must not find it on an
// image with data.
func TestEmptyFlag(t *testing.T) {
	im := newSmallImage(2)
	im.put32(52, format.FlagEmpty)
	ref := writeSmall(t, im)
	s := mustOpen(t, []image.Ref{ref}, Options{})
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(ref.Path)
	if err != nil || b[52] != 0 {
		t.Errorf("flags %#x after writing (%v)", b[52], err)
	}
}
