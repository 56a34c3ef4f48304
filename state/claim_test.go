package state

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// someFile makes a file, and gives what a device that wants it says.
func someFile(t *testing.T, dir, name string, write bool) ClaimedFile {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return ClaimedFile{path, FileIDOf(&st), write}
}

func forReading(f ClaimedFile) ClaimedFile { f.Write = false; return f }

func claimFiles(t *testing.T, run string) int {
	t.Helper()
	entries, err := os.ReadDir(Run(run).Claims())
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return len(entries)
}

// TestClaims: who writes a file has it alone, who read it have it together, by whatever path.
func TestClaims(t *testing.T) {
	run, images := t.TempDir(), t.TempDir()
	base, top := someFile(t, images, "base", false), someFile(t, images, "top", true)
	a, b := NewClaims(run, "a"), NewClaims(run, "b")
	defer a.Close()
	defer b.Close()
	if err := a.Add([]ClaimedFile{base, top}); err != nil {
		t.Fatal(err)
	}
	alias := forReading(top)
	alias.Path = filepath.Join(images, "alias")
	if err := os.Link(top.Path, alias.Path); err != nil {
		t.Fatal(err)
	}
	err := b.Add([]ClaimedFile{base, alias})
	var refused *ClaimError
	if !errors.Is(err, ErrClaimed) || !errors.As(err, &refused) || refused.Owner != "a" || err.Error() != fmt.Sprintf("image %q belongs to device \"a\"", alias.Path) {
		t.Fatalf("reads what another writes: %v", err)
	}
	if len(b.held) != 0 {
		t.Errorf("of a set that was refused, %d files are claimed", len(b.held))
	}
	write := base
	write.Write = true
	if err := b.Add([]ClaimedFile{write}); !errors.Is(err, ErrClaimed) {
		t.Fatalf("writes what another reads: %v", err)
	}
	if err := b.Add([]ClaimedFile{base}); err != nil {
		t.Fatal(err)
	}
	if err := a.Add([]ClaimedFile{write}); !errors.Is(err, ErrClaimed) || !strings.Contains(err.Error(), `device "b"`) {
		t.Fatalf("a reader among others becomes a writer: %v", err)
	}
	b.Close()
	if err := a.Add([]ClaimedFile{write}); err != nil {
		t.Fatalf("the only reader becomes the writer: %v", err)
	}
	if err := b.Add([]ClaimedFile{base}); !errors.Is(err, ErrClaimed) {
		t.Fatalf("reads what another writes by now: %v", err)
	}
	a.Drop([]ClaimedFile{write})
	if err := b.Add([]ClaimedFile{base}); err != nil {
		t.Fatalf("the writer is a reader again: %v", err)
	}
	if name, ok := Owner(run, top.ID); !ok || name != "a" {
		t.Errorf("owner of a file: %q, %v", name, ok)
	}
	a.Close()
	b.Close()
	if name, ok := Owner(run, top.ID); ok {
		t.Errorf("owner of a file that nobody has: %q", name)
	}
	if n := claimFiles(t, run); n != 0 {
		t.Errorf("%d files are left of claims that nobody has", n)
	}
}

// TestClaimsReplace: a file that is replaced by itself under another path stays claimed.
func TestClaimsReplace(t *testing.T) {
	run := t.TempDir()
	top := someFile(t, t.TempDir(), "top", true)
	a, b := NewClaims(run, "a"), NewClaims(run, "b")
	defer a.Close()
	for range 2 {
		if err := a.Add([]ClaimedFile{top}); err != nil {
			t.Fatal(err)
		}
	}
	a.Drop([]ClaimedFile{top})
	if err := b.Add([]ClaimedFile{top}); !errors.Is(err, ErrClaimed) {
		t.Fatalf("the claim was given up with the old path: %v", err)
	}
	a.Drop([]ClaimedFile{top, top, forReading(top)})
	if err := b.Add([]ClaimedFile{top}); err != nil {
		t.Fatal(err)
	}
	b.Close()
}

