package device

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/api"
	"holdfast/hack/faultfs"
	"holdfast/ploop"
	"holdfast/ploop/stack"
)

// Of the disks of TestTriggers: the lower delta holds the first half of the clusters.
const (
	clusterBlocks = 16 // 64 KiB
	diskClusters  = 512
)

// place is a cluster for one case of TestTriggers: its first block.
type place struct {
	mine  uint64 // written in the top
	lower uint64 // only in the lower delta
	fresh uint64 // in none
}

// TestTriggers fails every kind of operation at every place where the storage is
// asked, with each errno: the device holds, nobody sees an error, and after the files
// were replaced, or came back, everything is done and the data is right.
func TestTriggers(t *testing.T) {
	ctl := openControl(t)
	dataStart := int64(clusterBlocks * blockSize) // header and BAT lie before
	for _, path := range dataPathsOf(t, ctl) {
		for _, resume := range []string{api.ResumeManual, api.ResumeReopen} {
			for _, deltas := range []int{2, 1} {
				if testing.Short() && (resume == api.ResumeReopen) != (deltas == 1) || onOtherKernel(deltas) {
					continue // to save time
				}
				t.Run(fmt.Sprintf("%s/%s/%d deltas", path, resume, deltas), func(t *testing.T) {
					m := newTriggered(t, path, resume, deltas)
					for i, c := range []struct {
						name   string
						deltas int // 0: any
						rule   faultfs.Rule
						// may: the operation needn't meet the fault, or not mind it, as with a
						// hole that can't be made where the index doesn't lead any more
						may bool
						do  func(p place) error
					}{
						{"read", 0, faultfs.Rule{Op: faultfs.Read, Path: "top"}, false, func(p place) error { return m.fd.expect(p.mine, 1) }},
						{"read of the lower", 2, faultfs.Rule{Op: faultfs.Read, Path: "base"}, false, func(p place) error { return m.fd.expect(p.lower, 1) }},
						{"write", 0, faultfs.Rule{Op: faultfs.Write, Path: "top"}, false, func(p place) error { return m.write(p.mine, 2) }},
						{"torn write", 0, faultfs.Rule{Op: faultfs.Write, Path: "top", Partial: 512}, false, func(p place) error { return m.write(p.mine, 2) }},
						{"write that was done", 0, faultfs.Rule{Op: faultfs.Write, Path: "top", Apply: true}, false, func(p place) error { return m.write(p.mine, 2) }},
						{"allocation", 0, faultfs.Rule{Op: faultfs.Write, Path: "top"}, false, func(p place) error { return m.write(p.fresh+3, 2) }},
						{"allocation, file grows", 0, faultfs.Rule{Op: faultfs.Truncate, Path: "top"}, true, func(p place) error { return m.write(p.fresh, 2) }},
						{"allocation, space", 0, faultfs.Rule{Op: faultfs.Fallocate, Path: "top"}, true, func(p place) error { return m.write(p.fresh, 2) }},
						{"allocation, sync", 0, faultfs.Rule{Op: faultfs.Fsync, Path: "top"}, true, func(p place) error { return m.write(p.fresh, 2) }},
						{"index", 0, faultfs.Rule{Op: faultfs.Write, Path: "top", Len: dataStart}, false, func(p place) error { return m.write(p.fresh+15, 2) }},
						{"index, torn", 0, faultfs.Rule{Op: faultfs.Write, Path: "top", Len: dataStart, Partial: 512}, false, func(p place) error { return m.write(p.fresh+15, 2) }},
						{"index that was written", 0, faultfs.Rule{Op: faultfs.Write, Path: "top", Len: dataStart, Apply: true}, false, func(p place) error { return m.write(p.fresh+15, 2) }},
						{"index, read back too", 0, faultfs.Rule{Path: "top", Len: dataStart}, false, func(p place) error { return m.write(p.fresh+15, 2) }},
						{"copy up, read", 2, faultfs.Rule{Op: faultfs.Read, Path: "base"}, false, func(p place) error { return m.write(p.lower+5, 2) }},
						{"copy up, write", 2, faultfs.Rule{Op: faultfs.Write, Path: "top"}, false, func(p place) error { return m.write(p.lower+5, 2) }},
						{"flush", 0, faultfs.Rule{Op: faultfs.Fsync}, false, func(p place) error {
							if err := m.write(p.mine, 2); err != nil {
								return err
							}
							return m.fd.flush()
						}},
						{"FUA", 0, faultfs.Rule{Op: faultfs.Write, Path: "top"}, false, func(p place) error { return m.through(p.mine, 2) }},
						{"FUA, allocation", 0, faultfs.Rule{Op: faultfs.Fsync, Path: "top"}, false, func(p place) error { return m.through(p.fresh, 2) }},
						{"write zeroes", 0, faultfs.Rule{Path: "top"}, false, func(p place) error { return m.zero(p.mine, clusterBlocks) }},
						{"write zeroes, part", 0, faultfs.Rule{Path: "top"}, false, func(p place) error { return m.zero(p.mine+1, 3) }},
						{"write zeroes over the lower", 2, faultfs.Rule{Path: "top"}, false, func(p place) error { return m.zero(p.lower, clusterBlocks) }},
						{"discard", 1, faultfs.Rule{Path: "top"}, false, func(p place) error { return m.discard(p.mine, clusterBlocks) }},
						{"discard, index", 1, faultfs.Rule{Op: faultfs.Write, Path: "top"}, true, func(p place) error { return m.discard(p.mine, clusterBlocks) }},
						{"discard, space", 1, faultfs.Rule{Op: faultfs.Fallocate, Path: "top"}, true, func(p place) error { return m.discard(p.mine, clusterBlocks) }},
						{"all", 0, faultfs.Rule{}, false, func(p place) error { return m.write(p.mine, 2) }},
					} {
						if c.deltas != 0 && c.deltas != deltas {
							continue
						}
						for k, errno := range []unix.Errno{unix.EBUSY, unix.ENOTCONN, unix.EIO} {
							if (testing.Short() || path != "copy" || resume != api.ResumeManual) && k != i%3 && os.Getenv(longEnv) == "" {
								continue // to save time
							}
							c.rule.Errno = errno
							m.fault(fmt.Sprintf("%s/%s", c.name, unix.ErrnoName(errno)), c.rule, c.may, c.do, i+k)
						}
					}
					m.finish()
				})
			}
		}
	}
}

