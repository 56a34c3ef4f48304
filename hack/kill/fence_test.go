package kill

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"holdfast/api"
	"holdfast/hack/faultfs"
	"holdfast/ploop"
	"holdfast/ploop/stack"
)

// fenced is a device whose server was killed while one of its writes hung in the
// storage, and has been started again.
type fenced struct {
	*server
	storage *faultfs.Storage
	rule    int // that holds the write back
	image   string
	device  *BlockDevice
	written chan error // the answer to the user's write, which the dead server had
}

const (
	fenceAt    = 1 << 20 // where the user writes, in bytes
	fenceBlock = 4096
)

func letter(c byte) []byte {
	p := aligned(fenceBlock)
	for i := range p {
		p[i] = c
	}
	return p
}

// fence is killedWriting, and starts the next server. What it is started with is the caller's.
func fence(t *testing.T, env ...string) *fenced {
	t.Helper()
	f := killedWriting(t, env...)
	f.start()
	f.answers()
	return f
}

// killedWriting writes A, and then B, which the storage holds back, and kills the server.
func killedWriting(t *testing.T, env ...string) *fenced {
	t.Helper()
	// The driver keeps a request whose pages the dead server's ring still has, so
	// zero copy is a fence of its own; this is about ours.
	s := makeServer(t, "--targets", "none")
	s.env = env
	backing, dir := t.TempDir(), t.TempDir()
	storage, err := faultfs.Mount(backing, dir, faultfs.Options{AsyncIO: true})
	must(t, err)
	t.Cleanup(func() { storage.Close() })
	image := dir + "/image.hds"
	must(t, ploop.Create(image, ploop.CreateOptions{Size: 16 << 20, ClusterSize: 64 << 10}))
	s.start()
	s.answers()
	disk := s.ok("create", "fence", "--image", image, "--data-path", "copy")
	f := &fenced{server: s, storage: storage, image: image, written: make(chan error, 1)}
	f.device, err = OpenBlockDevice(disk)
	must(t, err)
	t.Cleanup(f.device.Close)
	f.write('A')
	f.rule = storage.Add(faultfs.Rule{Op: faultfs.Write, Path: "image.hds", Hang: true, Times: 1})
	go func() {
		_, err := f.device.WriteAt(letter('B'), fenceAt)
		f.written <- err
	}()
	must(t, wait(time.Minute, func() error {
		if storage.Rule(f.rule).Hanging != 1 {
			return fmt.Errorf("no write hangs")
		}
		return nil
	}))
	s.kill()
	return f
}

func (f *fenced) write(c byte) {
	f.t.Helper()
	_, err := f.device.WriteAt(letter(c), fenceAt)
	must(f.t, err)
}

// reads is the letter that the disk has.
func (f *fenced) reads() byte {
	f.t.Helper()
	p := aligned(fenceBlock)
	_, err := f.device.ReadAt(p, fenceAt)
	must(f.t, err)
	if !bytes.Equal(p, letter(p[0])) {
		f.t.Fatalf("a block reads as a mixture: %q … %q", p[:8], p[len(p)-8:])
	}
	return p[0]
}

// acknowledged waits for the answer to the write that the dead server had.
func (f *fenced) acknowledged() {
	f.t.Helper()
	select {
	case err := <-f.written:
		must(f.t, err)
	case <-time.After(time.Minute):
		f.t.Fatal("the write that the dead server had does not come back")
	}
}

// TestFence: a write of the dead server is still on its way when the next one is
// started. This one waits until it has landed, and says so; nothing that is
// written later is lost.
func TestFence(t *testing.T) {
	f := fence(t)
	var d *api.Device
	must(t, wait(time.Minute, func() error {
		var err error
		if d, err = f.client.Device(t.Context(), "fence"); err == nil && !strings.Contains(d.Problem, "lock") {
			err = fmt.Errorf("state %s, problem %q", d.State, d.Problem)
		}
		return err
	}))
	if d.State != "recovering" {
		t.Errorf("state %s, want recovering", d.State)
	}
	t.Logf("it waits: %s: %s (%s)", d.State, d.Problem, d.Advice)
	// Long enough for it to go on, if it did.
	time.Sleep(2 * time.Second)
	select {
	case err := <-f.written:
		t.Fatalf("the user's write was answered (%v) while the dead server's was on its way", err)
	default:
	}
	if d, err := f.client.Device(t.Context(), "fence"); err != nil || d.State != "recovering" {
		t.Errorf("%+v, %v", d, err)
	}
	f.lands(t)
	f.finish(t, 'C')
}

// lands lets the dead server's write land, after which the device is recovered, and nothing that is
// written later is lost.
func (f *fenced) lands(t *testing.T) {
	t.Helper()
	f.storage.Remove(f.rule)
	f.serves("fence")
	f.acknowledged()
	f.write('C')
	time.Sleep(100 * time.Millisecond)
	if c := f.reads(); c != 'C' {
		t.Errorf("the disk reads %c, want C", c)
	}
}

// TestFenceControl: without the fence, the same loses what was acknowledged.
func TestFenceControl(t *testing.T) {
	if onOtherKernel(1) {
		t.Skip("to save time: the other kernel's")
	}
	f := fence(t, "HOLDFAST_FAILSWITCH=no-fence")
	f.serves("fence")
	f.acknowledged()
	f.write('C')
	if c := f.reads(); c != 'C' {
		t.Fatalf("the disk reads %c, want C", c)
	}
	f.storage.Remove(f.rule)
	if err := wait(time.Minute, func() error {
		if c := f.reads(); c != 'B' {
			return fmt.Errorf("the disk reads %c", c)
		}
		return nil
	}); err != nil {
		t.Fatalf("the dead server's write should have landed over newer data: %v", err)
	}
	t.Log("C was written and acknowledged, and now the disk reads B")
	f.finish(t, 'B')
}

// finish removes the device, and looks at the image.
func (f *fenced) finish(t *testing.T, want byte) {
	t.Helper()
	f.device.Close()
	f.ok("remove", "fence")
	f.imageReads(f.storage.Backing+"/image.hds", fenceAt, want)
}

// imageReads looks at a block of an image that nobody serves.
func (s *server) imageReads(path string, off int64, want byte) {
	s.t.Helper()
	d, err := stack.Open([]ploop.ImageRef{{Path: path}}, stack.Options{ReadOnly: true})
	must(s.t, err)
	defer d.Close()
	p := ploop.AlignedBuffer(fenceBlock)
	if _, err := d.ReadAt(p, off); err != nil || !bytes.Equal(p, letter(want)) {
		s.t.Errorf("the image has %q…, %v, want %c", p[:8], err, want)
	}
}