// TestClaimsDisk: a block device is one by whatever node, and is no file with the same number.
func TestClaimsDisk(t *testing.T) {
	st := unix.Stat_t{Mode: unix.S_IFBLK, Dev: 5, Ino: 77, Rdev: unix.Mkdev(8, 16)}
	other := st
	other.Ino = 78
	file := unix.Stat_t{Mode: unix.S_IFREG, Dev: st.Rdev, Ino: 0}
	if FileIDOf(&st) != FileIDOf(&other) || FileIDOf(&st).file() == FileIDOf(&file).file() || FileIDOf(&st).file() != "disk-8:16" {
		t.Errorf("%q, %q, %q", FileIDOf(&st).file(), FileIDOf(&other).file(), FileIDOf(&file).file())
	}
}

func init() {
	roles["claim"] = func(dir string) {
		c := NewClaims(filepath.Join(dir, "run"), os.Getenv("HOLDFAST_TEST_DEVICE"))
		var st unix.Stat_t
		if err := unix.Stat(filepath.Join(dir, "image"), &st); err != nil {
			fmt.Println(err)
			return
		}
		fmt.Println(c.Add([]ClaimedFile{{"image", FileIDOf(&st), true}}))
		io.Copy(io.Discard, os.Stdin)
	}
}

// TestClaimsOfTheDead: a claim ends with its process, and what that leaves means nothing and
// can be swept away, but not what others have.
func TestClaimsOfTheDead(t *testing.T) {
	dir := t.TempDir()
	run := filepath.Join(dir, "run")
	image := someFile(t, dir, "image", true)
	mine := someFile(t, dir, "mine", true)
	p := startRole(t, "claim", dir, "HOLDFAST_TEST_DEVICE=dead")
	if s := p.line(); s != "<nil>" {
		t.Fatal(s)
	}
	c := NewClaims(run, "next")
	defer c.Close()
	var refused *ClaimError
	if err := c.Add([]ClaimedFile{mine, image}); !errors.As(err, &refused) || refused.Owner != "dead" {
		t.Fatalf("claimed by another process: %v", err)
	}
	if err := c.Add([]ClaimedFile{mine}); err != nil {
		t.Fatal(err)
	}
	p.kill()
	if name, ok := Owner(run, image.ID); ok {
		t.Errorf("a dead process' device %q owns a file", name)
	}
	if n := claimFiles(t, run); n != 2 {
		t.Fatalf("%d files, want the one that the process left and ours", n)
	}
	if err := SweepClaims(run); err != nil {
		t.Fatal(err)
	}
	if name, ok := Owner(run, mine.ID); claimFiles(t, run) != 1 || !ok || name != "next" {
		t.Errorf("after a sweep: %d files, ours is owned by %q", claimFiles(t, run), name)
	}
	if err := c.Add([]ClaimedFile{image}); err != nil {
		t.Fatal(err)
	}
}

// TestManyReaders: a base of many devices is one small file, that names those who are left.
func TestManyReaders(t *testing.T) {
	run := t.TempDir()
	base := someFile(t, t.TempDir(), "base", false)
	var all []*Claims
	for i := range 300 {
		c := NewClaims(run, fmt.Sprint("d", i))
		defer c.Close()
		if err := c.Add([]ClaimedFile{base}); err != nil {
			t.Fatal(err)
		}
		all = append(all, c)
	}
	path := filepath.Join(Run(run).Claims(), base.ID.file())
	if fi, err := os.Stat(path); err != nil || fi.Size() > 1<<15*claimSlot {
		t.Errorf("%d bytes for 300 readers, %v", fi.Size(), err)
	}
	write := base
	write.Write = true
	for i, c := range all[:299] {
		c.Close()
		var refused *ClaimError
		if err := NewClaims(run, "writer").Add([]ClaimedFile{write}); !errors.As(err, &refused) || refused.Owner == "" {
			t.Fatalf("%d readers are left: %v", 299-i, err)
		}
		var n int
		if _, err := fmt.Sscanf(refused.Owner, "d%d", &n); err != nil || n <= i {
			t.Fatalf("%q has no claim any more", refused.Owner)
		}
	}
}
