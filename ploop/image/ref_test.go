package image

import (
	"encoding/json"
	"reflect"
	"testing"
	"time"
)

func TestParseRef(t *testing.T) {
	for s, want := range map[string]Ref{
		"/a":         {Path: "/a"},
		"raw@/a":     {Path: "/a", Raw: true},
		"raw@raw@/a": {Path: "raw@/a", Raw: true},
		"RAW@/a":     {Path: "RAW@/a"},
	} {
		r, err := ParseRef(s)
		if err != nil || r != want {
			t.Errorf("ParseRef(%q) = %+v, %v, want %+v", s, r, err, want)
		}
		if r.String() != s {
			t.Errorf("%+v is written %q, want %q", r, r.String(), s)
		}
	}
	for _, s := range []string{"", "raw@"} {
		if r, err := ParseRef(s); err == nil {
			t.Errorf("ParseRef(%q) = %+v, want an error", s, r)
		}
	}
}

// Records of running devices contain evidence: its form in JSON is a contract.
func TestEvidenceJSON(t *testing.T) {
	const form = `{"mount":{"boot":"b","since":1,"super":2,"id":3,"type":"ext4","source":"/dev/vda","scope":"host","node":4,"disk":5},` +
		`"inode":6,"device":7,"birth":"2026-01-02T03:04:05Z","size":8,"head":"00","index":[[9,10]],"sectors":[[11,12]],"written":true}`
	want := Evidence{
		Mount: Mount{Boot: "b", Since: 1, Super: 2, ID: 3, Type: "ext4", Source: "/dev/vda", Scope: ScopeHost, Node: 4, Disk: 5},
		Inode: 6, Device: 7, Birth: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Size: 8, Head: "00",
		Index: [][2]uint64{{9, 10}}, Sectors: [][2]uint64{{11, 12}}, Written: true,
	}
	var e Evidence
	if err := json.Unmarshal([]byte(form), &e); err != nil || !reflect.DeepEqual(e, want) {
		t.Fatalf("%+v, %v, want %+v", e, err, want)
	}
	if b, err := json.Marshal(e); err != nil || string(b) != form {
		t.Fatalf("%s, %v, want %s", b, err, form)
	}
}
