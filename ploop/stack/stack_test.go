package stack

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"holdfast/ploop/image"
	"holdfast/ploop/internal/format"
)

// makeImage writes an empty image the way the format says, without the
// package's own Create.
func makeImage(t testing.TB, path string, version int, clusterSectors uint32, sectors uint64) image.Ref {
	t.Helper()
	n := (sectors + uint64(clusterSectors) - 1) / uint64(clusterSectors)
	h := format.Header{Version: version, ClusterSectors: clusterSectors, BATEntries: uint32(n), Sectors: sectors}
	start := (h.BATEnd() + image.SectorSize - 1) / image.SectorSize
	if version == 2 {
		start = (start + int64(clusterSectors) - 1) / int64(clusterSectors) * int64(clusterSectors)
		h.DataOff = uint32(start)
	}
	b := make([]byte, start*image.SectorSize)
	copy(b, h.Encode())
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return image.Ref{Path: path}
}

func mustOpen(t testing.TB, refs []image.Ref, o Options) *Stack {
	t.Helper()
	o.Log = t.Logf
	s, err := Open(refs, o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestRandomOperations compares a stack with a plain byte slice under random
// reads, writes, zeroes and discards, over closing and opening and new deltas.
func TestRandomOperations(t *testing.T) {
	t.Parallel()
	for name, g := range map[string]struct {
		version int
		cluster uint32
		sectors uint64
		raw     bool
	}{
		"v2 4K":          {2, 8, 1000, false},
		"v1 63 sectors":  {1, 63, 63*40 + 5, false},
		"v2 1M":          {2, 2048, 2048*9 + 1, false},
		"v1 1 sector":    {1, 1, 300, false},
		"v2 over raw":    {2, 16, 16 * 50, true},
		"v1 64K over v2": {1, 128, 128 * 20, false},
	} {
		t.Run(name, func(t *testing.T) {
			dir := memDir(t)
			rng := rand.New(rand.NewPCG(7, uint64(g.cluster)))
			model := make([]byte, g.sectors*image.SectorSize)
			var refs []image.Ref
			if g.raw {
				for i := range model {
					model[i] = byte(rng.Uint32())
				}
				raw := filepath.Join(dir, "raw")
				if err := os.WriteFile(raw, model, 0o600); err != nil {
					t.Fatal(err)
				}
				refs = append(refs, image.Ref{Path: raw, Raw: true})
			}
			for level := range 3 {
				refs = append(refs, makeImage(t, filepath.Join(dir, string(rune('a'+level))), g.version, g.cluster, g.sectors))
				for range 3 {
					s := mustOpen(t, refs, Options{})
					n := 200
					if raceEnabled {
						n = 10 // the detector looks at each byte of the model
					}
					randomOperations(t, s, rng, model, n)
					if err := s.Close(); err != nil {
						t.Fatal(err)
					}
				}
			}
		})
	}
}

func randomOperations(t *testing.T, s *Stack, rng *rand.Rand, model []byte, n int) {
	t.Helper()
	sectors := int64(len(model) / image.SectorSize)
	for range n {
		off := rng.Int64N(sectors)
		k := 1 + rng.Int64N(min(sectors-off, 3*s.cluster/image.SectorSize+3))
		if rng.IntN(4) == 0 { // whole clusters
			c := s.cluster / image.SectorSize
			off = off / c * c
			k = min((k+c-1)/c*c, sectors-off)
		}
		off, k = off*image.SectorSize, k*image.SectorSize
		m := model[off : off+k]
		switch rng.IntN(8) {
		case 0, 1, 2:
			for i := range m {
				m[i] = byte(rng.Uint32())
			}
			if _, err := s.WriteAt(m, off); err != nil {
				t.Fatal(err)
			}
		case 3:
			if err := s.WriteZeroes(off, k, rng.IntN(2) == 0); err != nil {
				t.Fatal(err)
			}
			clear(m)
		case 4:
			clear(m)
			if _, err := s.WriteAt(m, off); err != nil {
				t.Fatal(err)
			}
		case 5:
			if err := s.Discard(off, k); err != nil {
				t.Fatal(err)
			}
			// What a discard leaves is the engine's choice; take it over.
			got := make([]byte, k)
			if _, err := s.ReadAt(got, off); err != nil {
				t.Fatal(err)
			}
			for i := range got {
				if got[i] != 0 && got[i] != m[i] {
					t.Fatalf("discard at %d+%d left something new at byte %d", off, k, i)
				}
			}
			copy(m, got)
		case 6:
			if err := s.Flush(); err != nil {
				t.Fatal(err)
			}
		default:
			got := make([]byte, k)
			if _, err := s.ReadAt(got, off); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, m) {
				t.Fatalf("read at %d+%d differs", off, k)
			}
		}
	}
	got := make([]byte, len(model))
	if _, err := s.ReadAt(got, 0); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, model) {
		t.Fatal("the whole disk differs")
	}
}
