package manager

import (
	"fmt"
	"testing"
	"time"

	"holdfast/api"
	"holdfast/sysfs"
)

// TestHundredDevices: a list and a read of the whole tree take few questions to servers, however
// many attributes there are.
func TestHundredDevices(t *testing.T) {
	f := newFixture(t)
	const n = 100
	f.image("i")
	for i := range n {
		name := fmt.Sprintf("v%02d", i)
		f.image(name)
		f.create(name, name)
	}
	began := time.Now()
	list, err := f.c.Snapshot(t.Context())
	if err != nil || len(list.Devices) != n {
		t.Fatalf("%d devices, %v", len(list.Devices), err)
	}
	t.Logf("list: %v", time.Since(began))
	asked := func() (sum int) {
		for _, s := range f.h.all() {
			sum += s.requests()
		}
		return sum
	}
	before := asked()
	began = time.Now()
	read := readAll(t, f.m.tree.root, "block")
	took := time.Since(began)
	t.Logf("tree: %d attributes in %v", read, took)
	// One each, and as many more as time goes by.
	if n, most := asked()-before, n+2*int(took/(f.pace.ask/10))+10; n > most {
		t.Errorf("%d questions for %d attributes, want %d at most", n, read, most)
	}
}

// TestListOfManySlowServers: where the answers of all take longer together than one server may take, none is
// taken for silent.
func TestListOfManySlowServers(t *testing.T) {
	f := newFixture(t)
	const n = 120
	for i := range n {
		name := fmt.Sprintf("v%02d", i)
		f.image(name)
		f.create(name, name)
	}
	f.h.busy.Store(int64(f.pace.ask / 80))
	defer f.h.busy.Store(0)
	list, err := f.c.Snapshot(t.Context())
	if err != nil || len(list.Devices) != n {
		t.Fatalf("%d devices, %v", len(list.Devices), err)
	}
	for _, d := range list.Devices {
		if d.State != api.StateLive || d.Server.State != api.ServerUp {
			t.Errorf("%s is %s, its server %s", d.Name, d.State, d.Server.State)
		}
	}
}

// readAll reads what can be read below a directory, and says how many attributes these are.
func readAll(t *testing.T, root *sysfs.Dir, path string) (n int) {
	t.Helper()
	list, err := root.List(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range list {
		at := path + "/" + i.Name
		switch {
		case i.Target != "":
		case i.IsDir():
			n += readAll(t, root, at)
		case i.Mode&0o444 != 0:
			if _, err := root.Read(at); err == nil {
				n++
			} else if i.Name != "stat" && i.Name != "inflight" { // of the kernel's tree, which isn't here
				t.Errorf("%s: %v", at, err)
			}
		}
	}
	return n
}

// TestTreeShowsWhatWasDone: an attribute that was read a moment ago shows what a command, a write
// and an event have changed since.
func TestTreeShowsWhatWasDone(t *testing.T) {
	f := newFixture(t)
	f.image("i")
	f.create("v", "i")
	f.arm("v")
	reads := func(attr, want string) {
		t.Helper()
		got, err := f.m.tree.root.Read("block/v/queue/" + attr)
		if err != nil || got != want {
			t.Fatalf("%s is %q (%v), want %q", attr, got, err, want)
		}
	}
	for range 10 {
		reads("standby", "off")
		if _, err := f.c.SetStandby(t.Context(), "v", true); err != nil {
			t.Fatal(err)
		}
		reads("standby", "on")
		if err := f.m.tree.root.Write("block/v/queue/standby", "off"); err != nil {
			t.Fatal(err)
		}
	}
}
