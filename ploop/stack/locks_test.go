package stack

import (
	"bufio"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"holdfast/ploop"
	"holdfast/ploop/image"
	"holdfast/ploop/internal/bundle"
	"holdfast/ploop/internal/storage"
)

// lockScene is an image that is opened in all the modes there are: alone, and as the
// base of a top.
type lockScene struct {
	t              *testing.T
	img, top       image.Ref
	dir, bundleTop string
	golden         image.Ref // the image by the folder of the bundle that it is the base of
}

func newLockScene(t *testing.T, raw bool) *lockScene {
	l := &lockScene{t: t, dir: memDir(t)}
	l.img = image.Ref{Path: filepath.Join(l.dir, "img"), Raw: raw}
	if raw {
		if err := os.WriteFile(l.img.Path, make([]byte, 4<<20), 0o600); err != nil {
			t.Fatal(err)
		}
	} else {
		mustCreate(t, l.img.Path, ploop.CreateOptions{Size: 4 << 20})
		s := mustOpen(t, []image.Ref{l.img}, Options{})
		if _, err := s.WriteAt(make([]byte, 1<<20), 0); err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	l.top = mustCreate(t, filepath.Join(l.dir, "top"), ploop.CreateOptions{Size: 4 << 20})
	// The top of the bundle whose base the image is.
	if err := os.Mkdir(filepath.Join(l.dir, "bundle"), 0o700); err != nil {
		t.Fatal(err)
	}
	l.bundleTop = mustCreate(t, filepath.Join(l.dir, "bundle", "top.hds"), ploop.CreateOptions{Size: 4 << 20}).Path
	xml := "<Parallels_disk_image><File>../img</File><File>top.hds</File></Parallels_disk_image>"
	if err := os.WriteFile(filepath.Join(l.dir, "bundle", bundle.DescriptorName), []byte(xml), 0o600); err != nil {
		t.Fatal(err)
	}
	// The same image in a bundle of its own, from which a stack elsewhere starts.
	if err := os.Mkdir(filepath.Join(l.dir, "golden"), 0o700); err != nil {
		t.Fatal(err)
	}
	l.golden = image.Ref{Path: filepath.Join(l.dir, "golden", "img"), Raw: raw}
	if err := os.Link(l.img.Path, l.golden.Path); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(l.dir, "golden", bundle.DescriptorName), []byte("<Parallels_disk_image><File>img</File></Parallels_disk_image>"), 0o600); err != nil {
		t.Fatal(err)
	}
	return l
}

// How the image is opened.
var lockModes = []string{"read-only", "base", "golden", "bundle", "guarded", "writer"}

func (l *lockScene) open(mode string) (*Stack, error) {
	switch mode {
	case "read-only":
		return Open([]image.Ref{l.img}, Options{ReadOnly: true})
	case "base":
		return Open([]image.Ref{l.img, l.top}, Options{})
	case "golden":
		return Open([]image.Ref{l.golden, l.top}, Options{})
	case "bundle":
		return Open([]image.Ref{l.img, {Path: l.bundleTop}}, Options{})
	case "guarded":
		return Open([]image.Ref{l.img}, Options{ReadOnly: true, open: storage.OpenStill})
	}
	return Open([]image.Ref{l.img}, Options{})
}

