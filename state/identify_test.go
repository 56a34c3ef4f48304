package state

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"holdfast/api"
	"holdfast/ploop/image"
)

func TestIdentify(t *testing.T) {
	dir := t.TempDir()
	run, state := filepath.Join(dir, "run"), filepath.Join(dir, "lib")
	tags := map[string]Tag{}
	put := func(at, dir, name string, number int, boot string) {
		t.Helper()
		r := Records{Dir: filepath.Join(at, "devices")}
		if err := os.MkdirAll(r.Dir, 0o700); err != nil {
			t.Fatal(err)
		}
		spec := api.Spec{Name: name, Images: []image.Ref{{Path: "/i"}}}
		rec := &Record{Spec: spec, ID: number, BootID: boot, Created: time.Now(), Images: make([]ImageID, 1)}
		if name != "old mark" {
			rec.Tag = NewTag(dir, name, rec.Created)
		} else {
			rec.Spec.Name = "unmarked"
		}
		tags[name] = rec.Disk(dir).Tag
		if name == "holds" {
			rec.Standby = &Standby{Cause: "gone"}
		}
		if err := r.Save(rec); err != nil {
			t.Fatal(err)
		}
	}
	put(state, state, "old", 3, "before")
	put(state, state, "lost", 3, "now") // its number is another one's by now
	put(state, state, "new", 3, "now")
	put(state, state, "holds", 5, "now")
	put(state, state, "old mark", 7, "now")
	other := state + "-other"
	put(run+"-other", other, "its", 3, "now") // the state directory of this one can't be read
	if err := os.MkdirAll(other, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		tag    Tag
		number int
		link   string
	}{
		{tags["holds"], 5, "holdfast/holds"},
		{tags["new"], 3, "holdfast/new"},
		{tags["its"], 3, "holdfast-other/its"},
		{OldTag(state), 7, "holdfast/unmarked"},
		{NewTag("/elsewhere", "new", time.Now()), 3, ""},
		{OldTag("/elsewhere"), 7, ""},
		{0, 3, ""},
	} {
		id, err := IdentityOf(run, state, Disk{c.number, c.tag}, "now")
		if err != nil || id == nil != (c.link == "") || id != nil && id.Link() != c.link {
			t.Errorf("tag %016x: %v, %v, want %q", uint64(c.tag), id, err, c.link)
		}
	}
	identityOf := func(number int, tag Tag) (*Identity, error) {
		return IdentityOf(run, state, Disk{number, tag}, "now")
	}
	// A look at what is on it would wait.
	if id, _ := identityOf(5, tags["holds"]); id.Served {
		t.Error("a device in standby is called served")
	}
	if id, _ := identityOf(3, tags["new"]); !id.Served {
		t.Error("a device that isn't is not")
	}
	// Ours, by the driver's word, but not known: no link, rather than a wrong one.
	for number, tag := range map[int]Tag{4: tags["new"], 3: OldTag(state), 7: NewTag(state, "unmarked", time.Now()), 5: NewTag(state, "holds", time.Now())} {
		if id, err := identityOf(number, tag); id != nil || err == nil {
			t.Errorf("number %d with tag %016x: %v, %v", number, uint64(tag), id, err)
		}
	}
}
