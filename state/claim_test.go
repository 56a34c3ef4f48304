package state

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"holdfast/hack/faultfs"
)

// roles are what this test's program does as another process: HOLDFAST_TEST_ROLE=ROLE with
// HOLDFAST_TEST_DIR. Each ends when its standard input does.
var roles = map[string]func(dir string){}

func TestMain(m *testing.M) {
	faultfs.Child() // storage that hangs on demand is a process of its own
	if role := os.Getenv("HOLDFAST_TEST_ROLE"); role != "" {
		roles[role](os.Getenv("HOLDFAST_TEST_DIR"))
		return
	}
	os.Exit(m.Run())
}

// process is this program in another role.
type process struct {
	t   *testing.T
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Scanner
}

func startRole(t *testing.T, role, dir string, env ...string) *process {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p := &process{t: t, cmd: exec.Command(exe)}
	p.cmd.Env = append(os.Environ(), append(env, "HOLDFAST_TEST_ROLE="+role, "HOLDFAST_TEST_DIR="+dir)...)
	p.cmd.Stderr = os.Stderr
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.out = bufio.NewScanner(out)
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.kill() })
	return p
}

func (p *process) line() string {
	p.t.Helper()
	if !p.out.Scan() {
		p.t.Fatalf("the other process ended: %v", p.out.Err())
	}
	return p.out.Text()
}

func (p *process) kill() {
	p.cmd.Process.Kill()
	p.cmd.Wait()
}

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

// TestClaimsRace: many claim, drop and sweep at once, and never do two write one file. What
// fails is refused, and names somebody who was there.
func TestClaimsRace(t *testing.T) {
	run := t.TempDir()
	f := someFile(t, t.TempDir(), "image", true)
	var inside sync.Mutex
	writer, reading := "", 0
	took := 0
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			name := fmt.Sprint("d", i)
			c := NewClaims(run, name)
			want := f
			want.Write = i%2 == 0
			for range 2000 {
				if err := c.Add([]ClaimedFile{want}); err != nil {
					var refused *ClaimError
					if !errors.As(err, &refused) || refused.Owner == name {
						t.Errorf("%s: %v", name, err)
					}
					continue
				}
				inside.Lock()
				took++
				if writer != "" || want.Write && reading > 0 {
					t.Errorf("%s has the file, and so have %q and %d readers", name, writer, reading)
				}
				if want.Write {
					writer = name
				} else {
					reading++
				}
				inside.Unlock()
				runtime.Gosched()
				inside.Lock()
				if want.Write {
					writer = ""
				} else {
					reading--
				}
				inside.Unlock()
				c.Drop([]ClaimedFile{want})
				if i == 0 {
					SweepClaims(run)
				}
			}
		})
	}
	wg.Wait()
	if took == 0 {
		t.Error("nobody got the file")
	}
	SweepClaims(run)
	if n := claimFiles(t, run); n != 0 {
		t.Errorf("%d files are left", n)
	}
}

// TestAnyClaims compares any sequence of claims with what is meant.
func TestAnyClaims(t *testing.T) {
	images := t.TempDir()
	var files []ClaimedFile
	for i := range 3 {
		files = append(files, someFile(t, images, fmt.Sprint(i), false))
	}
	runs := t.TempDir()
	rapid.Check(t, func(t *rapid.T) {
		run, err := os.MkdirTemp(runs, "")
		if err != nil {
			t.Fatal(err)
		}
		type use struct{ readers, writers int }
		names := []string{"a", "b", "c"}
		claims := map[string]*Claims{}
		want := map[string][]use{}
		for _, n := range names {
			claims[n], want[n] = NewClaims(run, n), make([]use, len(files))
			defer claims[n].Close()
		}
		set := func(t *rapid.T) (list []ClaimedFile, index []int) {
			for range rapid.IntRange(1, 3).Draw(t, "count") {
				i := rapid.IntRange(0, len(files)-1).Draw(t, "file")
				f := files[i]
				f.Write = rapid.Bool().Draw(t, "write")
				list, index = append(list, f), append(index, i)
			}
			return list, index
		}
		device := rapid.SampledFrom(names)
		t.Repeat(map[string]func(*rapid.T){
			"add": func(t *rapid.T) {
				n := device.Draw(t, "device")
				list, index := set(t)
				refused := false
				for k, f := range list {
					for _, o := range names {
						u := want[o][index[k]]
						refused = refused || o != n && (u.writers > 0 || f.Write && u.readers > 0)
					}
				}
				err := claims[n].Add(list)
				if refused != errors.Is(err, ErrClaimed) || !refused && err != nil {
					t.Fatalf("%s wants %v: %v", n, list, err)
				}
				if err != nil {
					return
				}
				for k, f := range list {
					if f.Write {
						want[n][index[k]].writers++
					} else {
						want[n][index[k]].readers++
					}
				}
			},
			"drop": func(t *rapid.T) {
				n := device.Draw(t, "device")
				list, index := set(t)
				claims[n].Drop(list)
				for k, f := range list {
					u := &want[n][index[k]]
					if f.Write {
						u.writers = max(0, u.writers-1)
					} else {
						u.readers = max(0, u.readers-1)
					}
				}
			},
			"sweep": func(t *rapid.T) {
				if err := SweepClaims(run); err != nil {
					t.Fatal(err)
				}
			},
			"": func(t *rapid.T) {
				for i, f := range files {
					owners := map[string]bool{}
					for _, n := range names {
						if want[n][i] != (use{}) {
							owners[n] = true
						}
					}
					if name, ok := Owner(run, f.ID); ok != (len(owners) > 0) || ok && !owners[name] {
						t.Fatalf("file %d: owner %q, %v, want one of %v", i, name, ok, owners)
					}
				}
			},
		})
	})
}