// expect opens the image in every mode while somebody else has it.
func (l *lockScene) expect(works map[string]bool) {
	l.t.Helper()
	for _, mode := range lockModes {
		s, err := l.open(mode)
		if works[mode] != (err == nil) || err != nil && !errors.Is(err, image.ErrLocked) {
			l.t.Errorf("%s: %v", mode, err)
		}
		if err == nil {
			if err := s.Close(); err != nil {
				l.t.Error(err)
			}
		}
	}
	// What opens an image for a moment.
	dst := filepath.Join(l.dir, "converted")
	_, check := ploop.Check([]image.Ref{l.img}, ploop.CheckOptions{})
	for what, err := range map[string]error{
		"convert": ploop.Convert(context.Background(), l.img, dst, ploop.ConvertOptions{}),
		"check":   check,
		"map":     ploop.Map([]image.Ref{l.img}, func(image.Extent) error { return nil }),
	} {
		if works["guarded"] != (err == nil) || err != nil && !errors.Is(err, image.ErrLocked) {
			l.t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := os.Stat(dst); (err == nil) != works["guarded"] {
		l.t.Errorf("the converted image: %v", err)
	}
	os.Remove(dst)
}

var (
	allWork  = map[string]bool{"read-only": true, "base": true, "golden": true, "bundle": true, "guarded": true}
	noneDoes = map[string]bool{}
)

// TestLocksOfQEMU has images opened by QEMU first, and by us first.
func TestLocksOfQEMU(t *testing.T) {
	for _, format := range []string{"raw", "parallels"} {
		for _, c := range []struct {
			name  string
			args  []string
			works map[string]bool
		}{
			{"reading", []string{"-r"}, allWork},
			{"writing", nil, noneDoes},
		} {
			t.Run(format+" "+c.name, func(t *testing.T) {
				l := newLockScene(t, format == "raw")
				end := l.qemu(append(c.args, "-f", format, l.img.Path))
				l.expect(c.works)
				end()
				if format == "parallels" && c.args == nil {
					return // has left it in use, perhaps
				}
				for _, mode := range lockModes {
					s, err := l.open(mode)
					if err != nil {
						t.Fatalf("%s, when QEMU has ended: %v", mode, err)
					}
					out, code := qemu(t, "qemu-io", append(c.args, "-f", format, "-c", "read 0 512", l.img.Path)...)
					reads := c.args != nil
					switch {
					case reads && (code == 0) != (mode != "writer"):
						t.Errorf("QEMU reads beside our %s: exit code %d\n%s", mode, code, out)
					case !reads && mode != "golden" && code == 0:
						t.Errorf("QEMU writes beside our %s", mode)
					}
					if err := s.Close(); err != nil {
						t.Fatal(err)
					}
				}
			})
		}
	}
}

// qemu has a qemu-io open the image until end is called.
func (l *lockScene) qemu(args []string) (end func()) {
	l.t.Helper()
	path, err := exec.LookPath("qemu-io")
	if err != nil {
		qemu(l.t, "qemu-io") // skips, or fails
	}
	cmd := exec.Command(path, args...)
	in, err := cmd.StdinPipe()
	if err != nil {
		l.t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		l.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		l.t.Fatal(err)
	}
	ended := false
	end = func() {
		if !ended {
			ended = true
			in.Close()
			cmd.Wait()
		}
	}
	l.t.Cleanup(end)
	if _, err := in.Write([]byte("read 0 512\n")); err != nil {
		l.t.Fatal(err)
	}
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if strings.Contains(lines.Text(), "read 512/512") {
			return end
		}
	}
	l.t.Fatalf("qemu-io %q doesn't open the image", args)
	return nil
}

// TestLocksOfOthers has the bytes locked that other programs lock.
func TestLocksOfOthers(t *testing.T) {
	only := func(modes ...string) map[string]bool {
		m := map[string]bool{}
		for _, mode := range modes {
			m[mode] = true
		}
		return m
	}
	but := func(modes ...string) map[string]bool {
		m := map[string]bool{}
		for mode := range allWork {
			m[mode] = true
		}
		for _, mode := range modes {
			delete(m, mode)
		}
		return m
	}
	for _, c := range []struct {
		name       string
		kind       int16
		start, len int64
		works      map[string]bool // ours, beside it
		asks       bool            // it asks before it locks, as for a write lock
		comes      map[string]bool // beside which of ours it can begin
	}{
		{"OpenVZ's tool", unix.F_RDLCK, 200, 5, but("bundle", "guarded"), true, only("golden")},
		{"an earlier version's reader", unix.F_RDLCK, 0, 0, allWork, false, allWork},
		{"an earlier version's writer", unix.F_WRLCK, 0, 0, noneDoes, false, noneDoes},
		{"virtlockd, exclusive", unix.F_WRLCK, 0, 1, noneDoes, false, noneDoes},
		{"virtlockd, shared", unix.F_RDLCK, 0, 1, allWork, false, allWork},
		{"a writer of something in the middle", unix.F_WRLCK, 1 << 20, 4096, noneDoes, false, nil},
		{"a QEMU that resizes", unix.F_RDLCK, 103, 1, noneDoes, false, nil},
		{"a QEMU that commits", unix.F_RDLCK, 200, 1, noneDoes, false, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := newLockScene(t, false)
			other, err := os.OpenFile(l.img.Path, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer other.Close()
			do := func(cmd int, kind int16) (unix.Flock_t, error) {
				lk := unix.Flock_t{Type: kind, Start: c.start, Len: c.len}
				return lk, unix.FcntlFlock(other.Fd(), cmd, &lk)
			}
			if _, err := do(unix.F_OFD_SETLK, c.kind); err != nil {
				t.Fatal(err)
			}
			l.expect(c.works)
			if _, err := do(unix.F_OFD_SETLK, unix.F_UNLCK); err != nil {
				t.Fatal(err)
			}
			if c.comes == nil {
				return
			}
			for _, mode := range lockModes {
				s, err := l.open(mode)
				if err != nil {
					t.Fatal(mode, err)
				}
				free := true
				if c.asks {
					lk, err := do(unix.F_OFD_GETLK, unix.F_WRLCK)
					if err != nil {
						t.Fatal(err)
					}
					free = lk.Type == unix.F_UNLCK
				}
				if free {
					_, err = do(unix.F_OFD_SETLK, c.kind)
					free = err == nil
				}
				if free != c.comes[mode] {
					t.Errorf("beside our %s it begins: %v, want %v", mode, free, c.comes[mode])
				}
				if _, err := do(unix.F_OFD_SETLK, unix.F_UNLCK); err != nil {
					t.Fatal(err)
				}
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// TestLocksOfOurs has every mode beside every other.
func TestLocksOfOurs(t *testing.T) {
	l := newLockScene(t, false)
	l.bundleTop = mustCreate(t, filepath.Join(l.dir, "bundle", "other.hds"), ploop.CreateOptions{Size: 4 << 20}).Path
	for _, first := range lockModes {
		s, err := l.open(first)
		if err != nil {
			t.Fatal(first, err)
		}
		for _, second := range lockModes {
			other, err := l.open(second)
			works := first != "writer" && second != "writer" && !(usesTop(first) && usesTop(second)) && (first != "bundle" || second != "bundle")
			if works != (err == nil) || err != nil && !errors.Is(err, image.ErrLocked) {
				t.Errorf("%s beside %s: %v", second, first, err)
			}
			if err == nil {
				if err := other.Close(); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// usesTop says that a mode of opening writes to the scene's top.
func usesTop(mode string) bool { return mode == "base" || mode == "golden" }

// TestLockTakenAgain: what a reader gives back and takes again is the same.
func TestLockTakenAgain(t *testing.T) {
	l := newLockScene(t, false)
	for _, guard := range []bool{false, true} {
		f, err := storage.OpenFile(l.img.Path, false, guard, false)
		if err != nil {
			t.Fatal(err)
		}
		held := func() (n int) {
			other, err := os.Open(l.img.Path)
			if err != nil {
				t.Fatal(err)
			}
			defer other.Close()
			for at := range int64(400) {
				lk := unix.Flock_t{Type: unix.F_WRLCK, Start: at, Len: 1}
				if err := unix.FcntlFlock(other.Fd(), unix.F_OFD_GETLK, &lk); err != nil {
					t.Fatal(err)
				}
				if lk.Type != unix.F_UNLCK {
					n++
				}
			}
			return n
		}
		was := held()
		if err := f.Unlock(); err != nil || held() != 0 || f.Locked() {
			t.Errorf("unlocked: %v, %d bytes are", err, held())
		}
		if err := f.Lock(); err != nil || held() != was || !f.Locked() {
			t.Errorf("locked again: %v, %d bytes are, want %d", err, held(), was)
		}
		f.Close()
	}
}

// TestClaimedBlockDevice: a mount locks nothing, but has the device for itself.
func TestClaimedBlockDevice(t *testing.T) {
	dev := blockDevice(t, 16<<20, 512)
	ref := []image.Ref{{Path: dev, Raw: true}}
	s, err := Open(ref, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	mountAt(t, dev, "ro", "mkfs.ext4", "-q")
	if s, err := Open(ref, Options{}); !errors.Is(err, image.ErrLocked) {
		t.Errorf("mounted: %v", err)
		if err == nil {
			s.Close()
		}
	}
	s, err = Open(ref, Options{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}
