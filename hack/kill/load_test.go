package kill

import (
	"fmt"
	"testing"
	"time"
)

// serve makes a device of images and has workers work on it. The work ends with
// the test at the latest, when the server has let go of the device.
func (s *server) serve(name string, g *images, workers int, options ...string) *load {
	s.t.Helper()
	disk := s.ok(append(append([]string{"create", name}, g.arguments()...), options...)...)
	return startLoad(s.t, disk, g, workers, true)
}

// load is work under way on a block device.
type load struct {
	*Work
	t       *testing.T
	g       *images
	disk    string
	device  *BlockDevice
	stopped bool
}

func startLoad(t *testing.T, disk string, g *images, workers int, discards bool) *load {
	t.Helper()
	device, err := OpenBlockDevice(disk)
	must(t, err)
	l := &load{t: t, g: g, disk: disk, device: device}
	l.Work = g.model.Start(device, workers, Area{Cluster: g.cluster, Discards: discards})
	t.Cleanup(func() {
		if !l.stopped { // the test has failed, and perhaps nobody serves them
			close(l.Work.stop)
		}
	})
	return l
}

// advances waits until so many more operations have come back.
func (l *load) advances(n uint64) {
	l.t.Helper()
	want := l.Done() + n
	if err := wait(2*time.Minute, func() error {
		if done := l.Done(); done < want {
			return fmt.Errorf("%d operations have come back, waiting for %d", done, want)
		}
		return nil
	}); err != nil {
		l.t.Fatal(err)
	}
}

// stop ends the work, and closes the device.
func (l *load) stop() {
	l.t.Helper()
	done := make(chan struct{})
	go func() { l.Stop(); close(done) }()
	l.stopped = true
	select {
	case <-done:
	case <-time.After(2 * time.Minute):
		l.t.Fatal("requests don't come back")
	}
	l.device.Close()
}

// check reads the whole disk, on which nobody works.
func (l *load) check() {
	l.t.Helper()
	device, err := OpenBlockDevice(l.disk)
	must(l.t, err)
	l.g.model.Check(device)
	device.Close()
	noLies(l.t, l.g.model)
}

// remove ends the work, takes the device away, and looks at the images.
func (s *server) remove(name string, l *load) {
	s.t.Helper()
	l.stop()
	l.check()
	s.ok("remove", name)
	l.g.sound(s.t, s)
}
