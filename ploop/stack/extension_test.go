package stack

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"holdfast/ploop"
	"holdfast/ploop/image"
	"holdfast/ploop/internal/format"
	"holdfast/ploop/internal/storage"
)

// writeSmall puts an image of the malformed tests' kind into a file.
func writeSmall(t testing.TB, im *smallImage) image.Ref {
	t.Helper()
	ref := image.Ref{Path: filepath.Join(memDir(t), "image")}
	if err := os.WriteFile(ref.Path, im.b, 0o600); err != nil {
		t.Fatal(err)
	}
	return ref
}

// bitmapsOf opens an image and gives its bitmaps, as they are in the file.
func bitmapsOf(t testing.TB, ref image.Ref) []*format.Bitmap {
	t.Helper()
	d, err := format.Open(ref, storage.Open, false, false, format.Tolerance{})
	if err != nil {
		t.Fatal(err)
	}
	defer d.File.Close()
	if d.ExtErr != nil {
		t.Fatal(d.ExtErr)
	}
	if d.Ext == nil {
		return nil
	}
	return d.Ext.Bitmaps
}

func setOf(b *format.Bitmap) (granules []uint64) {
	for g := range b.Granules() {
		if b.Bits[g/64]>>(g%64)&1 != 0 {
			granules = append(granules, g)
		}
	}
	return granules
}

