package stack

import (
	"bytes"
	"errors"
	"os"
	"testing"

	"holdfast/ploop"
	"holdfast/ploop/image"
	"holdfast/ploop/internal/format"
	"holdfast/ploop/internal/storage"
)

func transitImage() *smallImage {
	return newSmallImage(2).withBitmap(format.Section{Magic: 2, Flags: format.SectionTransit, Data: []byte("carried along")})
}

// TestCarriedTail: behind what an unknown section may refer to, a file that
// doesn't end with a cluster must not lend its tail to new clusters.
func TestCarriedTail(t *testing.T) {
	im := transitImage()
	tail := bytes.Repeat([]byte{0xaa}, 3*image.SectorSize)
	im.b = append(im.b, tail...)
	at := len(im.b) - len(tail)
	ref := writeSmall(t, im)
	s := mustOpen(t, []image.Ref{ref}, Options{})
	sector := bytes.Repeat([]byte{7}, image.SectorSize)
	for i := range s.clusters { // one sector of each cluster that has none yet
		if !s.table.Load(i).Mapped() {
			if _, err := s.WriteAt(sector, int64(i)*s.cluster); err != nil {
				t.Fatal(err)
			}
			rest := make([]byte, s.cluster-image.SectorSize)
			if _, err := s.ReadAt(rest, int64(i)*s.cluster+image.SectorSize); err != nil || !storage.AllZero(rest) {
				t.Fatalf("cluster %d: sectors that were never written aren't zero (%v)", i, err)
			}
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	now, err := os.ReadFile(ref.Path)
	if err != nil || !bytes.Equal(now[at:at+len(tail)], tail) {
		t.Errorf("the tail that may be somebody's was overwritten (%v)", err)
	}
}

// TestCarriedSize: opening and closing again and again must not grow the file.
func TestCarriedSize(t *testing.T) {
	ref := writeSmall(t, transitImage())
	var sizes []int64
	for range 4 {
		s := mustOpen(t, []image.Ref{ref}, Options{})
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		fi, err := os.Stat(ref.Path)
		if err != nil {
			t.Fatal(err)
		}
		sizes = append(sizes, fi.Size())
	}
	if sizes[3] != sizes[0] {
		t.Errorf("the file grows without a write: %d", sizes)
	}
	mustCheck(t, ploop.ExitClean, ref)
}

// TestNecessaryBitmap: a bitmap that must be understood and can't be loaded
// keeps the image from being written.
func TestNecessaryBitmap(t *testing.T) {
	im := newSmallImage(2)
	ref := writeSmall(t, im.withExtension(format.Section{Magic: format.BitmapMagic, Flags: format.SectionNeeded, Data: []byte("too short")}))
	if _, err := Open([]image.Ref{ref}, Options{}); !errors.Is(err, image.ErrUnsupported) {
		t.Errorf("%v", err)
	}
}
