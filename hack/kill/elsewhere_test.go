package kill

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/hack/faultfs"
	"holdfast/ploop"
)

// TestElsewhere: a daemon that serves all devices is killed while storage of one of them answers
// nothing. A thread that hangs there, in a transfer or in closing a file, can't be killed, and keeps
// everything that the daemon had, for its other devices too. The next one can only say so;
// when the storage is back, all are served, and nobody was told an error.
func TestElsewhere(t *testing.T) {
	for i, in := range []string{"transfer", "close"} {
		if onOtherKernel(i) {
			continue
		}
		t.Run(in, func(t *testing.T) {
			s := makeServer(t, "--targets", "none")
			if s.managed() {
				t.Skip("each device has a server of its own: TestServesBesideHungStorage")
			}
			e := elsewhere(s, in == "close")
			e.start()
			e.dies(time.Minute)
			if log := e.logTail(); !strings.Contains(log, "was killed and has not ended yet") {
				t.Errorf("the next server says: %s", log)
			}
			if _, err := e.run("list"); err == nil || !strings.Contains(err.Error(), "was killed and has not ended yet") {
				t.Errorf("list: %v", err)
			}
			e.finish()
		})
	}
}

// beside are two devices whose servers, and all other processes, were killed while a write of one was
// in storage that answers nothing any more.
type beside struct {
	*server
	storage *faultfs.Storage
	rule    int   // by which it hangs
	hungPID int   // the killed process that can't end
	w       *load // on the device that is well
	hangs   *BlockDevice
	written chan error
	old     chan struct{} // closed at the end of the killed process
	failed  []*tracepoint
}

// elsewhere makes them. Where transfers are asynchronous, no thread is in one.
func elsewhere(s *server, async bool) *beside {
	t := s.t
	t.Helper()
	e := &beside{server: s, written: make(chan error, 1)}
	var err error
	e.storage, err = faultfs.Mount(t.TempDir(), t.TempDir(), faultfs.Options{AsyncIO: async})
	must(t, err)
	t.Cleanup(func() { e.storage.Close() })
	image := e.storage.Dir + "/image.hds"
	must(t, ploop.Create(image, ploop.CreateOptions{Size: 16 << 20, ClusterSize: 64 << 10}))
	e.start()
	e.answers()
	// Its images are the first to be opened.
	disk := e.ok("create", "hangs", "--image", image)
	e.w = e.serve("well", oneDelta(t, t.TempDir(), 8<<20, 11), 4)
	e.failed = []*tracepoint{countRequests(t, "block_rq_error", disk), countRequests(t, "block_rq_error", e.w.disk)}
	e.w.advances(20)
	e.hangs, err = OpenBlockDevice(disk)
	must(t, err)
	t.Cleanup(e.hangs.Close)
	_, err = e.hangs.WriteAt(letter('A'), 0) // the next one allocates nothing
	must(t, err)
	t.Cleanup(e.storage.Clear)
	e.rule = e.storage.Add(faultfs.Rule{Hang: true})
	go func() {
		_, err := e.hangs.WriteAt(letter('B'), 0)
		e.written <- err
	}()
	must(t, wait(time.Minute, func() error {
		if e.storage.Rule(e.rule).Hanging == 0 {
			return fmt.Errorf("nothing hangs")
		}
		return nil
	}))
	e.hungPID = e.serverPID("hangs")
	e.process.Kill()
	e.old = e.ended
	if e.managed() {
		e.dies(time.Minute)
		well := e.serverPID("well")
		for _, pid := range []int{well, e.hungPID} {
			must(t, unix.Kill(pid, unix.SIGKILL))
		}
		e.ends(well)
		e.old = make(chan struct{})
		go func() {
			for !gone(e.hungPID) {
				time.Sleep(10 * time.Millisecond)
			}
			close(e.old)
		}()
	}
	select {
	case <-e.old:
		t.Fatal("the killed server has ended, though it waits for storage")
	case <-time.After(2 * time.Second):
	}
	return e
}

// finish has the storage answer again.
func (e *beside) finish() {
	t := e.t
	t.Helper()
	e.storage.Clear()
	select {
	case <-e.old:
	case <-time.After(time.Minute):
		t.Fatal("the killed server does not end, and its storage is back")
	}
	e.begin()
	e.answers()
	e.serves("well")
	e.serves("hangs")
	must(t, <-e.written)
	// What the dead server had on its way has landed before, and never lands again.
	_, err := e.hangs.WriteAt(letter('C'), 0)
	must(t, err)
	time.Sleep(100 * time.Millisecond)
	p := aligned(fenceBlock)
	if _, err := e.hangs.ReadAt(p, 0); err != nil || p[0] != 'C' {
		t.Errorf("the disk reads %c, %v, want C", p[0], err)
	}
	e.w.advances(20)
	for _, p := range e.failed {
		if n := p.hits(); n != 0 {
			t.Errorf("%d requests failed", n)
		}
	}
	e.hangs.Close()
	e.ok("remove", "hangs")
	e.imageReads(e.storage.Backing+"/image.hds", 0, 'C')
	e.remove("well", e.w)
}
