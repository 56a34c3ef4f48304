package kill

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"holdfast/hack/faultfs"
	"holdfast/ploop"
)

// TestElsewhere: the server is killed while storage of one of its devices answers nothing. A
// thread that hangs there, in a transfer or in closing a file, can't be killed, and keeps
// everything that the server had, for its other devices too. The next one can only say so;
// when the storage is back, all are served, and nobody was told an error.
func TestElsewhere(t *testing.T) {
	for i, in := range []string{"transfer", "close"} {
		if onOtherKernel(i) {
			continue
		}
		t.Run(in, func(t *testing.T) {
			e := elsewhere(t, in == "close")
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

// beside is a server with two devices, that was killed while a write of one was in storage that
// answers nothing any more.
type beside struct {
	*server
	storage *faultfs.Storage
	w       *load // on the device that is well
	hangs   *BlockDevice
	written chan error
	old     chan struct{} // closed at the end of the killed process
	failed  []*tracepoint
}

// elsewhere makes one. Where transfers are asynchronous, no thread is in one.
func elsewhere(t *testing.T, async bool) *beside {
	t.Helper()
	e := &beside{server: makeServer(t, "--targets", "none"), written: make(chan error, 1)}
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
	rule := e.storage.Add(faultfs.Rule{Hang: true})
	go func() {
		_, err := e.hangs.WriteAt(letter('B'), 0)
		e.written <- err
	}()
	must(t, wait(time.Minute, func() error {
		if e.storage.Rule(rule).Hanging == 0 {
			return fmt.Errorf("nothing hangs")
		}
		return nil
	}))
	e.process.Kill()
	e.old = e.ended
	if e.deadWithin(2 * time.Second) {
		t.Fatal("the killed server has ended, though it waits for storage")
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
	e.start()
	e.answers()
	e.serves("well")
	e.serves("hangs")
	must(t, <-e.written)
	e.w.advances(20)
	for _, p := range e.failed {
		if n := p.hits(); n != 0 {
			t.Errorf("%d requests failed", n)
		}
	}
	e.hangs.Close()
	e.ok("remove", "hangs")
	e.remove("well", e.w)
}
