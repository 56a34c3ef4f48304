package main

import (
	"errors"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"holdfast/ploop"
	"holdfast/ploop/stack"
	"holdfast/ublk/uring"
)

// testEngine makes an engine on a small image, for the test's goroutine.
func testEngine(t testing.TB, depth int) *engine {
	t.Helper()
	if _, err := exec.LookPath("qemu-img"); err != nil {
		t.Skip(err)
	}
	image := filepath.Join(t.TempDir(), "image.hds")
	if err := makeImage(image, 16*mib); err != nil {
		t.Fatal(err)
	}
	stack, err := stack.Open([]ploop.ImageRef{{Path: image}}, stack.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := stack.Close(); err != nil {
			t.Error(err)
		}
	})
	runtime.LockOSThread()
	e, err := newEngine(stack, 4096, depth)
	if errors.Is(err, uring.ErrDisabled) || errors.Is(err, uring.ErrUnsupported) || errors.Is(err, unix.EPERM) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.close(); err != nil {
			t.Error(err)
		}
		runtime.UnlockOSThread()
	})
	return e
}

func TestFastPathAllocatesNothing(t *testing.T) {
	e := testEngine(t, 32)
	for _, write := range []bool{false, true} {
		p := pattern{Write: write, Block: 4096, Step: 4096 * 1237, Depth: 32, Count: 500}
		if n := testing.AllocsPerRun(20, func() {
			if _, err := e.run(&p); err != nil {
				t.Fatal(err)
			}
		}); n != 0 {
			t.Errorf("write %v: %v allocations in %d requests, want 0", write, n, p.Count)
		}
	}
}

// BenchmarkFastPath is one request per operation. With -benchmem it has to
// show 0 allocs/op.
func BenchmarkFastPath(b *testing.B) {
	for _, c := range []struct {
		name  string
		write bool
		depth int
	}{{"read/depth1", false, 1}, {"read/depth32", false, 32}, {"write/depth1", true, 1}, {"write/depth32", true, 32}} {
		b.Run(c.name, func(b *testing.B) {
			e := testEngine(b, c.depth)
			b.ReportAllocs()
			b.ResetTimer()
			p := pattern{Write: c.write, Block: 4096, Step: 4096 * 1237, Depth: c.depth, Count: b.N}
			if _, err := e.run(&p); err != nil {
				b.Fatal(err)
			}
		})
	}
}

// BenchmarkLocate is the image engine's part of a request alone.
func BenchmarkLocate(b *testing.B) {
	e := testEngine(b, 1)
	b.ReportAllocs()
	off, size := int64(0), e.stack.Size()
	for b.Loop() {
		at := e.reader.Locate(off, 4096, true)
		if at.Where != stack.Direct {
			b.Fatal(at)
		}
		e.reader.Leave(at.Token)
		off = (off + 4096*1237) % size
	}
}
