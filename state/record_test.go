package state

import (
	"bytes"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/api"
	"holdfast/ploop/image"
)

func sampleRecord(name string) *Record {
	return &Record{
		Spec: api.Spec{Name: name, Depth: 64, Images: []image.Ref{{Path: "/srv/base <&>\u2028.raw", Raw: true}, {Path: "/srv/" + name}}},
		ID:   7, BootID: "boot", PID: 42, Created: time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC),
		Images: []ImageID{{1, 2}, {1<<64 - 1, 1<<64 - 1}},
	}
}

func saved(t *testing.T, names ...string) (Records, map[string][]byte) {
	t.Helper()
	r := Records{Dir: t.TempDir()}
	data := map[string][]byte{}
	for _, n := range names {
		if err := r.Save(sampleRecord(n)); err != nil {
			t.Fatal(err)
		}
		var err error
		if data[n], err = os.ReadFile(r.Path(n)); err != nil {
			t.Fatal(err)
		}
	}
	return r, data
}

func TestRecordRoundTrip(t *testing.T) {
	r, _ := saved(t, "b", "a")
	if err := r.Save(sampleRecord("a")); err != nil { // over an old one
		t.Fatal(err)
	}
	recs, problems, err := r.Load()
	for _, rec := range recs {
		if rec.Serial != 1 {
			t.Errorf("%s: saved %d times", rec.Spec.Name, rec.Serial)
		}
		rec.Serial = 0
	}
	if err != nil || len(problems) != 0 || !reflect.DeepEqual(recs, []*Record{sampleRecord("a"), sampleRecord("b")}) {
		t.Fatalf("%+v, %v, %v", recs, problems, err)
	}
	for range 2 { // the second time there is nothing to remove
		if err := r.Remove("a"); err != nil {
			t.Fatal(err)
		}
	}
	if recs, _, _ = r.Load(); len(recs) != 1 || recs[0].Spec.Name != "b" {
		t.Errorf("%+v", recs)
	}
	if entries, _ := os.ReadDir(r.Dir); len(entries) != 1 {
		t.Errorf("left behind: %v", entries)
	}
	if fi, _ := os.Stat(r.Path("b")); fi.Mode().Perm() != 0o600 {
		t.Errorf("mode %v", fi.Mode())
	}
}

func TestRecordDamage(t *testing.T) {
	damage := map[string]func(path string, good []byte) error{
		"empty":   func(p string, _ []byte) error { return os.WriteFile(p, nil, 0o600) },
		"zeroes":  func(p string, b []byte) error { return os.WriteFile(p, make([]byte, len(b)), 0o600) },
		"cut off": func(p string, b []byte) error { return os.WriteFile(p, b[:len(b)/2], 0o600) },
		"one letter": func(p string, b []byte) error {
			return os.WriteFile(p, bytes.Replace(b, []byte("/srv/v"), []byte("/srv/w"), 1), 0o600)
		},
		"number": func(p string, b []byte) error {
			return os.WriteFile(p, bytes.Replace(b, []byte(`"id": 7`), []byte(`"id": 8`), 1), 0o600)
		},
		"version": func(p string, b []byte) error {
			return os.WriteFile(p, bytes.Replace(b, []byte(`"version": 1`), []byte(`"version": 9`), 1), 0o600)
		},
		"other name": func(p string, b []byte) error { return os.Rename(p, filepath.Join(filepath.Dir(p), "x.json")) },
		"null":       func(p string, _ []byte) error { return os.WriteFile(p, []byte("null"), 0o600) },
		"nothing in it": func(p string, _ []byte) error {
			return os.WriteFile(p, []byte(`{"version":1,"crc32c":"00000000"}`), 0o600)
		},
		"huge": func(p string, _ []byte) error {
			if err := os.WriteFile(p, nil, 0o600); err != nil {
				return err
			}
			return os.Truncate(p, 1<<40)
		},
		"directory": func(p string, _ []byte) error { os.Remove(p); return os.Mkdir(p, 0o700) },
		"fifo":      func(p string, _ []byte) error { os.Remove(p); return unix.Mkfifo(p, 0o600) },
		"symlink":   func(p string, _ []byte) error { os.Remove(p); return os.Symlink("/dev/zero", p) },
	}
	for name, f := range damage {
		t.Run(name, func(t *testing.T) {
			r, data := saved(t, "good", "v")
			if err := f(r.Path("v"), data["v"]); err != nil {
				t.Fatal(err)
			}
			recs, problems, err := r.Load()
			if err != nil || len(recs) != 1 || recs[0].Spec.Name != "good" || len(problems) != 1 {
				t.Fatalf("records %+v, problems %+v, %v", recs, problems, err)
			}
			p := problems[0]
			if _, err := os.Lstat(p.File); err != nil || !strings.HasSuffix(p.File, DamagedSuffix) || p.Reason == "" {
				t.Errorf("%+v, %v", p, err)
			}
			// Its name is free again, and the next start still tells of it.
			if err := r.Save(sampleRecord("v")); err != nil {
				t.Fatal(err)
			}
			recs, problems, _ = r.Load()
			if len(recs) != 2 || len(problems) != 1 || problems[0].File != p.File {
				t.Errorf("records %+v, problems %+v", recs, problems)
			}
		})
	}
}

func TestRecordDamagedTwice(t *testing.T) {
	r, _ := saved(t)
	for range 3 {
		if err := os.WriteFile(r.Path("v"), []byte("{"), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, _, err := r.Load(); err != nil {
			t.Fatal(err)
		}
	}
	if _, problems, _ := r.Load(); len(problems) != 3 {
		t.Errorf("%+v", problems)
	}
}

func TestRecordCutOffSave(t *testing.T) {
	r, data := saved(t, "v")
	temp := filepath.Join(r.Dir, ".v.json123456")
	if err := os.WriteFile(temp, data["v"][:10], 0o600); err != nil {
		t.Fatal(err)
	}
	recs, problems, err := r.Load()
	if len(recs) != 1 || len(problems) != 0 || err != nil {
		t.Errorf("%+v, %+v, %v", recs, problems, err)
	}
	if _, err := os.Lstat(temp); err == nil {
		t.Error("the temporary file is still there")
	}
}

// TestRecordEveryByte: no damage of one byte goes unnoticed.
func TestRecordEveryByte(t *testing.T) {
	_, data := saved(t, "v")
	good, err := parseRecord(data["v"])
	if err != nil {
		t.Fatal(err)
	}
	for i := range data["v"] {
		for _, x := range []byte{1, 0x20, 0x80, 0xff} {
			b := bytes.Clone(data["v"])
			b[i] ^= x
			if got, err := parseRecord(b); err == nil && !reflect.DeepEqual(got, good) {
				t.Errorf("byte %d ^ %#x: %q passes as %+v", i, x, b[i], got)
			}
		}
		if _, err := parseRecord(data["v"][:i]); err == nil && i < len(data["v"])-1 {
			t.Errorf("cut off at %d of %d: no error", i, len(data["v"]))
		}
	}
}

func FuzzParseRecord(f *testing.F) {
	r := Records{Dir: f.TempDir()}
	if err := r.Save(sampleRecord("v")); err != nil {
		f.Fatal(err)
	}
	data, err := os.ReadFile(r.Path("v"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add([]byte(`{"version":1,"crc32c":"8c0c3e5a","device":{}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		rec, err := parseRecord(data)
		if err == nil && (rec.Spec.Validate() != nil || len(rec.Images) != len(rec.Spec.Images)) {
			t.Errorf("passes: %+v", rec)
		}
	})
}
