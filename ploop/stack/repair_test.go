package stack

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"holdfast/ploop"
	"holdfast/ploop/image"
	"holdfast/ploop/internal/bundle"
	"holdfast/ploop/internal/format"
)

// fileOf writes a small image and gives its name and content.
func fileOf(t testing.TB, change func(im *smallImage)) (image.Ref, []byte) {
	t.Helper()
	im := newSmallImage(2)
	change(im)
	return writeSmall(t, im), im.b
}

func mustRepair(t testing.TB, o ploop.CheckOptions, refs ...image.Ref) *ploop.CheckReport {
	t.Helper()
	o.Repair = true
	r, err := ploop.Check(refs, o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestRepairLengthens: half a cluster that is in the file stays, and the report
// says which half isn't; a last cluster that has all that the disk needs is no
// loss.
func TestRepairLengthens(t *testing.T) {
	const half = smallCluster * image.SectorSize / 2
	ref, before := fileOf(t, func(im *smallImage) { im.b = im.b[:len(im.b)-half] })
	r := mustRepair(t, ploop.CheckOptions{}, ref)
	c := r.Images[0]
	want := []image.Range{{Start: 39*2*half + half, Length: half}}
	if r.ExitCode() != ploop.ExitCorrupt || !slices.Equal(c.Lost, want) || c.LostBytes != half || !c.Findings[0].Repaired {
		t.Errorf("repair says %d, %+v", r.ExitCode(), c)
	}
	after, _ := os.ReadFile(ref.Path)
	if len(after) != len(before)+half || !bytes.Equal(after[format.HeaderSize:len(before)], before[format.HeaderSize:]) {
		t.Errorf("%d bytes became %d", len(before), len(after))
	}
	mustCheck(t, ploop.ExitClean, ref)
	disk := readDisk(t, ref)
	if disk[39*2*half] != 3 || disk[len(disk)-half-1] != 3 || disk[len(disk)-half] != 0 {
		t.Error("what is in the file doesn't read")
	}

	ref, before = fileOf(t, func(im *smallImage) {
		im.put64(36, smallSectors-smallCluster/2)
		im.b = im.b[:len(im.b)-half]
	})
	if r := mustCheck(t, ploop.ExitCorrupt, ref); r.Images[0].LostBytes != 0 {
		t.Errorf("%+v", r.Images[0])
	}
	if r := mustRepair(t, ploop.CheckOptions{}, ref); r.ExitCode() != ploop.ExitClean || r.Images[0].LostBytes != 0 {
		t.Errorf("repair says %d, %+v", r.ExitCode(), r.Images[0])
	}
	if after, _ := os.ReadFile(ref.Path); len(after) != len(before)+half || !bytes.Equal(after[format.HeaderSize:len(before)], before[format.HeaderSize:]) {
		t.Errorf("%d bytes became %d", len(before), len(after))
	}
	if disk := readDisk(t, ref); disk[len(disk)-1] != 3 {
		t.Error("the disk's end doesn't read")
	}
}

// TestRepairKeepsTheTail: behind a bad entry nothing is cut off, as it may be
// what the entry meant.
func TestRepairKeepsTheTail(t *testing.T) {
	ref, before := fileOf(t, func(im *smallImage) {
		im.entry(39, 1000) // its cluster is the last one
		im.put32(44, format.InUseDirty)
	})
	r := mustRepair(t, ploop.CheckOptions{}, ref)
	if c := r.Images[0]; r.ExitCode() != ploop.ExitCorrupt || c.Leaks != 1 || c.LostBytes != smallCluster*image.SectorSize {
		t.Errorf("repair says %d, %+v", r.ExitCode(), c)
	}
	after, _ := os.ReadFile(ref.Path)
	if len(after) != len(before) || after[len(after)-1] != 3 {
		t.Errorf("%d bytes became %d", len(before), len(after))
	}
	mustCheck(t, ploop.ExitLeaks, ref)
}

// TestRepairOfOlderData: over another image a lost cluster stays an error, until
// it is said that older data may show.
func TestRepairOfOlderData(t *testing.T) {
	stack := func(t *testing.T) (base, top image.Ref) {
		base, _ = fileOf(t, func(im *smallImage) { im.entry(7, 2) })
		top, _ = fileOf(t, func(im *smallImage) { im.entry(7, 99); im.put32(44, format.InUseDirty) })
		return base, top
	}
	where := map[string]func(t *testing.T) (refs []image.Ref, top image.Ref){
		"given as a stack": func(t *testing.T) ([]image.Ref, image.Ref) {
			base, top := stack(t)
			return []image.Ref{base, top}, top
		},
		"by its descriptor": func(t *testing.T) ([]image.Ref, image.Ref) {
			base, top := stack(t)
			writeDescriptor(t, filepath.Dir(top.Path), base.Path, top.Path)
			return []image.Ref{top}, top
		},
	}
	for name, make := range where {
		t.Run(name, func(t *testing.T) {
			refs, top := make(t)
			before, _ := os.ReadFile(top.Path)
			r := mustRepair(t, ploop.CheckOptions{}, refs...)
			c := r.Images[len(r.Images)-1]
			if f := c.Findings[1]; r.ExitCode() != ploop.ExitCorrupt || f.Needs != ploop.AllowOlderData || f.Repaired || c.Opens() {
				t.Errorf("repair says %d, %+v", r.ExitCode(), c)
			}
			if now, _ := os.ReadFile(top.Path); !bytes.Equal(now, before) {
				t.Error("the image was changed")
			}
			r = mustRepair(t, ploop.CheckOptions{Allow: ploop.Allowance{OlderData: true}}, refs...)
			if c := r.Images[len(r.Images)-1]; r.ExitCode() != ploop.ExitCorrupt || c.Repaired != 2 || c.LostBytes == 0 || !c.Opens() {
				t.Errorf("repair says %d, %+v", r.ExitCode(), c)
			}
			if r, err := ploop.Check(refs, ploop.CheckOptions{}); err != nil || !r.Images[len(r.Images)-1].Opens() {
				t.Errorf("%v, %+v", err, r)
			}
		})
	}
}

// writeDescriptor writes a bundle's DiskDescriptor.xml for a stack, base first.
// customTop is the GUID of the top where a descriptor has no TopGUID.
const customTop = "{5fbaabe3-6958-40ff-92a7-860e329aab41}"

func writeDescriptor(t testing.TB, dir string, files ...string) {
	t.Helper()
	images, shots, parent := "", "", bundle.NoParent
	for i, f := range files {
		guid := fmt.Sprintf("{00000000-0000-0000-0000-%012d}", i+1)
		if i == len(files)-1 {
			guid = customTop
		}
		images += fmt.Sprintf("<Image><GUID>%s</GUID><Type>Compressed</Type><File>%s</File></Image>", guid, f)
		shots += fmt.Sprintf("<Shot><GUID>%s</GUID><ParentGUID>%s</ParentGUID></Shot>", guid, parent)
		parent = guid
	}
	xml := `<?xml version="1.0"?><Parallels_disk_image><Disk_Parameters><Disk_size>320</Disk_size></Disk_Parameters>` +
		`<StorageData><Storage><Start>0</Start><End>320</End><Blocksize>8</Blocksize>` + images + `</Storage></StorageData>` +
		`<Snapshots><TopGUID>` + customTop + `</TopGUID>` + shots + `</Snapshots></Parallels_disk_image>`
	if err := os.WriteFile(filepath.Join(dir, bundle.DescriptorName), []byte(xml), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestRepairBeyondDisk: a cluster behind the disk's end stays, as the size may
// be what is wrong; entries that lead nowhere go.
func TestRepairBeyondDisk(t *testing.T) {
	ref, before := fileOf(t, func(im *smallImage) { im.put64(36, smallSectors-smallCluster) })
	r := mustRepair(t, ploop.CheckOptions{}, ref)
	if f := r.Images[0].Findings[0]; r.ExitCode() != ploop.ExitCorrupt || f.Kind != ploop.FindingBeyondDisk || f.Needs != ploop.AllowBeyondDisk || f.Repaired {
		t.Errorf("repair says %d, %+v", r.ExitCode(), f)
	}
	if now, _ := os.ReadFile(ref.Path); !bytes.Equal(now, before) {
		t.Error("the image was changed")
	}
	r = mustRepair(t, ploop.CheckOptions{Allow: ploop.Allowance{BeyondDisk: true}}, ref)
	if now, _ := os.ReadFile(ref.Path); r.ExitCode() != ploop.ExitClean && len(now) != len(before) {
		t.Errorf("repair says %d, and %d bytes became %d", r.ExitCode(), len(before), len(now))
	}
	mustOpen(t, []image.Ref{ref}, Options{}).Close()

	ref, _ = fileOf(t, func(im *smallImage) { im.put64(36, smallSectors-smallCluster); im.entry(39, 12345) })
	if r := mustRepair(t, ploop.CheckOptions{}, ref); !r.Images[0].Findings[0].Repaired || r.Images[0].LostBytes != 0 {
		t.Errorf("%+v", r.Images[0])
	}
}

// TestRepairDataOffset writes the guess only if it is allowed and all agrees.
func TestRepairDataOffset(t *testing.T) {
	for _, off := range []uint32{0, 1, 7, 9, 1<<32 - 1, 16, 1 << 20} {
		ref, before := fileOf(t, func(im *smallImage) { im.put32(48, off) })
		want := newSmallImage(2).b
		r := mustRepair(t, ploop.CheckOptions{}, ref)
		c := r.Images[0]
		if f := c.Findings[0]; r.ExitCode() != ploop.ExitCorrupt || f.Kind != ploop.FindingHeader || f.Needs != ploop.AllowDataOffset || c.Guess == "" || c.Allocated != 3 {
			t.Errorf("%d: repair says %d, %+v", off, r.ExitCode(), c)
		}
		if now, _ := os.ReadFile(ref.Path); !bytes.Equal(now, before) {
			t.Errorf("%d: the image was changed", off)
		}
		r = mustRepair(t, ploop.CheckOptions{Allow: ploop.Allowance{DataOffset: true}}, ref)
		if now, _ := os.ReadFile(ref.Path); r.ExitCode() != ploop.ExitClean || !bytes.Equal(now, want) {
			t.Errorf("%d: repair says %d", off, r.ExitCode())
		}
		// With an entry that doesn't agree nothing is written.
		ref, before = fileOf(t, func(im *smallImage) { im.put32(48, off); im.entry(5, 1) })
		r = mustRepair(t, ploop.CheckOptions{Allow: ploop.Allowance{DataOffset: true}}, ref)
		if now, _ := os.ReadFile(ref.Path); r.ExitCode() != ploop.ExitCorrupt || !bytes.Equal(now, before) {
			t.Errorf("%d: repair of what doesn't agree says %d", off, r.ExitCode())
		}
	}
}

// damageAtRandom does some of what happens to images.
func damageAtRandom(im *smallImage, version int, rng *rand.Rand) {
	for range 1 + rng.IntN(3) {
		switch rng.IntN(6) {
		case 0:
			im.b = im.b[:max(format.HeaderSize+4*40, len(im.b)-rng.IntN(9000))]
		case 1:
			im.entry(rng.IntN(40), uint32(rng.IntN(6)*map[int]int{1: smallCluster, 2: 1}[version]))
		case 2:
			im.entry(rng.IntN(40), rng.Uint32()>>rng.IntN(32))
		case 3:
			im.b = append(im.b, bytes.Repeat([]byte{0xee}, rng.IntN(9000))...)
		case 4:
			im.put32(44, format.InUseDirty)
		case 5:
			im.put64(36, smallSectors-uint64(rng.IntN(3*smallCluster)))
		}
	}
}

// TestRepairGivesNothingUp: whatever is wrong, all that could be read before a
// repair reads the same after it, and where an entry was bad no byte of data is
// gone from the file.
func TestRepairGivesNothingUp(t *testing.T) {
	rng := rand.New(rand.NewPCG(2, 10))
	repaired, lost := 0, 0
	for i := range 1000 {
		version := 1 + i%2
		im := newSmallImage(version)
		damageAtRandom(im, version, rng)
		w := newSimWorld()
		ref := w.add("x", im.b)
		var h format.Header
		bad := 0 // entries, of which nobody knows what they mean
		read := func() (have map[int][]byte, err error) {
			s, err := Open([]image.Ref{ref}, Options{ReadOnly: true, Damaged: true, open: w.open})
			if err != nil {
				return nil, err
			}
			defer s.Close()
			h, bad = s.deltas[0].Header, 0
			if _, err := s.deltas[0].ScanBAT(func(uint64, uint64) {}, func(_ uint64, _ uint32, p format.Problem) error {
				if p != format.EntryCut {
					bad++
				}
				return nil
			}); err != nil {
				return nil, err
			}
			have = map[int][]byte{}
			for k := range int(s.Size() / image.SectorSize) {
				p := make([]byte, image.SectorSize)
				if _, err := s.ReadAt(p, int64(k)*image.SectorSize); err == nil {
					have[k] = p
				} else if !errors.Is(err, image.ErrDamaged) {
					t.Fatalf("sector %d: %v", k, err)
				}
			}
			return have, nil
		}
		before, err := read()
		if err != nil {
			t.Fatalf("image %d: %v", i, err)
		}
		head, badBefore, sectors := int(h.DataStart())*image.SectorSize, bad, int64(h.Sectors)
		first, err := ploop.CheckOn([]image.Ref{ref}, ploop.CheckOptions{}, w.open)
		if err != nil {
			t.Fatal(err)
		}
		r, err := ploop.CheckOn([]image.Ref{ref}, ploop.CheckOptions{Repair: true}, w.open)
		if err != nil {
			t.Fatal(err)
		}
		after, err := read()
		if err != nil {
			t.Fatal(err)
		}
		for k, p := range before {
			if !bytes.Equal(after[k], p) {
				t.Fatalf("image %d: sector %d read as %x, and after the repair as %x", i, k, p[:4], after[k])
			}
		}
		c, now := first.Images[0], w.files["x"].now
		if badBefore > 0 {
			if len(now) < len(im.b) || len(im.b) > head && !bytes.Equal(now[head:len(im.b)], im.b[head:]) {
				t.Fatalf("image %d: the file had %d bytes and has %d", i, len(im.b), len(now))
			}
		}
		missing := sectors - int64(len(before))
		switch {
		case c.LostBytes > 0 && r.ExitCode() != ploop.ExitCorrupt:
			t.Fatalf("image %d: %d bytes are lost, and repair says %d", i, c.LostBytes, r.ExitCode())
		case missing == 0 && c.LostBytes > 0 || c.LostBytes/image.SectorSize > missing:
			t.Fatalf("image %d: %d bytes are said to be lost, %d sectors can't be read", i, c.LostBytes, missing)
		}
		if r.Images[0].Repaired > 0 {
			repaired++
		}
		if c.LostBytes > 0 {
			lost++
		}
	}
	if repaired < 100 || lost < 100 {
		t.Errorf("only %d were repaired, and of %d something was lost", repaired, lost)
	}
}

// TestRepairPowerCut: whatever a power cut leaves of a repair can be repaired.
func TestRepairPowerCut(t *testing.T) {
	im := newSmallImage(2).withBitmap()
	im.ext()[100]++ // damaged
	im.entry(5, 1000)
	im.entry(39, uint32(len(im.b)/image.SectorSize/smallCluster)) // the last, cut
	im.b = append(im.b, bytes.Repeat([]byte{7}, 1000)...)
	for cut := 1; ; cut++ {
		w := newSimWorld()
		ref := w.add("x", im.b)
		var left []byte
		n := 0
		w.event = func() {
			if n++; n == cut {
				left = slices.Clone(w.files["x"].durable)
			}
		}
		if _, err := ploop.CheckOn([]image.Ref{ref}, ploop.CheckOptions{Repair: true}, w.open); err != nil {
			t.Fatal(err)
		}
		if left == nil {
			if cut < 5 {
				t.Errorf("a repair of %d events", n)
			}
			return
		}
		w.event = nil
		ref = w.add("y", left)
		if _, err := ploop.CheckOn([]image.Ref{ref}, ploop.CheckOptions{Repair: true}, w.open); err != nil {
			t.Fatal(err)
		}
		s, err := Open([]image.Ref{ref}, Options{open: w.open})
		if err != nil {
			t.Fatalf("cut %d: %v", cut, err)
		}
		p := make([]byte, image.SectorSize)
		if _, err := s.ReadAt(p, 39*smallCluster*image.SectorSize); err != nil || p[0] != 7 {
			t.Errorf("cut %d: reads %d, %v", cut, p[0], err)
		}
		s.Close()
	}
}

// TestExitCodeCounts: findings behind the end of the list count as well.
func TestExitCodeCounts(t *testing.T) {
	h, err := format.NewHeader(2, 3000*smallCluster, smallCluster)
	if err != nil {
		t.Fatal(err)
	}
	h.Sectors -= 1500 * smallCluster // half of the entries are behind the end
	b := make([]byte, h.SectorAt(2)*image.SectorSize)
	copy(b, h.Encode())
	for i := 1500; i < 3000; i++ { // that lead nowhere, and can be cleared
		binary.LittleEndian.PutUint32(b[format.HeaderSize+4*i:], 1<<20)
	}
	v, _ := h.EntryOf(h.SectorAt(0))
	binary.LittleEndian.PutUint32(b[format.HeaderSize+4*2999:], v) // but one doesn't
	w := newSimWorld()
	ref := w.add("x", b)
	r, err := ploop.CheckOn([]image.Ref{ref}, ploop.CheckOptions{Repair: true}, w.open)
	if err != nil {
		t.Fatal(err)
	}
	c := r.Images[0]
	if len(c.Findings) != 1000 || c.Corruptions != 1500 || c.Repaired != 1499 || r.ExitCode() != ploop.ExitCorrupt {
		t.Errorf("%d findings of %d, %d repaired, exit %d", len(c.Findings), c.Corruptions, c.Repaired, r.ExitCode())
	}
}
