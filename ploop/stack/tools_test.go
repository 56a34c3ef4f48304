package stack

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"holdfast/ploop"
	"holdfast/ploop/image"
)

// memDir is a directory in memory where the machine has one: these tests do
// not test the disk.
func memDir(t testing.TB) string {
	t.Helper()
	d, err := os.MkdirTemp("/dev/shm", "holdfast")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(d) })
	return d
}

func mustCreate(t testing.TB, path string, o ploop.CreateOptions) image.Ref {
	t.Helper()
	o.AnyClusterSize = true // small ones make tests quick
	if err := ploop.Create(path, o); err != nil {
		t.Fatal(err)
	}
	return image.Ref{Path: path}
}

// mustCheck wants a verdict and gives the report.
func mustCheck(t testing.TB, code int, refs ...image.Ref) *ploop.CheckReport {
	t.Helper()
	r, err := ploop.Check(refs, ploop.CheckOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if r.ExitCode() != code {
		b, _ := json.MarshalIndent(r, "", " ")
		t.Fatalf("check of %v says %d, want %d:\n%s", refs, r.ExitCode(), code, b)
	}
	return r
}

// scatter writes random pieces through the engine into a stack and returns
// what its disk holds then.
func scatter(t testing.TB, refs []image.Ref, rng *rand.Rand, n int) []byte {
	t.Helper()
	s := mustOpen(t, refs, Options{})
	disk := make([]byte, s.Size())
	if _, err := s.ReadAt(disk, 0); err != nil {
		t.Fatal(err)
	}
	for range n {
		off := rng.Int64N(s.Size()/image.SectorSize) * image.SectorSize
		k := min((1+rng.Int64N(200))*image.SectorSize, s.Size()-off)
		for i := range disk[off : off+k] {
			disk[off+int64(i)] = byte(rng.Uint32())
		}
		if _, err := s.WriteAt(disk[off:off+k], off); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return disk
}

func readDisk(t testing.TB, refs ...image.Ref) []byte {
	t.Helper()
	s := mustOpen(t, refs, Options{ReadOnly: true})
	defer s.Close()
	b := make([]byte, s.Size())
	if _, err := s.ReadAt(b, 0); err != nil {
		t.Fatal(err)
	}
	return b
}

func TestCreate(t *testing.T) {
	dir := memDir(t)
	for name, o := range map[string]ploop.CreateOptions{
		"default":      {Size: 10 << 20},
		"odd size":     {Size: 10<<20 + 512},
		"v1":           {Size: 10 << 20, Version: 1},
		"63 sectors":   {Size: 10 << 20, Version: 1, ClusterSize: 63 * 512},
		"v2 1 sector":  {Size: 1 << 20, ClusterSize: 512},
		"one sector":   {Size: 512},
		"64M clusters": {Size: 1 << 40, ClusterSize: 64 << 20},
		"16T":          {Size: 16 << 40},
		"1.9T v1":      {Size: 1900 << 30, Version: 1},
	} {
		t.Run(name, func(t *testing.T) {
			ref := mustCreate(t, filepath.Join(dir, name), o)
			mustCheck(t, ploop.ExitClean, ref)
			i, err := ploop.ReadInfo(ref)
			if err != nil {
				t.Fatal(err)
			}
			version, cluster := max(o.Version, 1), o.ClusterSize
			if o.Version == 0 {
				version = 2
			}
			if cluster == 0 {
				cluster = 1 << 20
			}
			if i.Size != o.Size || i.Format != ploop.Format(version) || i.ClusterSize != cluster || i.Allocated != 0 || i.InUse || i.Locked {
				t.Errorf("info says %+v", i)
			}
			// The one place of data that dm-ploop takes.
			want := (64 + 4*int64(i.BATEntries) + cluster - 1) / cluster * cluster
			if i.DataOffset != want || i.FileSize != want {
				t.Errorf("data at %d of a file of %d, want both to be %d", i.DataOffset, i.FileSize, want)
			}
			o.AnyClusterSize = true
			if err := ploop.Create(ref.Path, o); !errors.Is(err, fs.ErrExist) {
				t.Errorf("a second Create says %v", err)
			}
		})
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 9 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
}

func TestCreateRefuses(t *testing.T) {
	dir := memDir(t)
	big := mustCreate(t, filepath.Join(dir, "big"), ploop.CreateOptions{Size: 64 << 20, ClusterSize: 64 << 10})
	for name, c := range map[string]struct {
		o     ploop.CreateOptions
		class error
	}{
		"no size":             {ploop.CreateOptions{}, image.ErrGeometry},
		"negative":            {ploop.CreateOptions{Size: -512}, image.ErrGeometry},
		"part of a sector":    {ploop.CreateOptions{Size: 1000}, image.ErrGeometry},
		"odd cluster":         {ploop.CreateOptions{Size: 1 << 20, ClusterSize: 1000}, image.ErrGeometry},
		"small cluster":       {ploop.CreateOptions{Size: 1 << 20, ClusterSize: 16 << 10}, image.ErrUncommon},
		"large cluster":       {ploop.CreateOptions{Size: 1 << 20, ClusterSize: 128 << 20}, image.ErrUncommon},
		"cluster of 63":       {ploop.CreateOptions{Size: 1 << 20, ClusterSize: 63 * 512}, image.ErrUncommon},
		"negative cluster":    {ploop.CreateOptions{Size: 1 << 20, ClusterSize: -512}, image.ErrGeometry},
		"huge cluster":        {ploop.CreateOptions{Size: 1 << 20, ClusterSize: 2 << 30}, image.ErrLimit},
		"too many clusters":   {ploop.CreateOptions{Size: 1 << 40, ClusterSize: 512, AnyClusterSize: true}, image.ErrLimit},
		"v1 too large":        {ploop.CreateOptions{Size: 2 << 40, Version: 1}, image.ErrLimit},
		"v3":                  {ploop.CreateOptions{Size: 1 << 20, Version: 3}, image.ErrUnsupported},
		"below its backing":   {ploop.CreateOptions{Size: 1 << 20, Backing: &big}, image.ErrGeometry},
		"cluster of its own":  {ploop.CreateOptions{ClusterSize: 1 << 20, Backing: &big}, image.ErrGeometry},
		"backing isn't there": {ploop.CreateOptions{Backing: &image.Ref{Path: filepath.Join(dir, "none")}}, fs.ErrNotExist},
	} {
		err := ploop.Create(filepath.Join(dir, "x"), c.o)
		if !errors.Is(err, c.class) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v, want %v", name, err, c.class)
		}
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 1 {
		t.Errorf("left behind: %v", entries)
	}
}

func TestCreateOverBacking(t *testing.T) {
	dir := memDir(t)
	raw := filepath.Join(dir, "raw")
	if err := os.WriteFile(raw, make([]byte, 3<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	base := mustCreate(t, filepath.Join(dir, "base"), ploop.CreateOptions{Backing: &image.Ref{Path: raw, Raw: true}, ClusterSize: 64 << 10})
	top := mustCreate(t, filepath.Join(dir, "top"), ploop.CreateOptions{Backing: &base, Size: 5 << 20})
	refs := []image.Ref{{Path: raw, Raw: true}, base, top}
	mustCheck(t, ploop.ExitClean, refs...)
	s := mustOpen(t, refs, Options{})
	if s.Size() != 5<<20 || s.ClusterSize() != 64<<10 {
		t.Errorf("size %d, clusters of %d", s.Size(), s.ClusterSize())
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestConvert(t *testing.T) {
	dir := memDir(t)
	rng := rand.New(rand.NewPCG(1, 2))
	src := mustCreate(t, filepath.Join(dir, "src"), ploop.CreateOptions{Size: 9<<20 + 1536, ClusterSize: 64 << 10})
	disk := scatter(t, []image.Ref{src}, rng, 20)
	steps := []struct {
		name string
		o    ploop.ConvertOptions
	}{
		{"raw", ploop.ConvertOptions{To: ploop.FormatRaw}},
		{"v2", ploop.ConvertOptions{To: ploop.FormatV2}},
		{"v1 63", ploop.ConvertOptions{To: ploop.FormatV1, ClusterSize: 63 * 512}},
		{"v2 1 sector", ploop.ConvertOptions{To: ploop.FormatV2, ClusterSize: 512}},
		{"v2 8M", ploop.ConvertOptions{To: ploop.FormatV2, ClusterSize: 8 << 20}},
		{"raw again", ploop.ConvertOptions{To: ploop.FormatRaw}},
	}
	for _, st := range steps {
		dst := image.Ref{Path: filepath.Join(dir, st.name), Raw: st.o.To == ploop.FormatRaw}
		var last, total int64
		st.o.Progress = func(done, all int64) {
			if done < last {
				t.Errorf("%s: progress goes back from %d to %d", st.name, last, done)
			}
			last, total = done, all
		}
		st.o.AnyClusterSize = true
		if err := ploop.Convert(context.Background(), src, dst.Path, st.o); err != nil {
			t.Fatalf("%s: %v", st.name, err)
		}
		if last != total || total != int64(len(disk)) {
			t.Errorf("%s: progress ends at %d of %d", st.name, last, total)
		}
		if !bytes.Equal(readDisk(t, dst), disk) {
			t.Errorf("%s: differs", st.name)
		}
		mustCheck(t, ploop.ExitClean, dst)
		if err := ploop.Convert(context.Background(), src, dst.Path, st.o); !errors.Is(err, fs.ErrExist) {
			t.Errorf("%s: over an existing file: %v", st.name, err)
		}
		src = dst
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := ploop.Convert(ctx, src, filepath.Join(dir, "never"), ploop.ConvertOptions{To: ploop.FormatV2}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 1+len(steps) {
		t.Errorf("left behind: %v", entries)
	}
}

// TestConvertSparse converts a terabyte that holds two sectors.
func TestConvertSparse(t *testing.T) {
	dir := t.TempDir() // tmpfs may allocate by two megabytes
	raw := image.Ref{Path: filepath.Join(dir, "raw"), Raw: true}
	f, err := os.Create(raw.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(1 << 40); err != nil {
		t.Fatal(err)
	}
	mark := bytes.Repeat([]byte("here"), 128)
	places := []int64{5 << 30, 1<<40 - 512}
	for _, off := range places {
		if _, err := f.WriteAt(mark, off); err != nil {
			t.Fatal(err)
		}
	}
	img := image.Ref{Path: filepath.Join(dir, "img")}
	if err := ploop.Convert(context.Background(), raw, img.Path, ploop.ConvertOptions{To: ploop.FormatV2}); err != nil {
		t.Fatal(err)
	}
	i, err := ploop.ReadInfo(img)
	if err != nil || i.Allocated != 2 || i.DiskUsage > 256<<10 {
		t.Errorf("%+v, %v", i, err)
	}
	s := mustOpen(t, []image.Ref{img}, Options{ReadOnly: true})
	defer s.Close()
	got := make([]byte, 512)
	for _, off := range places {
		if _, err := s.ReadAt(got, off); err != nil || !bytes.Equal(got, mark) {
			t.Errorf("at %d: %v, %q", off, err, got[:8])
		}
	}
}

func TestMap(t *testing.T) {
	dir := memDir(t)
	const c = 64 << 10
	base := mustCreate(t, filepath.Join(dir, "base"), ploop.CreateOptions{Size: 10 * c, ClusterSize: c})
	top := mustCreate(t, filepath.Join(dir, "top"), ploop.CreateOptions{Size: 12*c + 512, Backing: &base})
	write := func(refs []image.Ref, off, n int64) {
		s := mustOpen(t, refs, Options{})
		if _, err := s.WriteAt(bytes.Repeat([]byte{1}, int(n)), off); err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	write([]image.Ref{base}, 2*c, 3*c)
	write([]image.Ref{base, top}, 4*c, 512)
	write([]image.Ref{base, top}, 12*c, 512)
	var got []image.Extent
	if err := ploop.Map([]image.Ref{base, top}, func(x image.Extent) error {
		got = append(got, x)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	want := []image.Extent{
		{Start: 0, Length: 2 * c, Level: -1},
		{Start: 2 * c, Length: 2 * c, Data: true, Level: 0, File: base.Path, Offset: 1 * c},
		{Start: 4 * c, Length: c, Data: true, Level: 1, File: top.Path, Offset: 1 * c},
		{Start: 5 * c, Length: 7 * c, Level: -1},
		{Start: 12 * c, Length: 512, Data: true, Level: 1, File: top.Path, Offset: 2 * c},
	}
	if len(got) != len(want) {
		t.Fatalf("extents %v, want %v", got, want)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("extent %d is %v, want %v", i, got[i], want[i])
		}
	}
	stop := errors.New("enough")
	if err := ploop.Map([]image.Ref{base, top}, func(image.Extent) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("stopped by %v", err)
	}
}
