package sysfs

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// testTree is a tree of all kinds of entries. names are its devices.
func testTree(names func() []string) (root *Dir, value *string) {
	value = new(string)
	*value = "off"
	device := func(name string) Entry {
		return &Dir{Name: name, Entries: []Entry{
			&Attr{Name: "name", Mode: 0o444, Show: func() (string, error) { return name, nil }},
			&Dir{Name: "queue", Entries: []Entry{&Attr{Name: "standby", Mode: 0o644,
				Show: func() (string, error) { return *value, nil },
				Store: func(v string) error {
					if v != "on" && v != "off" {
						return fmt.Errorf("%q is neither on nor off", v)
					}
					*value = v
					return nil
				}}}},
		}}
	}
	more := func() (all []Entry) {
		for i, name := range names() {
			all = append(all, device(name), &Link{Name: fmt.Sprint("ublkb", i), Target: name})
		}
		return all
	}
	return &Dir{Entries: []Entry{
		&Dir{Name: "module", Entries: []Entry{
			&Attr{Name: "broken", Mode: 0o644,
				Show:  func() (string, error) { return "", fmt.Errorf("looking: %w", unix.ENODEV) },
				Store: func(string) error { return fmt.Errorf("changing: %w", unix.EBUSY) }},
			&Attr{Name: "plain", Mode: 0o444, Show: func() (string, error) { return "", errors.New("no number") }},
			&Attr{Name: "secret", Mode: 0o200, Store: func(string) error { return nil }},
			&Attr{Name: "empty", Mode: 0o644, Show: func() (string, error) { return "", nil }}, // no Store
			&Link{Name: "round", Target: "round"},
			&Link{Name: "up", Target: "../block/./ublkb0/queue/"},
			&Link{Name: "out", Target: "../../etc"},
			&Link{Name: "absolute", Target: "/module"},
		}},
		&Dir{Name: "block", More: more},
	}}, value
}

func TestPaths(t *testing.T) {
	names := []string{"v1", "v2"}
	root, value := testTree(func() []string { return names })
	for _, c := range []struct {
		path, want string
		errno      unix.Errno
	}{
		{"block/v1/name", "v1", 0},
		{"/block/v1/name", "v1", 0},
		{"//block/.//v1/../v2/name", "v2", 0},
		{"block/ublkb1/name", "v2", 0},
		{"module/up/standby", "off", 0},
		{"module/empty", "", 0},
		{"module/broken", "", unix.ENODEV},
		{"module/plain", "", unix.EIO},
		{"module/secret", "", unix.EACCES},
		{"module/round", "", unix.ELOOP},
		{"module/out", "", unix.ENOENT},
		{"module/absolute", "", unix.ENOENT},
		{"module", "", unix.EISDIR},
		{"", "", unix.EISDIR},
		{"..", "", unix.ENOENT},
		{"block/../../block/v1/name", "", unix.ENOENT},
		{"block/v1/name/", "", unix.ENOTDIR},
		{"block/v1/name/.", "", unix.ENOTDIR},
		{"block/v1/name/x", "", unix.ENOTDIR},
		{"block/v3/name", "", unix.ENOENT},
		{"block/v1\x00/name", "", unix.ENOENT},
	} {
		got, err := root.Read(c.path)
		if Errno(err, false) != c.errno || got != c.want {
			t.Errorf("Read(%q): %q, %v; want %q, %v", c.path, got, err, c.want, c.errno)
		}
		var pathError *fs.PathError
		if err != nil && (!errors.As(err, &pathError) || pathError.Path != c.path) {
			t.Errorf("Read(%q): %v doesn't say the path", c.path, err)
		}
	}
	for _, c := range []struct {
		path, value string
		errno       unix.Errno
		after       string
	}{
		{"block/v1/queue/standby", "on", 0, "on"},
		{"block/v1/queue/standby", "off\n", 0, "off"},
		{"block/v1/queue/standby", "on\n\n", unix.EINVAL, "off"},
		{"block/v1/queue/standby", "maybe", unix.EINVAL, "off"},
		{"block/v1/queue/standby", strings.Repeat("x", MaxValue+1), unix.E2BIG, "off"},
		{"block/v1/queue/standby", strings.Repeat("x", MaxValue), unix.EINVAL, "off"},
		{"block/v1/name", "v2", unix.EACCES, "off"},
		{"module/empty", "x", unix.EACCES, "off"},
		{"module/broken", "x", unix.EBUSY, "off"},
		{"block", "x", unix.EISDIR, "off"},
		{"nothing", "x", unix.ENOENT, "off"},
	} {
		if err := root.Write(c.path, c.value); Errno(err, true) != c.errno || *value != c.after {
			t.Errorf("Write(%q, %.10q): %v, and the value is %q; want %v, %q", c.path, c.value, err, *value, c.errno, c.after)
		}
	}
	if _, err := root.Lookup("block/v3"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Lookup of nothing: %v", err)
	}
	if e, err := root.Lookup("block/ublkb0"); err != nil || e.Info().Name != "v1" || !e.Info().IsDir() {
		t.Errorf("Lookup follows no link: %v, %v", e, err)
	}
	names = []string{"v2"}
	if _, err := root.Read("block/v1/name"); Errno(err, false) != unix.ENOENT {
		t.Errorf("reading what is gone: %v", err)
	}
	if got, err := root.Read("block/ublkb0/name"); got != "v2" {
		t.Errorf("the link leads to %q, %v", got, err)
	}
}

