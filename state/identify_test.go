package state

import (
	"os"
	"path/filepath"
	"testing"

	"holdfast/api"
	"holdfast/ploop/image"
)

func TestIdentify(t *testing.T) {
	dir := t.TempDir()
	run, state := filepath.Join(dir, "run"), filepath.Join(dir, "lib")
	put := func(at, name string, number int, boot string) {
		t.Helper()
		r := Records{Dir: filepath.Join(at, "devices")}
		if err := os.MkdirAll(r.Dir, 0o700); err != nil {
			t.Fatal(err)
		}
		spec := api.Spec{Name: name, Images: []image.Ref{{Path: "/i"}}}
		rec := &Record{Spec: spec, ID: number, BootID: boot, Images: make([]ImageID, 1)}
		if name == "holds" {
			rec.Standby = &Standby{Cause: "gone"}
		}
		if err := r.Save(rec); err != nil {
			t.Fatal(err)
		}
	}
	put(state, "old", 3, "before")
	put(state, "new", 3, "now")
	put(state, "holds", 5, "now")
	put(run+"-other", "its", 3, "now") // the state directory of this one can't be read
	if err := os.MkdirAll(state+"-other", 0o700); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		tag    uint64
		number int
		link   string
	}{
		{TagOf(state), 5, "holdfast/holds"},
		{TagOf(state), 3, "holdfast/new"},
		{TagOf(state + "-other"), 3, "holdfast-other/its"},
		{TagOf("/elsewhere"), 3, ""},
		{0, 3, ""},
	} {
		id, err := IdentityOf(run, state, c.number, c.tag, "now")
		if err != nil || id == nil != (c.link == "") || id != nil && id.Link() != c.link {
			t.Errorf("tag %#x: %v, %v, want %q", c.tag, id, err, c.link)
		}
	}
	// A look at what is on it would wait.
	if id, _ := IdentityOf(run, state, 5, TagOf(state), "now"); id.Served {
		t.Error("a device in standby is called served")
	}
	if id, _ := IdentityOf(run, state, 3, TagOf(state), "now"); !id.Served {
		t.Error("a device that isn't is not")
	}
	// Ours, by the driver's word, but not known: no link, rather than a wrong one.
	if id, err := IdentityOf(run, state, 4, TagOf(state), "now"); id != nil || err == nil {
		t.Errorf("%v, %v", id, err)
	}
}
