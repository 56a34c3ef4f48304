package stack

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"holdfast/ploop"
	"holdfast/ploop/image"
	"holdfast/ploop/internal/format"
	"holdfast/ploop/internal/storage"
)

// shortScene is an image of some clusters, open for writing, with what its log says.
func shortScene(t *testing.T, clusters int64, raw bool) (s *Stack, path string, log *[]string) {
	t.Helper()
	path = filepath.Join(memDir(t), "top")
	ref := image.Ref{Path: path, Raw: raw}
	if raw {
		if err := os.WriteFile(path, bytes.Repeat([]byte{1}, 64<<10), 0o600); err != nil {
			t.Fatal(err)
		}
	} else {
		mustCreate(t, path, ploop.CreateOptions{Size: 16 << 20, ClusterSize: 64 << 10})
		s := mustOpen(t, []image.Ref{ref}, Options{})
		for i := range clusters {
			if _, err := s.WriteAt(bytes.Repeat([]byte{byte(i + 1)}, 64<<10), i<<16); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	log = new([]string)
	s, err := Open([]image.Ref{ref}, Options{Log: func(f string, a ...any) { *log = append(*log, fmt.Sprintf(f, a...)) }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s, path, log
}

func fileSize(t *testing.T, path string) int64 {
	t.Helper()
	fi, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return fi.Size()
}

func wantTruncated(t *testing.T, what string, err error, path string, found int64) {
	t.Helper()
	var format *image.FormatError
	if !errors.Is(err, ErrTruncated) || !errors.Is(err, io.ErrUnexpectedEOF) || !errors.As(err, &format) {
		t.Fatalf("%s: %v", what, err)
	}
	for _, part := range []string{path, fmt.Sprintf("%d bytes", found), "cut off"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%s doesn't say %q: %v", what, part, err)
		}
	}
}

// TestCutFile cuts the file off under a live stack. Nothing makes it longer again unseen, and
// it isn't closed as if it were whole.
func TestCutFile(t *testing.T) {
	const cluster = 64 << 10
	one := bytes.Repeat([]byte{9}, cluster)
	for _, c := range []struct {
		name string
		do   func(t *testing.T, s *Stack) error // nil: isn't refused by itself
		long bool                               // the file gets longer, which only the guard shows
	}{
		{"close", func(t *testing.T, s *Stack) error { return nil }, false},
		{"allocate", func(t *testing.T, s *Stack) error { _, err := s.WriteAt(one, 100*cluster); return err }, false},
		{"allocate zeroes", func(t *testing.T, s *Stack) error { _, err := s.WriteAt(one[:512], 100*cluster); return err }, false},
		{"reuse", func(t *testing.T, s *Stack) error {
			s.space.free.Add(19) // as if a discard had left it
			_, err := s.WriteAt(one, 100*cluster)
			return err
		}, false},
		{"discard", func(t *testing.T, s *Stack) error { return s.Discard(0, 2*cluster) }, false},
		{"flush", func(t *testing.T, s *Stack) error { return s.Flush() }, false},
		{"ask", func(t *testing.T, s *Stack) error { return s.Intact() }, false},
		{"write in place", func(t *testing.T, s *Stack) error {
			if _, err := s.WriteAt(one, 19*cluster); err != nil { // up to its last byte
				t.Fatal(err)
			}
			return s.Flush()
		}, true},
		{"fast write in place", func(t *testing.T, s *Stack) error {
			r := s.NewReader()
			at := r.Locate(19*cluster, cluster, true)
			if at.Where != Direct {
				t.Fatal(at)
			}
			if _, err := syscall.Pwrite(s.Fds()[0], one, at.Offset); err != nil {
				t.Fatal(err)
			}
			r.Leave(at.Token)
			_, err := s.WriteAt(one, 100*cluster)
			return err
		}, true},
	} {
		for _, grown := range []bool{false, true} {
			for _, left := range []int64{0, 1, 5*cluster + 100, 19 * cluster} {
				t.Run(fmt.Sprintf("%s/grown=%v/%d", c.name, grown, left), func(t *testing.T) {
					s, path, _ := shortScene(t, 20, false)
					if grown {
						if _, err := s.WriteAt(one, 50*cluster); err != nil {
							t.Fatal(err)
						}
					}
					was := fileSize(t, path)
					to := int64(s.top.Header.DataStart())*image.SectorSize + left
					if left == 0 {
						to = 4096
					}
					if err := os.Truncate(path, to); err != nil {
						t.Fatal(err)
					}
					found := to
					err := c.do(t, s)
					if c.long {
						if found = fileSize(t, path); found >= was {
							t.Errorf("the file has %d bytes, as if it were whole", found)
						}
					} else if now := fileSize(t, path); now != to {
						t.Errorf("the file was made longer, from %d to %d bytes", to, now)
					}
					if c.name != "close" {
						wantTruncated(t, c.name, err, path, found)
					}
					// Made long again by whoever cut it: what is lost stays lost.
					if c.name == "ask" {
						if err := os.Truncate(path, was); err != nil {
							t.Fatal(err)
						}
						found = was
					}
					wantTruncated(t, "close", s.Close(), path, found)
					if now := fileSize(t, path); now != found {
						t.Errorf("close changed the size from %d to %d bytes", found, now)
					}
					i, err := ploop.ReadInfo(image.Ref{Path: path})
					if err == nil && !i.InUse {
						t.Error("the image isn't marked in use")
					}
				})
			}
		}
	}
}

// TestCutRaw is TestCutFile for a raw top, which never grows.
func TestCutRaw(t *testing.T) {
	s, path, _ := shortScene(t, 0, true)
	if err := s.Intact(); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, 4096); err != nil {
		t.Fatal(err)
	}
	if _, err := s.ReadAt(make([]byte, 4096), 8192); err == nil {
		t.Error("what is gone reads")
	}
	if _, err := s.WriteAt(make([]byte, 4096), 16384); err != nil {
		t.Fatal(err)
	}
	wantTruncated(t, "flush", s.Flush(), path, 20480)
	wantTruncated(t, "close", s.Close(), path, 20480)
}

// TestCutAndReopened has a stack whose file was cut, and made longer by a write, opened anew: the
// same file is not taken, as nobody could tell what is gone from zeroes; by force it is.
func TestCutAndReopened(t *testing.T) {
	const cluster = 64 << 10
	s, path, _ := shortScene(t, 20, false)
	if err := os.Truncate(path, int64(s.top.Header.SectorAt(5))*image.SectorSize); err != nil {
		t.Fatal(err)
	}
	if _, err := s.WriteAt(make([]byte, cluster), 19*cluster); err != nil {
		t.Fatal(err)
	}
	if err := s.Flush(); !errors.Is(err, ErrTruncated) {
		t.Fatal(err)
	}
	h := begin(t, s)
	c := Succession{Refs: []image.Ref{{Path: path}}, Reopen: []bool{true}, Drained: true}
	if _, err := h.Prepare(c); !errors.Is(err, ErrTruncated) {
		t.Fatalf("opened anew: %v", err)
	}
	c.Force = true
	next, err := h.Prepare(c)
	if err != nil {
		t.Fatal(err)
	}
	commit(t, h)
	if err := next.Flush(); err != nil {
		t.Error(err)
	}
	if err := next.Close(); err != nil {
		t.Error(err)
	}
}

// TestForeignTail appends to the file under a live stack: what was appended is neither
// overwritten nor cut off, the log tells of it, and all else goes on.
func TestForeignTail(t *testing.T) {
	const cluster = 64 << 10
	tail := bytes.Repeat([]byte{0xee}, 3*cluster+1000)
	for _, when := range []string{"before the first growth", "after it", "allocated since", "with an extension"} {
		t.Run(when, func(t *testing.T) {
			s, path, log := shortScene(t, 20, false)
			s.opts.noAhead = true
			one := bytes.Repeat([]byte{9}, cluster)
			if when != "before the first growth" {
				if _, err := s.WriteAt(one, 50*cluster); err != nil {
					t.Fatal(err)
				}
			}
			at := fileSize(t, path)
			f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := f.Write(tail); err != nil {
				t.Fatal(err)
			}
			f.Close()
			if when == "allocated since" || when == "before the first growth" {
				for i := range int64(100) {
					if _, err := s.WriteAt(one[:512], (100+i)*cluster); err != nil {
						t.Fatal(err)
					}
				}
				b := make([]byte, cluster)
				for i := range int64(100) {
					if _, err := s.ReadAt(b, (100+i)*cluster); err != nil {
						t.Fatal(err)
					}
					if !bytes.Equal(b[:512], one[:512]) || !storage.AllZero(b[512:]) {
						t.Fatalf("cluster %d shows what isn't its own", 100+i)
					}
				}
			}
			if when == "with an extension" {
				s.unknown = []format.Section{{Magic: 2, Flags: format.SectionTransit, Data: []byte("carried along")}}
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if int64(len(b)) < at+int64(len(tail)) || !bytes.Equal(b[at:at+int64(len(tail))], tail) {
				t.Error("what was appended is gone")
			}
			if !strings.Contains(strings.Join(*log, "\n"), "appended") {
				t.Errorf("the log says %q", *log)
			}
			code := ploop.ExitLeaks
			if when == "before the first growth" || when == "with an extension" {
				code = ploop.ExitClean // there are clusters behind it
			}
			mustCheck(t, code, image.Ref{Path: path})
			s = mustOpen(t, []image.Ref{{Path: path}}, Options{ReadOnly: true})
			if _, err := s.ReadAt(one, 19*cluster); err != nil || one[0] != 20 {
				t.Errorf("%d, %v", one[0], err)
			}
			s.Close()
		})
	}
}
