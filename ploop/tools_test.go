package ploop

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

func mustCreate(t testing.TB, path string, o CreateOptions) ImageRef {
	t.Helper()
	o.AnyClusterSize = true // small ones make tests quick
	if err := Create(path, o); err != nil {
		t.Fatal(err)
	}
	return ImageRef{Path: path}
}

// mustCheck wants a verdict and gives the report.
func mustCheck(t testing.TB, code int, refs ...ImageRef) *CheckReport {
	t.Helper()
	r, err := Check(refs, CheckOptions{})
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
func scatter(t testing.TB, refs []ImageRef, rng *rand.Rand, n int) []byte {
	t.Helper()
	s := mustOpen(t, refs, Options{})
	disk := make([]byte, s.Size())
	if _, err := s.ReadAt(disk, 0); err != nil {
		t.Fatal(err)
	}
	for range n {
		off := rng.Int64N(s.Size()/SectorSize) * SectorSize
		k := min((1+rng.Int64N(200))*SectorSize, s.Size()-off)
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

func readDisk(t testing.TB, refs ...ImageRef) []byte {
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
	for name, o := range map[string]CreateOptions{
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
			mustCheck(t, ExitClean, ref)
			i, err := ReadInfo(ref)
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
			if i.Size != o.Size || i.Format != Format(version) || i.ClusterSize != cluster || i.Allocated != 0 || i.InUse || i.Locked {
				t.Errorf("info says %+v", i)
			}
			// The one place of data that dm-ploop takes.
			want := (64 + 4*int64(i.BATEntries) + cluster - 1) / cluster * cluster
			if i.DataOffset != want || i.FileSize != want {
				t.Errorf("data at %d of a file of %d, want both to be %d", i.DataOffset, i.FileSize, want)
			}
			o.AnyClusterSize = true
			if err := Create(ref.Path, o); !errors.Is(err, fs.ErrExist) {
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
	big := mustCreate(t, filepath.Join(dir, "big"), CreateOptions{Size: 64 << 20, ClusterSize: 64 << 10})
	for name, c := range map[string]struct {
		o     CreateOptions
		class error
	}{
		"no size":             {CreateOptions{}, ErrGeometry},
		"negative":            {CreateOptions{Size: -512}, ErrGeometry},
		"part of a sector":    {CreateOptions{Size: 1000}, ErrGeometry},
		"odd cluster":         {CreateOptions{Size: 1 << 20, ClusterSize: 1000}, ErrGeometry},
		"small cluster":       {CreateOptions{Size: 1 << 20, ClusterSize: 16 << 10}, ErrUncommon},
		"large cluster":       {CreateOptions{Size: 1 << 20, ClusterSize: 128 << 20}, ErrUncommon},
		"cluster of 63":       {CreateOptions{Size: 1 << 20, ClusterSize: 63 * 512}, ErrUncommon},
		"negative cluster":    {CreateOptions{Size: 1 << 20, ClusterSize: -512}, ErrGeometry},
		"huge cluster":        {CreateOptions{Size: 1 << 20, ClusterSize: 2 << 30}, ErrLimit},
		"too many clusters":   {CreateOptions{Size: 1 << 40, ClusterSize: 512, AnyClusterSize: true}, ErrLimit},
		"v1 too large":        {CreateOptions{Size: 2 << 40, Version: 1}, ErrLimit},
		"v3":                  {CreateOptions{Size: 1 << 20, Version: 3}, ErrUnsupported},
		"below its backing":   {CreateOptions{Size: 1 << 20, Backing: &big}, ErrGeometry},
		"cluster of its own":  {CreateOptions{ClusterSize: 1 << 20, Backing: &big}, ErrGeometry},
		"backing isn't there": {CreateOptions{Backing: &ImageRef{Path: filepath.Join(dir, "none")}}, fs.ErrNotExist},
	} {
		err := Create(filepath.Join(dir, "x"), c.o)
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
	base := mustCreate(t, filepath.Join(dir, "base"), CreateOptions{Backing: &ImageRef{Path: raw, Raw: true}, ClusterSize: 64 << 10})
	top := mustCreate(t, filepath.Join(dir, "top"), CreateOptions{Backing: &base, Size: 5 << 20})
	refs := []ImageRef{{Path: raw, Raw: true}, base, top}
	mustCheck(t, ExitClean, refs...)
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
	src := mustCreate(t, filepath.Join(dir, "src"), CreateOptions{Size: 9<<20 + 1536, ClusterSize: 64 << 10})
	disk := scatter(t, []ImageRef{src}, rng, 20)
	steps := []struct {
		name string
		o    ConvertOptions
	}{
		{"raw", ConvertOptions{To: FormatRaw}},
		{"v2", ConvertOptions{To: FormatV2}},
		{"v1 63", ConvertOptions{To: FormatV1, ClusterSize: 63 * 512}},
		{"v2 1 sector", ConvertOptions{To: FormatV2, ClusterSize: 512}},
		{"v2 8M", ConvertOptions{To: FormatV2, ClusterSize: 8 << 20}},
		{"raw again", ConvertOptions{To: FormatRaw}},
	}
	for _, st := range steps {
		dst := ImageRef{Path: filepath.Join(dir, st.name), Raw: st.o.To == FormatRaw}
		var last, total int64
		st.o.Progress = func(done, all int64) {
			if done < last {
				t.Errorf("%s: progress goes back from %d to %d", st.name, last, done)
			}
			last, total = done, all
		}
		st.o.AnyClusterSize = true
		if err := Convert(context.Background(), src, dst.Path, st.o); err != nil {
			t.Fatalf("%s: %v", st.name, err)
		}
		if last != total || total != int64(len(disk)) {
			t.Errorf("%s: progress ends at %d of %d", st.name, last, total)
		}
		if !bytes.Equal(readDisk(t, dst), disk) {
			t.Errorf("%s: differs", st.name)
		}
		mustCheck(t, ExitClean, dst)
		if err := Convert(context.Background(), src, dst.Path, st.o); !errors.Is(err, fs.ErrExist) {
			t.Errorf("%s: over an existing file: %v", st.name, err)
		}
		src = dst
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := Convert(ctx, src, filepath.Join(dir, "never"), ConvertOptions{To: FormatV2}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 1+len(steps) {
		t.Errorf("left behind: %v", entries)
	}
}

// TestConvertSparse converts a terabyte that holds two sectors.
func TestConvertSparse(t *testing.T) {
	dir := t.TempDir() // tmpfs may allocate by two megabytes
	raw := ImageRef{Path: filepath.Join(dir, "raw"), Raw: true}
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
	img := ImageRef{Path: filepath.Join(dir, "img")}
	if err := Convert(context.Background(), raw, img.Path, ConvertOptions{To: FormatV2}); err != nil {
		t.Fatal(err)
	}
	i, err := ReadInfo(img)
	if err != nil || i.Allocated != 2 || i.DiskUsage > 256<<10 {
		t.Errorf("%+v, %v", i, err)
	}
	s := mustOpen(t, []ImageRef{img}, Options{ReadOnly: true})
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
	base := mustCreate(t, filepath.Join(dir, "base"), CreateOptions{Size: 10 * c, ClusterSize: c})
	top := mustCreate(t, filepath.Join(dir, "top"), CreateOptions{Size: 12*c + 512, Backing: &base})
	write := func(refs []ImageRef, off, n int64) {
		s := mustOpen(t, refs, Options{})
		if _, err := s.WriteAt(bytes.Repeat([]byte{1}, int(n)), off); err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	write([]ImageRef{base}, 2*c, 3*c)
	write([]ImageRef{base, top}, 4*c, 512)
	write([]ImageRef{base, top}, 12*c, 512)
	var got []Extent
	if err := Map([]ImageRef{base, top}, func(x Extent) error {
		got = append(got, x)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	want := []Extent{
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
	if err := Map([]ImageRef{base, top}, func(Extent) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("stopped by %v", err)
	}
}