// TestBitmap: a dirty bitmap survives our writing to the image, with the bits
// of what was written set, and a crash invalidates it.
func TestBitmap(t *testing.T) {
	ref := writeSmall(t, newSmallImage(2).withBitmap(
		format.Section{Magic: 1, Data: []byte("dropped")},
		format.Section{Magic: 2, Flags: format.SectionTransit, Data: []byte("carried along")}))
	mustCheck(t, ploop.ExitClean, ref)
	want := []uint64{0, 2, 319}
	b := bitmapsOf(t, ref)
	if len(b) != 1 || !slices.Equal(setOf(b[0]), want) || string(b[0].ID[:]) != "0123456789abcdef" {
		t.Fatalf("the test's own bitmap is %v", setOf(b[0]))
	}

	write := func(s *Stack, off, n int64) {
		t.Helper()
		p := bytes.Repeat([]byte{9}, int(n))
		if _, err := s.WriteAt(p, off); err != nil {
			t.Fatal(err)
		}
	}
	// A new cluster, one in place, a fast one, zeroes, a discard.
	s := mustOpen(t, []image.Ref{ref}, Options{})
	write(s, 20*4096+512, 1024)
	want = append(want, 161, 162)
	write(s, 0, 512)
	r := s.NewReader()
	if at := r.Locate(3*512, 512, true); at.Where != Direct {
		t.Fatalf("%+v", at)
	} else {
		r.Leave(at.Token)
	}
	want = append(want, 3)
	if err := s.WriteZeroes(7*4096+512, 512, true); err != nil {
		t.Fatal(err)
	}
	want = append(want, 57)
	if err := s.Discard(20*4096, 4096); err != nil {
		t.Fatal(err)
	}
	for g := range uint64(8) {
		want = append(want, 160+g)
	}
	if i, err := ploop.ReadInfo(ref); err != nil || i.Extension != nil || !i.InUse {
		t.Errorf("while open: %+v, %v", i, err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	slices.Sort(want)
	want = slices.Compact(want)
	b = bitmapsOf(t, ref)
	if len(b) != 1 || !slices.Equal(setOf(b[0]), want) {
		t.Fatalf("the bitmap came back as %v, want %v", setOf(b[0]), want)
	}
	mustCheck(t, ploop.ExitClean, ref)
	i, err := ploop.ReadInfo(ref)
	if err != nil || i.Extension == nil || len(i.Extension.Sections) != 1 || !i.Extension.Sections[0].Transit || i.Extension.Sections[0].Magic != "0x2" {
		t.Fatalf("the extension came back as %+v, %v", i.Extension, err)
	}
	if u := i.Extension.Bitmaps[0].ID; u != "30313233-3435-3637-3839-616263646566" {
		t.Errorf("UUID %s", u)
	}

	// Reading leaves it alone.
	before, _ := os.ReadFile(ref.Path)
	readDisk(t, ref)
	if now, _ := os.ReadFile(ref.Path); !bytes.Equal(now, before) {
		t.Error("reading changed the file")
	}

	// A crash: whoever comes next must not believe in the bitmap.
	s = mustOpen(t, []image.Ref{ref}, Options{})
	write(s, 30*4096, 4096)
	if err := s.Flush(); err != nil {
		t.Fatal(err)
	}
	s.closeFiles()
	if b := bitmapsOf(t, ref); b != nil {
		t.Errorf("after a crash there is the bitmap %v", setOf(b[0]))
	}
	if err := mustOpen(t, []image.Ref{ref}, Options{TakeOver: true}).Close(); err != nil {
		t.Fatal(err)
	}
	if b := bitmapsOf(t, ref); b != nil {
		t.Errorf("after a crash and a close there is the bitmap %v", setOf(b[0]))
	}
}

// TestBitmapShapes carries bitmaps whose tables are all clear, all set and
// mixed over several clusters of bits.
func TestBitmapShapes(t *testing.T) {
	const c, sectors = 2, 40000 // 8192 bits a cluster: 5 of them
	w := newSimWorld()
	ref := w.addImage("a", 2, c, sectors)
	s, err := Open([]image.Ref{ref}, Options{open: w.open})
	if err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(1, 1))
	var want [][]uint64
	for _, granularity := range []uint32{1, 7, 128, 1 << 20} {
		m := &format.Bitmap{Granularity: granularity, Sectors: sectors, ID: [16]byte{byte(granularity)}}
		m.Bits = make([]uint64, (m.Granules()+63)/64)
		for g := range m.Granules() {
			switch g / 8192 {
			case 1:
				m.Bits[g/64] |= 1 << (g % 64)
			case 2, 4:
				m.Bits[g/64] |= rng.Uint64() & 1 << (g % 64)
			}
		}
		s.bitmaps = append(s.bitmaps, m)
		want = append(want, setOf(m))
	}
	s.unknown = append(s.unknown, format.Section{Magic: 5, Flags: format.SectionTransit, Data: []byte("odd length!")})
	for round := range 3 {
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		r, err := ploop.CheckOn([]image.Ref{ref}, ploop.CheckOptions{}, w.open)
		if err != nil || r.ExitCode() != ploop.ExitClean {
			// The unknown section may point at the old bitmaps' places, so
			// they stay; that isn't clean, and isn't wrong.
			if round == 0 || err != nil {
				t.Fatalf("%+v, %v", r.Images[0], err)
			}
		}
		if s, err = Open([]image.Ref{ref}, Options{open: w.open}); err != nil {
			t.Fatal(err)
		}
		if len(s.bitmaps) != len(want) || len(s.unknown) != 1 || string(s.unknown[0].Data) != "odd length!" {
			t.Fatalf("round %d: %d bitmaps, sections %v", round, len(s.bitmaps), s.unknown)
		}
		for i, m := range s.bitmaps {
			if !slices.Equal(setOf(m), want[i]) || m.ID[0] != byte(m.Granularity) {
				t.Errorf("round %d: bitmap %d differs", round, i)
			}
		}
	}
}

// TestBitmapIgnored: software that knows no extension leaves in_use 0, and
// with it whatever ext_off says is void.
func TestBitmapIgnored(t *testing.T) {
	im := newSmallImage(2).withBitmap()
	im.put32(44, 0)
	ref := writeSmall(t, im)
	mustCheck(t, ploop.ExitLeaks, ref)
	if i, err := ploop.ReadInfo(ref); err != nil || !i.Extension.Ignored || i.Extension.Bitmaps != nil {
		t.Errorf("%+v, %v", i.Extension, err)
	}
	r, err := ploop.Check([]image.Ref{ref}, ploop.CheckOptions{Repair: true})
	if err != nil || r.ExitCode() != ploop.ExitClean || r.Images[0].Repaired != 2 {
		t.Errorf("%+v, %v", r.Images[0], err)
	}
	b, _ := os.ReadFile(ref.Path)
	if binary.LittleEndian.Uint64(b[56:]) != 0 {
		t.Error("ext_off still points into what was cut off")
	}
	mustCheck(t, ploop.ExitClean, ref)
}

// TestNecessarySection: what must be understood keeps an image from being
// written, not from being read.
func TestNecessarySection(t *testing.T) {
	ref := writeSmall(t, newSmallImage(2).withBitmap(format.Section{Magic: 3, Flags: format.SectionNeeded | format.SectionTransit}))
	before, _ := os.ReadFile(ref.Path)
	_, err := Open([]image.Ref{ref}, Options{})
	WantLine(t, err, image.ErrUnsupported, ref.Path, "0x3")
	if disk := readDisk(t, ref); disk[0] != 1 {
		t.Error("it reads as something else")
	}
	if now, _ := os.ReadFile(ref.Path); !bytes.Equal(now, before) {
		t.Error("the file was changed")
	}
}

// TestBitmapUnreadable: a bitmap that can't be read now isn't thrown away.
func TestBitmapUnreadable(t *testing.T) {
	w := newSimWorld()
	refs := []image.Ref{w.add("a", newSmallImage(2).withBitmap().b)}
	end := int64(len(w.files["a"].now))
	w.fault = func(_ *simFile, kind string, off, n int64) simFault {
		if kind == "read" && off == end-4096 {
			return simFault{err: syscall.EIO}
		}
		return simFault{}
	}
	before := slices.Clone(w.files["a"].now)
	if _, err := Open(refs, Options{open: w.open}); !errors.Is(err, syscall.EIO) {
		t.Errorf("opens for writing: %v", err)
	}
	if !bytes.Equal(w.files["a"].now, before) {
		t.Error("the file was changed")
	}
	if s, err := Open(refs, Options{ReadOnly: true, open: w.open}); err != nil {
		t.Error(err)
	} else {
		s.Close()
	}
}

// TestInteropBitmap: QEMU reads an image whose bitmap we have carried along.
func TestInteropBitmap(t *testing.T) {
	ref := writeSmall(t, newSmallImage(2).withBitmap())
	disk := scatter(t, []image.Ref{ref}, rand.New(rand.NewPCG(8, 8)), 3)
	if len(bitmapsOf(t, ref)) != 1 {
		t.Fatal("the bitmap is gone")
	}
	before, _ := os.ReadFile(ref.Path)
	wantSame(t, disk, "driver=parallels,read-only=on,file.filename="+ref.Path, ref)
	if now, _ := os.ReadFile(ref.Path); !bytes.Equal(now, before) {
		t.Error("QEMU changed the file by reading it")
	}
}

// TestBitsBehindTheEnd say nothing, and are gone after a write.
func TestBitsBehindTheEnd(t *testing.T) {
	im := newSmallImage(2).withBitmap()
	bits := im.b[len(im.b)-2*smallCluster*image.SectorSize:]
	for i := smallSectors / 8; i < 100; i++ {
		bits[i] = 0xff
	}
	ref := writeSmall(t, im)
	mustCheck(t, ploop.ExitClean, ref)
	if b := bitmapsOf(t, ref); b[0].Dirty() != 3 {
		t.Errorf("%d bits", b[0].Dirty())
	}
	if err := mustOpen(t, []image.Ref{ref}, Options{}).Close(); err != nil {
		t.Fatal(err)
	}
	b, _ := os.ReadFile(ref.Path)
	if bits := b[len(b)-2*smallCluster*image.SectorSize:]; bits[0] != 0b101 || bits[39] != 0x80 || !storage.AllZero(bits[40:100]) {
		t.Errorf("%x", bits[:100])
	}
	mustCheck(t, ploop.ExitClean, ref)
}

// TestFreshBitmap: the ploop tool makes a bitmap without any L1; what is missing
// is clear.
func TestFreshBitmap(t *testing.T) {
	im := newSmallImage(2).withBitmap()
	at := im.ext()[format.ExtHeader+format.SectionHeader:]
	binary.LittleEndian.PutUint32(at[24:], 3) // the last granule is short
	clear(at[28 : format.BitmapHeader+8])
	binary.LittleEndian.PutUint32(im.ext()[format.ExtHeader+16:], format.BitmapHeader)
	im.sum()
	im.b = slices.Delete(im.b, len(im.b)-2*smallCluster*image.SectorSize, len(im.b)-smallCluster*image.SectorSize)
	im.put64(56, uint64(len(im.b)/image.SectorSize-smallCluster))
	ref := writeSmall(t, im)
	mustCheck(t, ploop.ExitClean, ref)
	if i, err := ploop.ReadInfo(ref); err != nil || len(i.Extension.Bitmaps) != 1 || i.Extension.Bitmaps[0].Dirty != 0 {
		t.Fatalf("%+v, %v", i, err)
	}
	s := mustOpen(t, []image.Ref{ref}, Options{})
	if _, err := s.WriteAt(make([]byte, image.SectorSize), 0); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	mustCheck(t, ploop.ExitClean, ref)
	if b := bitmapsOf(t, ref); len(b) != 1 || b[0].Dirty() != 1 || b[0].Bits[0] != 1 {
		t.Errorf("%+v", b)
	}
}

// TestWhyIgnored: an extension isn't valid while its image is open, which is
// another matter than software that doesn't know it.
func TestWhyIgnored(t *testing.T) {
	for inUse, want := range map[uint32]string{format.InUseDirty: ploop.IgnoredOpen, 0: ploop.IgnoredUnknown, format.InUseClosed: ""} {
		im := newSmallImage(2).withBitmap()
		im.put32(44, inUse)
		i, err := ploop.ReadInfo(writeSmall(t, im))
		if err != nil || i.Extension.Reason != want || i.Extension.Ignored != (want != "") {
			t.Errorf("%#x: %+v, %v", inUse, i.Extension, err)
		}
	}
}
