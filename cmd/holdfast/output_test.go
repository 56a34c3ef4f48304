package main

import (
	"bytes"
	"math"
	"strings"
	"testing"
	"time"

	"holdfast/api"
	"holdfast/ploop"
)

func TestParseSize(t *testing.T) {
	for s, want := range map[string]int64{
		"0": 0, "1": 1, "4096": 4096, "512B": 512, "1K": 1 << 10, "1k": 1 << 10, "512M": 512 << 20, "10G": 10 << 30, "1T": 1 << 40,
		"2P": 2 << 50, "7E": 7 << 60, "10GiB": 10 << 30, "10gib": 10 << 30, "007M": 7 << 20, "9223372036854775807": math.MaxInt64,
	} {
		if got, err := parseSize(s); err != nil || got != want {
			t.Errorf("%q: %d, %v", s, got, err)
		}
	}
	for _, s := range []string{"", "G", "-1", "+1", "1.5G", "1 G", "10GB", "10X", "1KK", "0x10", "1e3", "iB", "1iB", "8E", "9223372036854775808",
		"99999999999999999999", "16777216T", "١G", "1G\n"} {
		if got, err := parseSize(s); err == nil {
			t.Errorf("%q: %d", s, got)
		}
	}
}

func TestFormatSize(t *testing.T) {
	for n, want := range map[int64]string{
		0: "0B", 512: "512B", 1023: "1023B", 1024: "1K", 1536: "1.5K", 10 << 30: "10G", 1 << 40: "1T", 1<<40 + 1<<39: "1.5T", math.MaxInt64: "8E",
		1<<20 - 1: "1024K",
	} {
		if got := formatSize(n); got != want {
			t.Errorf("%d: %s, want %s", n, got, want)
		}
	}
}

func FuzzParseSize(f *testing.F) {
	f.Add("10G")
	f.Add("1iB")
	f.Fuzz(func(t *testing.T, s string) {
		if n, err := parseSize(s); err == nil && n < 0 {
			t.Errorf("%q is %d", s, n)
		}
	})
}

func TestQuote(t *testing.T) {
	for s, want := range map[string]string{
		"/srv/a.hds": "/srv/a.hds", "": `""`, "a b": `"a b"`, "a\nb": `"a\nb"`, "\x1b[2J": `"\x1b[2J"`, `a"b`: `"a\"b"`, `a\b`: `"a\\b"`,
		"\xff": `"\xff"`, "é": "é", "\u202e": `"\u202e"`,
	} {
		if got := quote(s); got != want {
			t.Errorf("%q: %s, want %s", s, got, want)
		}
	}
}

func TestOneLine(t *testing.T) {
	for s, want := range map[string]string{
		"plain": "plain", "two\nlines\n": "two; lines", "\x1b[31mred": `\x1b[31mred`, "\xff": `\xff`, "tab\there": `tab\there`, "'q'": "'q'",
		" \xffx": `\xffx`,
	} {
		if got := oneLine(s); got != want {
			t.Errorf("%q: %s, want %s", s, got, want)
		}
	}
}

func TestTable(t *testing.T) {
	var b bytes.Buffer
	err := table(&b, []column{{title: "NAME"}, {title: "SIZE", right: true}, {title: "LAST"}}, [][]string{{"é", "1G", ""}, {"longer", "512M", "x"}}, true)
	want := "NAME   SIZE LAST\né        1G -\nlonger 512M x\n"
	if err != nil || b.String() != want {
		t.Errorf("got\n%swant\n%s", &b, want)
	}
	b.Reset()
	err = table(&b, []column{{title: "LONG TITLE"}, {title: "N", right: true}}, [][]string{{"a", "1"}, {"bc", "10"}}, false)
	if want = "a   1\nbc 10\n"; err != nil || b.String() != want {
		t.Errorf("got\n%swant\n%s", &b, want)
	}
}

func TestDeviceTree(t *testing.T) {
	d := &api.Device{
		Status: api.Status{Name: "vol", ID: 3, Path: "/dev/ublkb3", Size: 10 << 30, ClusterSize: 1 << 20, Clusters: 10240, Allocated: 12,
			State: "parked", Queues: 1, Depth: 64, DataPath: "copy",
			Images:   []ploop.ImageStatus{{Path: "/srv/base", Format: "raw", Direct: true, Locked: true}, {Path: "/srv/a\nb", Format: "ploop2", Level: 1}},
			Counters: api.Counters{Reads: 1, ReadBytes: 4096, Writes: 2, WriteBytes: 1 << 20, Parked: 1},
		},
		Created: time.Now(),
		Users:   []api.User{{Kind: "mount", Device: "ublkb3", Name: "/mnt"}},
		Problem: "no\nspace",
		Advice:  "make some",
		Events:  []api.Event{{Time: time.Now(), Kind: "parked", Message: "a\x1bb"}},
	}
	var b bytes.Buffer
	if err := deviceTree(d).print(&b); err != nil {
		t.Fatal(err)
	}
	out := b.String()
	for _, want := range []string{
		"vol  /dev/ublkb3  10G  parked\n",
		"├─ problem: no; space\n│  └─ make some\n",
		`│  ├─ 1  "/srv/a\nb"  ploop2  buffered  not locked (its file system has no locks)  12 of 10240 clusters of 1M` + "\n│  └─ 0  /srv/base  raw  direct\n",
		"├─ 1 queue, depth 64, data path copy\n",
		"1 read, 4K\n", "2 writes, 1M\n", "1 parked",
		"└─ mounted on /mnt\n",
		`a\x1bb` + "\n",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is not in\n%s", want, out)
		}
	}
	lost := &api.Device{Status: api.Status{Name: "vol", ID: -1, State: api.StateLost, Images: []ploop.ImageStatus{{Path: "/a"}}}, Problem: "p", Advice: "a"}
	b.Reset()
	deviceTree(lost).print(&b)
	if out := b.String(); strings.Contains(out, "queue") || strings.Contains(out, "buffered") || !strings.Contains(out, "vol  lost") {
		t.Errorf("%s", out)
	}
}

// TestHungTree: how old requests are, and that a file is not at its path, is shown beside what
// it is about.
func TestHungTree(t *testing.T) {
	level, off := 0, int64(512)
	d := &api.Device{Status: api.Status{Name: "vol", Path: "/dev/ublkb3", State: api.StateHung,
		Images:    []ploop.ImageStatus{{Path: "/srv/a", Format: "ploop2"}},
		Oldest:    &api.OldestRequest{Seconds: 75, At: api.AtTransfer, Op: "read", File: "/srv/a", Level: &level, FileOffset: &off},
		Displaced: []api.Displaced{{Path: "/srv/a", How: api.PathGone}},
		Counters:  api.Counters{InFlight: 3, Parked: 2, ParkedSeconds: 61},
		Standby:   api.StandbyStatus{Held: 1, HeldSeconds: 5, Stuck: 4, StuckSeconds: 3600},
	}}
	var b bytes.Buffer
	if err := deviceTree(d).print(&b); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"3 in flight, the oldest under way for 1m15s, 2 parked for want of space, the oldest for 1m1s", "1 of 0 requests held, the oldest for 5s", "4 requests have not come back from replaced files, the oldest for 1h0m0s", "deleted or renamed"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("%q is not in\n%s", want, &b)
		}
	}
	if s := stateOf(d); s != "hung:1m15s" {
		t.Errorf("%s", s)
	}
}
