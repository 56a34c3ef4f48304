package state

import (
	"encoding/json"
	"strings"
	"testing"
	"time"
)

// A mark is of its state directory, and of one device of one creation.
func TestTag(t *testing.T) {
	now := time.Now().UTC()
	tag := NewTag("/var/lib/holdfast", "vm1", now)
	for _, c := range []struct {
		tag Tag
		of  bool
	}{{tag, true}, {OldTag("/var/lib/holdfast"), true}, {NewTag("/var/lib/holdfast-b", "vm1", now), false}, {OldTag("/var/lib/holdfast-b"), false}, {0, false}, {tag | 1<<63, false}} {
		if got := c.tag.Of("/var/lib/holdfast"); got != c.of {
			t.Errorf("%x is ours: %t", uint64(c.tag), got)
		}
	}
	for _, other := range []Tag{NewTag("/var/lib/holdfast", "vm2", now), NewTag("/var/lib/holdfast", "vm1", now.Add(1)), OldTag("/var/lib/holdfast")} {
		if other == tag {
			t.Errorf("%x is another device's as well", uint64(tag))
		}
	}
	if tag>>48 != 'h'<<8|'f' {
		t.Errorf("%x", uint64(tag))
	}
}

// A record keeps its mark, and one without has the old one.
func TestRecordsTag(t *testing.T) {
	rec := Record{ID: 3, Tag: NewTag("/s", "v", time.Now())}
	b, err := json.Marshal(&rec)
	if err != nil {
		t.Fatal(err)
	}
	var again Record
	if err := json.Unmarshal(b, &again); err != nil || again.Disk("/s") != (Disk{3, rec.Tag}) {
		t.Errorf("%s: %+v, %v", b, again.Disk("/s"), err)
	}
	b, err = json.Marshal(&Record{ID: 3})
	if err != nil || strings.Contains(string(b), "tag") {
		t.Errorf("%s, %v", b, err)
	}
	var old Record
	if err := json.Unmarshal(b, &old); err != nil || old.Disk("/s") != (Disk{3, OldTag("/s")}) {
		t.Errorf("%+v, %v", old.Disk("/s"), err)
	}
	if err := json.Unmarshal([]byte(`{"tag":"what"}`), &old); err == nil {
		t.Error("no error")
	}
}
