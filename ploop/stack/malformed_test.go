package stack

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"holdfast/ploop"
	"holdfast/ploop/image"
	"holdfast/ploop/internal/format"
)

// malformed is one kind of damage and what becomes of it.
type malformed struct {
	name string
	// change damages the image; a stack is made by adding files to dir.
	change func(im *smallImage)
	v1     bool
	sparse int64 // size of the file, without storing it

	open   error    // class of Open's error for writing; nil: it opens
	says   []string // parts of that error
	check  int      // verdict; 1: checkIs
	kinds  []string // of the findings
	after  int      // verdict after repair
	mended bool     // although it says so, since data is lost
	failed error    // class of Check's error, if check is 1
}

var malformedCases = []malformed{
	{name: "empty file", change: func(im *smallImage) { im.b = nil },
		open: image.ErrNotPloop, says: []string{"offset 0", "0 bytes", "at least 64"}, check: 1, failed: image.ErrNotPloop},
	{name: "truncated header", change: func(im *smallImage) { im.b = im.b[:63] },
		open: image.ErrNotPloop, says: []string{"offset 0", "63 bytes", "at least 64"}, check: 1, failed: image.ErrNotPloop},
	{name: "foreign magic", change: func(im *smallImage) { copy(im.b, "QFI\xfb") },
		open: image.ErrNotPloop, says: []string{"offset 0", "magic", "QFI", "WithoutFreeSpace"}, check: 1, failed: image.ErrNotPloop},
	{name: "zeroes", change: func(im *smallImage) { clear(im.b) },
		open: image.ErrNotPloop, says: []string{"offset 0", "magic"}, check: 1, failed: image.ErrNotPloop},
	{name: "type 3", change: func(im *smallImage) { im.put32(16, 3) },
		open: image.ErrCorrupt, says: []string{"offset 16", "type", "found 3", "expected 2"}, check: 2, kinds: []string{ploop.FindingHeader}, after: 2},
	{name: "cluster of 0 sectors", change: func(im *smallImage) { im.put32(28, 0) },
		open: image.ErrCorrupt, says: []string{"offset 28", "0 sectors"}, check: 2, kinds: []string{ploop.FindingHeader}, after: 2},
	{name: "cluster of 2 TiB", change: func(im *smallImage) { im.put32(28, 1<<32-1) },
		open: image.ErrLimit, says: []string{"offset 28", "4294967295", "at most"}, check: 1, failed: image.ErrLimit},
	{name: "four billion BAT entries", change: func(im *smallImage) { im.put32(32, 1<<32-1) }, sparse: 20 << 30,
		open: image.ErrLimit, says: []string{"offset 32", "4294967295", "at most"}, check: 1, failed: image.ErrLimit},
	{name: "BAT longer than the file", change: func(im *smallImage) { im.put32(32, 1<<26); im.put32(48, 1<<24) },
		open: image.ErrCorrupt, says: []string{"end of the file", "at least 268435520"}, check: 2, kinds: []string{ploop.FindingHeader}, after: 2},
	{name: "no BAT entries", change: func(im *smallImage) { im.put32(32, 0) },
		open: image.ErrCorrupt, says: []string{"offset 36", "disk size"}, check: 2, kinds: []string{ploop.FindingHeader}, after: 2},
	{name: "fewer entries than the disk needs", change: func(im *smallImage) { im.put32(32, 39) },
		open: image.ErrCorrupt, says: []string{"offset 36", "320 sectors", "312"}, check: 2, kinds: []string{ploop.FindingHeader}, after: 2},
	{name: "disk of no sectors", change: func(im *smallImage) { im.put64(36, 0) },
		open: image.ErrCorrupt, says: []string{"offset 36", "0 sectors"}, check: 2, kinds: []string{ploop.FindingHeader}, after: 2},
	{name: "disk of 8 ZiB", change: func(im *smallImage) { im.put64(36, 1<<64-1) },
		open: image.ErrCorrupt, says: []string{"offset 36", "18446744073709551615"}, check: 2, kinds: []string{ploop.FindingHeader}, after: 2},
	{name: "v1: high half of the size", v1: true, change: func(im *smallImage) { im.put32(40, 1) },
		open: image.ErrCorrupt, says: []string{"offset 40", "high half", "0x1", "expected 0"}, check: 2, kinds: []string{ploop.FindingHeader}, after: 2},
	{name: "data offset 0", change: func(im *smallImage) { im.put32(48, 0) },
		open: image.ErrCorrupt, says: []string{"offset 48", "data offset"}, check: 2, kinds: []string{ploop.FindingHeader}, after: 2},
	{name: "data offset misaligned", change: func(im *smallImage) { im.put32(48, 9) },
		open: image.ErrCorrupt, says: []string{"offset 48", "sector 9", "8 sectors"}, check: 2, kinds: []string{ploop.FindingHeader}, after: 2},
	{name: "v1: data in the BAT", v1: true, change: func(im *smallImage) { im.put32(48, 1); im.put32(32, 200) },
		open: image.ErrCorrupt, says: []string{"offset 48", "byte 512", "864"}, check: 2, kinds: []string{ploop.FindingHeader}, after: 2},
	{name: "unknown in_use", change: func(im *smallImage) { im.put32(44, 0xdeadbeef) },
		open: image.ErrCorrupt, says: []string{"offset 44", "0xdeadbeef"}, check: 2, kinds: []string{ploop.FindingHeader}, after: 0},
	{name: "in use", change: func(im *smallImage) { im.put32(44, format.InUseDirty) },
		open: image.ErrInUse, says: []string{"offset 44", "not closed cleanly", "repair"}, check: 2, kinds: []string{ploop.FindingInUse}, after: 0},
	{name: "version conversion under way", change: func(im *smallImage) { im.put32(52, format.FlagConverting) },
		open: image.ErrUnsupported, says: []string{"offset 52", "version"}, check: 1, failed: image.ErrUnsupported},

	{name: "entry beyond the file", change: func(im *smallImage) { im.entry(5, 4) },
		open: image.ErrCorrupt, says: []string{"offset 84", "cluster 5", "found 4", "32"}, check: 2, kinds: []string{ploop.FindingBeyondFile}, after: 2, mended: true},
	{name: "entry at the end of the world", change: func(im *smallImage) { im.entry(5, 1<<32-1) },
		open: image.ErrCorrupt, says: []string{"offset 84", "4294967295"}, check: 2, kinds: []string{ploop.FindingBeyondFile}, after: 2, mended: true},
	{name: "v1: entry at the end of the world", v1: true, change: func(im *smallImage) { im.entry(5, 0xfffffff8) },
		open: image.ErrCorrupt, says: []string{"offset 84", "4294967288"}, check: 2, kinds: []string{ploop.FindingBeyondFile}, after: 2, mended: true},
	{name: "file cut in a cluster", change: func(im *smallImage) { im.b = im.b[:len(im.b)-1] },
		open: image.ErrCorrupt, says: []string{"offset 220", "cluster 39"}, check: 2, kinds: []string{ploop.FindingBeyondFile}, after: 2, mended: true},
	{name: "file cut in front of its data", change: func(im *smallImage) { im.b = im.b[:700] },
		open: image.ErrCorrupt, says: []string{"offset 64", "cluster 0"}, check: 2, kinds: []string{ploop.FindingBeyondFile, ploop.FindingBeyondFile, ploop.FindingBeyondFile}, after: 2, mended: true},
	{name: "entry twice", change: func(im *smallImage) { im.entry(5, 2) },
		open: image.ErrCorrupt, says: []string{"offset 92", "cluster 7", "another"}, check: 2, kinds: []string{ploop.FindingDuplicate}, after: 2},
	{name: "v1: entry misaligned", v1: true, change: func(im *smallImage) { im.entry(7, 17) },
		open: image.ErrCorrupt, says: []string{"offset 92", "17", "multiple of 8"}, check: 2, kinds: []string{ploop.FindingMisaligned}, after: 2},
	{name: "v1: entry in the header", v1: true, change: func(im *smallImage) { im.entry(7, 1) },
		open: image.ErrCorrupt, says: []string{"offset 92", "sector 1", "8"}, check: 2, kinds: []string{ploop.FindingBelowData}, after: 2},
	{name: "entry below the data", change: func(im *smallImage) {
		im.put32(48, 16) // the data begins later
		im.b = append(im.b, make([]byte, 4096)...)
	},
		open: image.ErrCorrupt, says: []string{"offset 64", "16"}, check: 2, kinds: []string{ploop.FindingHeader, ploop.FindingLeak}, after: 2},
	{name: "entry beyond the disk", change: func(im *smallImage) { im.put64(36, smallSectors-smallCluster) },
		open: image.ErrCorrupt, says: []string{"offset 220", "cluster 39", "39 clusters"}, check: 2, kinds: []string{ploop.FindingBeyondDisk}, after: 2},
	{name: "leak", change: func(im *smallImage) { im.b = append(im.b, make([]byte, 4096*3+17)...) },
		check: 3, kinds: []string{ploop.FindingLeak}, after: 0},
	{name: "leak in use", change: func(im *smallImage) { im.put32(44, format.InUseDirty); im.b = append(im.b, make([]byte, 4096)...) },
		open: image.ErrInUse, says: []string{"offset 44"}, check: 2, kinds: []string{ploop.FindingInUse, ploop.FindingLeak}, after: 0},
	{name: "beyond the file and twice", change: func(im *smallImage) { im.entry(5, 2); im.entry(6, 99) },
		open: image.ErrCorrupt, says: []string{"offset 88"}, check: 2, kinds: []string{ploop.FindingBeyondFile, ploop.FindingDuplicate}, after: 2},
	{name: "file of 256 PiB", change: func(im *smallImage) { im.put32(28, 1<<21); im.put32(48, 1<<21); im.put64(36, 40<<21) }, sparse: 1 << 58,
		open: image.ErrLimit, says: []string{"file size", "288230376151711744 bytes"}, check: 1, failed: image.ErrLimit},

	{name: "extension outside the file", change: func(im *smallImage) { im.withBitmap(); im.put64(56, 1<<40) },
		check: 2, kinds: []string{ploop.FindingExtension, ploop.FindingLeak}, after: 0},
	{name: "extension in the header", change: func(im *smallImage) { im.withBitmap(); im.put64(56, 1) },
		check: 2, kinds: []string{ploop.FindingExtension, ploop.FindingLeak}, after: 0},
	{name: "extension at 2^64", change: func(im *smallImage) { im.withBitmap(); im.put64(56, 1<<64-1) },
		check: 2, kinds: []string{ploop.FindingExtension, ploop.FindingLeak}, after: 0},
	{name: "extension's magic", change: func(im *smallImage) { im.withBitmap().ext()[0]++; im.sum() },
		check: 2, kinds: []string{ploop.FindingExtension, ploop.FindingLeak}, after: 0},
	{name: "extension's sum", change: func(im *smallImage) { im.withBitmap().ext()[100]++ },
		check: 2, kinds: []string{ploop.FindingExtension, ploop.FindingLeak}, after: 0},
	{name: "extension over data", change: func(im *smallImage) {
		im.withBitmap()
		at := len(im.b) / image.SectorSize / smallCluster
		im.entry(20, uint32(at-1))
	}, check: 2, kinds: []string{ploop.FindingExtension}, after: 0},
	{name: "section larger than the cluster", change: func(im *smallImage) {
		im.withBitmap()
		binary.LittleEndian.PutUint32(im.ext()[format.ExtHeader+16:], 1<<31)
		im.sum()
	}, check: 2, kinds: []string{ploop.FindingExtension, ploop.FindingLeak}, after: 0},
	{name: "bitmap of another disk", change: func(im *smallImage) { im.withBitmap().ext()[format.ExtHeader+format.SectionHeader]++; im.sum() },
		check: 2, kinds: []string{ploop.FindingExtension, ploop.FindingLeak}, after: 0},
	{name: "bitmap without granularity", change: func(im *smallImage) {
		clear(im.withBitmap().ext()[format.ExtHeader+format.SectionHeader+24:][:4])
		im.sum()
	}, check: 2, kinds: []string{ploop.FindingExtension, ploop.FindingLeak}, after: 0},
	{name: "bitmap's L1 too long", change: func(im *smallImage) {
		binary.LittleEndian.PutUint32(im.withBitmap().ext()[format.ExtHeader+format.SectionHeader+28:], 1<<31)
		im.sum()
	}, check: 2, kinds: []string{ploop.FindingExtension, ploop.FindingLeak}, after: 0},
	{name: "bitmap's L1 outside the file", change: func(im *smallImage) {
		binary.LittleEndian.PutUint64(im.withBitmap().ext()[format.ExtHeader+format.SectionHeader+32:], 1<<60)
		im.sum()
	}, check: 2, kinds: []string{ploop.FindingExtension, ploop.FindingLeak}, after: 0},
	{name: "necessary section", change: func(im *smallImage) {
		im.withBitmap(format.Section{Magic: 77, Flags: format.SectionNeeded, Data: []byte("x")})
	},
		open: image.ErrUnsupported, says: []string{"0x4d", "read-only"}, check: 0},
}