func TestList(t *testing.T) {
	root, _ := testTree(func() []string { return []string{"v1", "a/b", "", "..", "v1", "ublkb0"} })
	show := func(path string) string {
		infos, err := root.List(path)
		if err != nil {
			return Errno(err, false).Error()
		}
		var all []string
		for _, i := range infos {
			s := fmt.Sprintf("%s %o", i.Name, i.Mode)
			if i.Target != "" {
				s += " " + i.Target
			}
			all = append(all, s)
		}
		return strings.Join(all, ", ")
	}
	for path, want := range map[string]string{
		"": "module 40555, block 40555",
		// The name that is there twice is so once.
		"block":         "v1 40555, ublkb0 120777 v1, ublkb1 120777 a/b, ublkb2 120777, ublkb3 120777 .., ublkb4 120777 v1, ublkb5 120777 ublkb0",
		"block/v1":      "name 100444, queue 40555",
		"block/v1/name": "name 100444",
		"module/up":     "standby 100644",
		"module":        "broken 100644, plain 100444, secret 100200, empty 100444, round 120777 round, up 120777 ../block/./ublkb0/queue/, out 120777 ../../etc, absolute 120777 /module",
		"nothing":       unix.ENOENT.Error(),
		"module/round":  unix.ELOOP.Error(),
	} {
		if got := show(path); got != want {
			t.Errorf("List(%q):\n%s, want\n%s", path, got, want)
		}
	}
}

// TestOne sees that a directory asks for one entry where it can.
func TestOne(t *testing.T) {
	asked := ""
	d := &Dir{
		More: func() []Entry { t.Error("all were made for one"); return nil },
		One: func(name string) Entry {
			if asked = name; name == "gone" {
				return nil
			}
			return &Attr{Name: name, Mode: 0o444, Show: func() (string, error) { return "it", nil }}
		}}
	if got, err := d.Read("x"); got != "it" || asked != "x" {
		t.Errorf("%q, %v, asked for %q", got, err, asked)
	}
	if _, err := d.Read("gone"); Errno(err, false) != unix.ENOENT {
		t.Errorf("%v, want ENOENT", err)
	}
}

// TestConcurrent walks a tree that changes, for the race detector.
func TestConcurrent(t *testing.T) {
	var mu sync.Mutex
	names := []string{"v1"}
	root, _ := testTree(func() []string { mu.Lock(); defer mu.Unlock(); return append([]string(nil), names...) })
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for i := range 500 {
				mu.Lock()
				names = names[:0]
				if i%2 == 0 {
					names = append(names, "v1", "v2")
				}
				mu.Unlock()
				if got, err := root.Read("block/v2/name"); err == nil && got != "v2" || err != nil && Errno(err, false) != unix.ENOENT {
					t.Errorf("%q, %v", got, err)
				}
				if _, err := root.List("block"); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

// FuzzPath walks any path: it ends, its answer is one of the known ones, and
// what can be looked up can be read or listed.
func FuzzPath(f *testing.F) {
	for _, p := range []string{"block/v1/queue/standby", "/module/up/../..", "module/round", "a//b/./..", "module/out/passwd", "\x00", "block/ublkb0/../v2/name/"} {
		f.Add(p)
	}
	root, value := testTree(func() []string { return []string{"v1", "v2"} })
	f.Fuzz(func(t *testing.T, path string) {
		e, err := root.Lookup(path)
		infos, listErr := root.List(path)
		_, readErr := root.Read(path)
		switch Errno(err, false) {
		case 0:
		case unix.ENOENT, unix.ENOTDIR, unix.ELOOP:
			if listErr == nil || readErr == nil {
				t.Fatalf("%q isn't there (%v), but can be read", path, err)
			}
			return
		default:
			t.Fatalf("%q: %v", path, err)
		}
		if listErr != nil {
			t.Fatal(listErr)
		}
		switch e := e.(type) {
		case *Dir:
			if Errno(readErr, false) != unix.EISDIR {
				t.Fatalf("reading a directory: %v", readErr)
			}
			for _, i := range infos {
				if e.Entry(i.Name) == nil {
					t.Fatalf("%q in %q is listed, and not there", i.Name, path)
				}
			}
		case *Attr:
			before := *value
			if err := root.Write(path, "neither"); err == nil && e.Name != "secret" || *value != before {
				t.Fatalf("a wrong value went into %q", path)
			}
		default:
			t.Fatalf("%q is a %T", path, e)
		}
	})
}
