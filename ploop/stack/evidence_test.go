package stack

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/ploop"
	"holdfast/ploop/image"
	"holdfast/ploop/internal/format"
)

// served is an image as a killed server leaves it, and what that one had recorded.
func served(t *testing.T, ref image.Ref, o Options, use func(*Stack)) image.Evidence {
	t.Helper()
	s := mustOpen(t, []image.Ref{ref}, o)
	use(s)
	e, err := s.Evidence(nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Flush(); err != nil {
		t.Fatal(err)
	}
	if err := s.closeFiles(); err != nil { // and not s
		t.Fatal(err)
	}
	return e[0]
}

// anew makes another file of the same content, by the same name.
func anew(t *testing.T, path string) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err == nil {
		err = os.WriteFile(path+".new", b, 0o600)
	}
	if err == nil {
		err = os.Rename(path+".new", path)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func writeAt(t *testing.T, path string, off int64, b ...byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteAt(b, off)
		f.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestEvidence: where a file system numbers its files anew, the time of birth and the content
// say whether a file is the one that was served.
func TestEvidence(t *testing.T) {
	fill := func(s *Stack) {
		for i := range int64(40) {
			if _, err := s.WriteAt(letters(byte('a'+i%26)), i*100<<10); err != nil {
				t.Fatal(err)
			}
		}
	}
	const size = 8 << 20
	for _, c := range []struct {
		name   string
		raw    bool
		change func(path string, e *image.Evidence)
		want   error
	}{
		{"the same file", false, func(string, *image.Evidence) {}, nil},
		{"another number", false, func(_ string, e *image.Evidence) { e.Inode++ }, nil},
		{"another number and birth", false, func(_ string, e *image.Evidence) { e.Inode++; e.Birth = e.Birth.Add(-time.Hour) }, image.ErrDiverged},
		{"another number, birth unknown", false, func(_ string, e *image.Evidence) { e.Inode++; e.Birth = time.Time{} }, nil},
		{"a number that stays", false, func(_ string, e *image.Evidence) { e.Inode++; e.Mount.Type = "ext4"; e.Mount.Super = unix.Mkdev(8, 1) }, image.ErrDiverged},
		{"closed since", false, func(path string, e *image.Evidence) {
			e.Inode++
			writeAt(t, path, 44, 0, 0, 0, 0)
		}, image.ErrDiverged},
		{"another cluster size", false, func(path string, e *image.Evidence) {
			e.Inode++
			e.Birth = time.Time{}
			b, _ := os.ReadFile(path)
			b[20]++ // heads
			os.WriteFile(path, b, 0o600)
		}, image.ErrDiverged},
		{"an entry gone", false, func(path string, e *image.Evidence) {
			e.Inode++
			writeAt(t, path, format.HeaderSize, 0, 0, 0, 0) // discarded
		}, nil},
		{"another index", false, func(path string, e *image.Evidence) {
			e.Inode++
			e.Birth = time.Time{}
			b, _ := os.ReadFile(path)
			writeAt(t, path, format.HeaderSize, b[format.HeaderSize+4:format.HeaderSize+8]...)
		}, image.ErrDiverged},
		{"no image", false, func(path string, e *image.Evidence) { e.Inode++; os.Truncate(path, 0) }, image.ErrNotPloop},
		{"raw", true, func(_ string, e *image.Evidence) { e.Inode++; e.Birth = time.Time{} }, nil},
		{"raw, written to", true, func(path string, e *image.Evidence) {
			e.Inode++
			e.Birth = time.Time{}
			writeAt(t, path, 0, letters('z')...)
		}, nil},
		{"raw, longer", true, func(path string, e *image.Evidence) { e.Inode++; os.Truncate(path, size+1000) }, nil},
		{"raw, shorter", true, func(path string, e *image.Evidence) { e.Inode++; os.Truncate(path, size-512) }, image.ErrDiverged},
		{"raw, another", true, func(path string, e *image.Evidence) {
			e.Inode++
			e.Birth = time.Time{}
			os.Truncate(path, 0)
			os.Truncate(path, size)
		}, image.ErrUnproven},
		{"raw, and was empty", true, func(_ string, e *image.Evidence) { e.Inode++; e.Birth, e.Sectors = time.Time{}, nil }, image.ErrUnproven},
		{"raw, and was empty, born then", true, func(_ string, e *image.Evidence) { e.Inode++; e.Sectors = nil }, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			ref := image.Ref{Path: filepath.Join(t.TempDir(), "img"), Raw: c.raw}
			if c.raw {
				if err := os.WriteFile(ref.Path, bytes.Repeat([]byte("raw "), size/4), 0o600); err != nil {
					t.Fatal(err)
				}
			} else {
				mustCreate(t, ref.Path, ploop.CreateOptions{Size: size, ClusterSize: 64 << 10})
			}
			e := served(t, ref, Options{}, fill)
			if c.raw {
				e = served(t, ref, Options{}, func(*Stack) {})
				if len(e.Sectors) < 4 {
					t.Fatalf("%d sectors are remembered", len(e.Sectors))
				}
			} else if len(e.Index) != format.Sampled {
				t.Fatalf("%d entries are remembered", len(e.Index))
			}
			if e.Birth.IsZero() {
				t.Skip("this file system has no time of birth")
			}
			e.Mount.Type = "vfat"
			c.change(ref.Path, &e)
			if err := format.SameFile(&e, ref, false); !errors.Is(err, c.want) || (err == nil) != (c.want == nil) {
				t.Errorf("%v, want %v", err, c.want)
			}
		})
	}
}

// TestEvidenceCopy: on a file system that keeps its numbers, a copy is another file.
func TestEvidenceCopy(t *testing.T) {
	ref := mustCreate(t, filepath.Join(t.TempDir(), "img"), ploop.CreateOptions{Size: 4 << 20})
	e := served(t, ref, Options{}, func(*Stack) {})
	if !format.KeepsNumbers(e.Mount) {
		t.Skip("this one doesn't")
	}
	anew(t, ref.Path)
	if err := format.SameFile(&e, ref, false); !errors.Is(err, image.ErrDiverged) {
		t.Errorf("%v", err)
	}
}