// triggered is a device in standby again and again, and what it should hold.
type triggered struct {
	*Device
	t      *testing.T
	mounts *twoMounts
	mount  *faultfs.Storage // by which the device has its files now
	names  []string
	fd     rawDisk
	next   uint64 // cluster
	mu     sync.Mutex
	want   map[uint64]uint64 // block to version; others are of the lower, or zeroes
}

func newTriggered(t *testing.T, path, resume string, deltas int) *triggered {
	return newTriggeredOn(t, newTwoMounts(t, faultfs.Options{}), path, resume, deltas)
}

func newTriggeredOn(t *testing.T, w *twoMounts, path, resume string, deltas int) *triggered {
	was := longestReopen
	longestReopen = 500 * time.Millisecond
	t.Cleanup(func() { longestReopen = was })
	m := &triggered{t: t, mounts: w, names: []string{"base", "top"}[2-deltas:], want: map[uint64]uint64{}}
	m.mount = m.mounts.a
	for _, n := range m.names {
		if err := ploop.Create(filepath.Join(m.mounts.backing, n), ploop.CreateOptions{Size: diskClusters * clusterBlocks * blockSize, ClusterSize: clusterBlocks * blockSize, AnyClusterSize: true}); err != nil {
			t.Fatal(err)
		}
	}
	if deltas == 2 {
		s, err := stack.Open([]ploop.ImageRef{{Path: filepath.Join(m.mounts.backing, "base")}}, stack.Options{})
		if err != nil {
			t.Fatal(err)
		}
		p := make([]byte, blockSize)
		for b := range uint64(diskClusters / 2 * clusterBlocks) {
			fill(p, b, 1)
			if _, err := s.WriteAt(p, int64(b)*blockSize); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	f := serveStandby(t, openControl(t), api.Spec{Name: "trigger", Images: refs(m.mount, m.names...), DataPath: path, Resume: resume, Queues: 1}).arm()
	m.Device, m.fd = f.Device, openDisk(t, f.Device)
	return m
}

func (m *triggered) is(first, n, version uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for b := first; b < first+n; b++ {
		m.want[b] = version
	}
}

func (m *triggered) write(block, version uint64) error {
	m.is(block, 1, version)
	return m.fd.write(block, version)
}

func (m *triggered) through(block, version uint64) error {
	m.is(block, 1, version)
	return m.fd.writeThrough(block, version)
}

func (m *triggered) zero(block, n uint64) error {
	m.is(block, n, 0)
	return m.fd.zero(block, n)
}

func (m *triggered) discard(block, n uint64) error {
	m.is(block, n, 0)
	return m.fd.discard(block, n)
}

// places gives clusters that no case had before.
func (m *triggered) places() place {
	m.t.Helper()
	half := uint64(diskClusters / 2)
	p := place{lower: m.next % half * clusterBlocks, mine: (half + m.next*2%half) * clusterBlocks, fresh: (half + (m.next*2+1)%half) * clusterBlocks}
	if m.next++; m.next*2 > half {
		m.t.Fatal("the disk is too small for the cases")
	}
	if err := m.write(p.mine, 1); err != nil {
		m.t.Fatal(err)
	}
	return p
}

// fault runs one case. turn chooses how it ends.
func (m *triggered) fault(name string, rule faultfs.Rule, may bool, do func(place) error, turn int) {
	m.t.Helper()
	p := m.places()
	entered := m.Status().Standby.Entered
	id := m.mount.Add(rule)
	ended := make(chan error, 1)
	go func() { ended <- do(p) }()
	var err error
	early := false
	eventually(m.t, name+": standby", func() bool {
		select {
		case err = <-ended:
			early = true
		default:
		}
		s := m.Status()
		return early || s.Standby.Value == "on" && s.Standby.Held > 0
	})
	if early {
		applied := m.mount.Rule(id).Applied
		m.mount.Remove(id)
		if err != nil || applied > 0 && !may {
			m.t.Fatalf("%s: ended with %v before the storage was back (%d faults)", name, err, applied)
		}
		if !may {
			m.t.Errorf("%s: the operation doesn't come by the fault", name)
		}
		return
	}
	if s := m.Status().Standby; s.Errno != unix.ErrnoName(rule.Errno) || strings.Contains(s.Cause, "offset -") {
		m.t.Errorf("%s: the cause is %s: %s", name, s.Errno, s.Cause)
	}
	select {
	case err := <-ended:
		m.t.Fatalf("%s: ended in standby: %v", name, err)
	default:
	}
	if m.Spec().Resume == api.ResumeReopen {
		m.mount.Remove(id)
	} else {
		// By the other mount while this one fails, or when it works again; or the
		// same files once more.
		to := m.mounts.other(m.mount)
		if turn%3 == 1 {
			m.mount.Remove(id)
		} else if turn%3 == 2 {
			m.mount.Remove(id)
			to = m.mount
		}
		// The top comes last: it ends the standby.
		for level, ref := range refs(to, m.names...) {
			if err := m.Replace(m.t.Context(), Replace{Level: level, Image: ref}); err != nil {
				m.t.Fatalf("%s: replacing level %d: %v", name, level, err)
			}
		}
		if turn%3 == 0 {
			m.mount.Remove(id)
		}
		m.mount = to
	}
	if err := <-ended; err != nil {
		m.t.Fatalf("%s: ended with %v", name, err)
	}
	s := m.Status()
	if s.Standby.Entered == entered || s.Standby.Held != 0 || s.Standby.HeldFailed != 0 {
		m.t.Errorf("%s: %+v", name, s.Standby)
	}
	for b := p.mine; b < p.mine+clusterBlocks; b++ {
		m.check(name, b)
	}
	for b := p.fresh; b < p.fresh+clusterBlocks; b++ {
		m.check(name, b)
	}
	for b := p.lower; b < p.lower+clusterBlocks && len(m.names) > 1; b++ {
		m.check(name, b)
	}
}

func (m *triggered) version(block uint64) uint64 {
	if v, ok := m.want[block]; ok {
		return v
	}
	if len(m.names) > 1 && block < diskClusters/2*clusterBlocks {
		return 1
	}
	return 0
}

func (m *triggered) check(name string, block uint64) {
	m.t.Helper()
	if err := m.fd.expect(block, m.version(block)); err != nil {
		m.t.Errorf("after %s: %v", name, err)
	}
}

// TestShort has the storage do a part of what it is asked, without an error, once,
// several times or always.
func TestShort(t *testing.T) {
	for _, path := range dataPathsOf(t, openControl(t)) {
		for i, name := range []string{"server", "us"} {
			if !onOtherKernel(i) {
				t.Run(path+"/direct I/O by the "+name, func(t *testing.T) { testShort(t, path, faultfs.Options{OneWriter: name == "us"}) })
			}
		}
	}
}

func testShort(t *testing.T, path string, o faultfs.Options) {
	m := newTriggeredOn(t, newTwoMounts(t, o), path, api.ResumeManual, 2)
	p := m.places()
	version := uint64(10)
	for _, part := range []int64{512, 1536, 4096} {
		for _, times := range []int{1, 2, 0} {
			for _, n := range []uint64{1, 3, clusterBlocks} {
				version++
				name := fmt.Sprintf("%d times %d of %d bytes", times, part, n*blockSize)
				m.mount.Add(faultfs.Rule{Op: faultfs.Write, Partial: part, Times: times})
				for _, b := range []uint64{p.mine, p.fresh} {
					m.is(b, n, version)
					if err := m.fd.writeMany(b, n, version); err != nil {
						t.Errorf("writing %s: %v", name, err)
					}
				}
				m.mount.Clear()
				for b := range n {
					m.check("writing "+name, p.mine+b)
					m.check("writing "+name, p.fresh+b)
				}
				if o.OneWriter {
					continue // a short read would be the file's end
				}
				m.mount.Add(faultfs.Rule{Op: faultfs.Read, Partial: part, Times: times})
				for _, b := range []uint64{p.mine, p.lower} {
					if err := m.fd.expectMany(b, n, m.version(b)); err != nil {
						t.Errorf("reading %s: %v", name, err)
					}
				}
				m.mount.Clear()
			}
		}
	}
	m.finish()
}

// finish closes the device, and looks at the images without it.
func (m *triggered) finish() {
	m.t.Helper()
	if err := m.Close(m.t.Context(), true); err != nil {
		m.t.Fatal(err)
	}
	var images []ploop.ImageRef
	for _, n := range m.names {
		images = append(images, ploop.ImageRef{Path: filepath.Join(m.mounts.backing, n)})
	}
	checkClean(m.t, images)
	s, err := stack.Open(images, stack.Options{ReadOnly: true})
	if err != nil {
		m.t.Fatal(err)
	}
	defer s.Close()
	p := make([]byte, blockSize)
	for b := range uint64(diskClusters * clusterBlocks) {
		if _, err := s.ReadAt(p, int64(b)*blockSize); err != nil {
			m.t.Fatal(err)
		}
		for i := 0; i < len(p); i += 512 {
			if v, err := versionOf(p[i:][:512], b); err != nil || v != m.version(b) {
				m.t.Fatalf("in the closed image block %d is of version %d, want %d: %v", b, v, m.version(b), err)
			}
		}
	}
}
