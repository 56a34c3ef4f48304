package stack

import (
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"holdfast/ploop/image"
	"holdfast/ploop/internal/storage"
)

// simMounts gives the files of a simWorld by several mounts, "a/top" and
// "b/top", each of which may die, with locks that know only the file.
type simMounts struct {
	w *simWorld
	t *testing.T

	mu      sync.Mutex
	dead    map[string]error // by mount: every operation fails so
	noLocks bool
	locks   map[*simFile][]*simHandle
	hang    func(h *simHandle, kind string, off int64) <-chan struct{} // before the operation is done
	changes []string                                                   // what was done, "a write 512"
}

// simHandle is a file open by one mount.
type simHandle struct {
	*simFile
	m      *simMounts
	mount  string
	write  bool
	closed atomic.Bool
}

func newSimMounts(t *testing.T, w *simWorld) *simMounts {
	return &simMounts{w: w, t: t, dead: map[string]error{}, locks: map[*simFile][]*simHandle{}}
}

func (m *simMounts) open(path string, write, direct bool) (storage.File, error) {
	mount, name, ok := strings.Cut(path, "/")
	f := m.w.files[name]
	if !ok || f == nil {
		return nil, fmt.Errorf("no file %q", path)
	}
	h := &simHandle{simFile: f, m: m, mount: mount, write: write}
	if err := h.op("open", 0); err != nil {
		return nil, &image.IOError{Op: "open", File: path, Offset: -1, Err: err}
	}
	if err := h.Lock(); err != nil {
		return nil, err
	}
	return h, nil
}

func (h *simHandle) op(kind string, off int64) error {
	if h.closed.Load() {
		h.m.t.Errorf("%s at %d of a closed file", kind, off)
	}
	h.m.mu.Lock()
	hang, dead := h.m.hang, h.m.dead[h.mount]
	if kind != "read" && kind != "size" && kind != "open" && kind != "unlock" && kind != "lock" {
		h.m.changes = append(h.m.changes, fmt.Sprint(h.mount, " ", kind, " ", off))
	}
	h.m.mu.Unlock()
	if hang != nil {
		if c := hang(h, kind, off); c != nil {
			<-c
		}
	}
	return dead
}

func (h *simHandle) ReadAt(p []byte, off int64) (int, error) {
	if err := h.op("read", off); err != nil {
		return 0, err
	}
	return h.simFile.ReadAt(p, off)
}

func (h *simHandle) WriteAt(p []byte, off int64) (int, error) {
	if err := h.op("write", off); err != nil {
		return 0, err
	}
	return h.simFile.WriteAt(p, off)
}

func (h *simHandle) Sync() error {
	if err := h.op("sync", 0); err != nil {
		return err
	}
	return h.simFile.Sync()
}

func (h *simHandle) Truncate(size int64) error {
	if err := h.op("truncate", size); err != nil {
		return err
	}
	return h.simFile.Truncate(size)
}

func (h *simHandle) Allocate(off, n int64) (bool, error) {
	if err := h.op("allocate", off); err != nil {
		return false, err
	}
	return h.simFile.Allocate(off, n)
}

func (h *simHandle) Zero(off, n int64, keep bool) error {
	if err := h.op("zero", off); err != nil {
		return err
	}
	return h.simFile.Zero(off, n, keep)
}

func (h *simHandle) Discard(off, n int64) error { return h.Zero(off, n, false) }

func (h *simHandle) Size() (int64, error) {
	if err := h.op("size", 0); err != nil {
		return 0, err
	}
	return h.simFile.Size()
}

func (h *simHandle) Locked() bool {
	h.m.mu.Lock()
	defer h.m.mu.Unlock()
	return h.m.has(h)
}

func (m *simMounts) has(h *simHandle) bool {
	for _, other := range m.locks[h.simFile] {
		if other == h {
			return true
		}
	}
	return false
}

func (h *simHandle) Lock() error {
	if err := h.op("lock", 0); err != nil {
		return err
	}
	h.m.mu.Lock()
	defer h.m.mu.Unlock()
	if h.m.noLocks || h.m.has(h) {
		return nil
	}
	for _, other := range h.m.locks[h.simFile] {
		if h.write || other.write {
			return &image.FormatError{File: h.mount, Offset: -1, What: "lock", Class: image.ErrLocked, Found: "another has it"}
		}
	}
	h.m.locks[h.simFile] = append(h.m.locks[h.simFile], h)
	return nil
}

func (h *simHandle) Unlock() error {
	if err := h.op("unlock", 0); err != nil {
		return err // and the server still holds it
	}
	h.m.unlock(h)
	return nil
}

func (m *simMounts) unlock(h *simHandle) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var rest []*simHandle
	for _, other := range m.locks[h.simFile] {
		if other != h {
			rest = append(rest, other)
		}
	}
	m.locks[h.simFile] = rest
}

func (h *simHandle) Close() error {
	h.m.mu.Lock()
	dead := h.m.dead[h.mount]
	h.m.mu.Unlock()
	if dead == nil {
		h.m.unlock(h)
	}
	if h.closed.Swap(true) {
		h.m.t.Error("a file is closed twice")
	}
	return dead
}

func (m *simMounts) die(mount string, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.dead[mount] = err
}

// changed gives what was changed by a mount since the last call.
func (m *simMounts) changed(mount string) (list []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var rest []string
	for _, c := range m.changes {
		if strings.HasPrefix(c, mount+" ") {
			list = append(list, c)
		} else {
			rest = append(rest, c)
		}
	}
	m.changes = rest
	return list
}

// hanging is storage that keeps operations until released.
type hanging struct {
	begun   chan string
	release chan struct{}
}

// hangOn keeps the first operation of a mount that match wants.
func (m *simMounts) hangOn(mount string, match func(kind string, off int64) bool) *hanging {
	h := &hanging{begun: make(chan string, 1), release: make(chan struct{})}
	var once sync.Once
	m.mu.Lock()
	defer m.mu.Unlock()
	m.hang = func(f *simHandle, kind string, off int64) (c <-chan struct{}) {
		if f.mount == mount && match(kind, off) {
			once.Do(func() {
				c = h.release
				h.begun <- kind
			})
		}
		return c
	}
	return h
}

var errGone = syscall.ENOTCONN