func (c *malformed) build(t *testing.T) image.Ref {
	version := 2
	if c.v1 {
		version = 1
	}
	im := newSmallImage(version)
	c.change(im)
	path := filepath.Join(memDir(t), "image")
	if err := os.WriteFile(path, im.b, 0o600); err != nil {
		t.Fatal(err)
	}
	if c.sparse > 0 {
		if err := os.Truncate(path, c.sparse); err != nil {
			t.Skip(err)
		}
	}
	return image.Ref{Path: path}
}

func TestMalformed(t *testing.T) {
	if n := len(malformedCases); n < 30 {
		t.Fatalf("only %d kinds", n)
	}
	for _, c := range malformedCases {
		t.Run(c.name, func(t *testing.T) {
			ref := c.build(t)
			var before []byte
			if c.sparse == 0 {
				before, _ = os.ReadFile(ref.Path)
			}
			bounded(t, func() { c.tryCheck(t, ref) })
			bounded(t, func() { c.tryOpen(t, ref) })
			if c.open != nil && c.sparse == 0 {
				if now, _ := os.ReadFile(ref.Path); !bytes.Equal(before, now) {
					t.Error("a refused image was changed")
				}
			}
			c.tryRepair(t, c.build(t))
		})
	}
}

func (c *malformed) tryOpen(t *testing.T, ref image.Ref) {
	s, err := Open([]image.Ref{ref}, Options{})
	if c.open == nil {
		if err != nil {
			t.Errorf("doesn't open: %v", err)
			return
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		mustCheck(t, ploop.ExitClean, ref)
		return
	}
	if err == nil {
		s.Close()
		t.Error("opens")
		return
	}
	WantLine(t, err, c.open, append(c.says, ref.Path)...)
}

// WantLine wants an error of one line and of a class, with all of the parts.
func WantLine(t *testing.T, err, class error, parts ...string) {
	t.Helper()
	if !errors.Is(err, class) {
		t.Errorf("error is %v, want %v", err, class)
		return
	}
	if strings.Contains(err.Error(), "\n") {
		t.Errorf("error of several lines: %v", err)
	}
	for _, p := range parts {
		if !strings.Contains(err.Error(), p) {
			t.Errorf("error %q doesn't say %q", err, p)
		}
	}
}

func kindsOf(r *ploop.CheckReport) (kinds []string) {
	for _, im := range r.Images {
		for _, f := range im.Findings {
			kinds = append(kinds, f.Kind)
		}
	}
	return kinds
}

func (c *malformed) tryCheck(t *testing.T, ref image.Ref) {
	r, err := ploop.Check([]image.Ref{ref}, ploop.CheckOptions{})
	if c.check == 1 {
		if err == nil {
			t.Errorf("check doesn't fail: %v", kindsOf(r))
			return
		}
		WantLine(t, err, c.failed, append(c.says, ref.Path)...)
		return
	}
	if err != nil {
		t.Errorf("check: %v", err)
		return
	}
	if r.ExitCode() != c.check || !slices.Equal(kindsOf(r), c.kinds) {
		t.Errorf("check says %d, %v, want %d, %v", r.ExitCode(), kindsOf(r), c.check, c.kinds)
	}
	if _, err := json.Marshal(r); err != nil {
		t.Error(err)
	}
	for _, im := range r.Images {
		for _, f := range im.Findings {
			if f.File != ref.Path || !strings.Contains(f.Message, ref.Path) || strings.Contains(f.Message, "\n") {
				t.Errorf("finding %+v", f)
			}
		}
	}
}

func (c *malformed) tryRepair(t *testing.T, ref image.Ref) {
	if c.check <= 1 {
		return
	}
	before, _ := os.ReadFile(ref.Path)
	r, err := ploop.Check([]image.Ref{ref}, ploop.CheckOptions{Repair: true})
	if err != nil {
		t.Errorf("repair: %v", err)
		return
	}
	if r.ExitCode() != c.after {
		t.Errorf("repair says %d, want %d", r.ExitCode(), c.after)
	}
	if c.after != ploop.ExitClean && !c.mended {
		if now, _ := os.ReadFile(ref.Path); !bytes.Equal(now, before) {
			t.Error("what can't be repaired was changed")
		}
		return
	}
	mustCheck(t, ploop.ExitClean, ref)
	s, err := Open([]image.Ref{ref}, Options{})
	if err != nil {
		t.Errorf("doesn't open after repair: %v", err)
		return
	}
	// What wasn't damaged is still there.
	p := make([]byte, image.SectorSize)
	if _, err := s.ReadAt(p, 0); err != nil || p[0] > 1 {
		t.Errorf("reads %d, %v", p[0], err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// bounded wants f to take little memory and time, whatever the image says.
func bounded(t *testing.T, f func()) {
	t.Helper()
	var a, b runtime.MemStats
	runtime.ReadMemStats(&a)
	start := time.Now()
	f()
	runtime.ReadMemStats(&b)
	if n := b.TotalAlloc - a.TotalAlloc; n > 80<<20 {
		t.Errorf("took %d MiB", n>>20)
	}
	if d := time.Since(start); d > 10*time.Second {
		t.Errorf("took %v", d)
	}
}
