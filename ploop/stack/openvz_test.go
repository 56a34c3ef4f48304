package stack

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"holdfast/ploop"
	"holdfast/ploop/image"
	"holdfast/ploop/internal/format"
)

// openvz runs OpenVZ's ploop tool (Debian 12's package ploop; later releases
// have none). It looks for its kernel module in /sys/module, where it is shown a
// directory that has what it wants, in a mount namespace of its own.
func openvz(t *testing.T, args ...string) (string, int) {
	t.Helper()
	tool, err := exec.LookPath("ploop")
	if err != nil {
		t.Skip("OpenVZ's ploop tool is not installed")
	}
	modules := filepath.Join(t.TempDir(), "ploop", "parameters")
	if err := os.MkdirAll(modules, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(modules, "large_disk_support"), []byte("1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	script := `mount --bind "$0" /sys/module && exec "$@"`
	cmd := exec.Command("sh", append([]string{"-c", script, filepath.Dir(filepath.Dir(modules)), tool}, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	if os.Getuid() != 0 {
		t.Skip("OpenVZ's ploop tool wants root")
	}
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return string(out), exit.ExitCode()
	}
	if err != nil {
		t.Skipf("no mount namespace: %v", err)
	}
	return string(out), 0
}

func wantOpenVZ(t *testing.T, want int, says, path string) {
	t.Helper()
	if out, code := openvz(t, "check", "-r", "-f", path); code != want || !strings.Contains(out, says) {
		t.Errorf("ploop check of %s says %d, %s", filepath.Base(path), code, out)
	}
}

// TestOpenVZ has OpenVZ's own tool judge what we write, at each time that we
// write a header.
func TestOpenVZ(t *testing.T) {
	dir := t.TempDir() // on a disk: the tool asks for the extents of files
	ctx := context.Background()
	openvz(t) // or skip
	fresh := mustCreate(t, filepath.Join(dir, "fresh"), ploop.CreateOptions{Size: 64 << 20})
	wantOpenVZ(t, 0, "", fresh.Path)

	// Opened and closed, with nothing written; written; discarded again.
	whole := func(write func(s *Stack) error) {
		t.Helper()
		s := mustOpen(t, []image.Ref{fresh}, Options{})
		if err := write(s); err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	whole(func(*Stack) error { return nil })
	wantOpenVZ(t, 0, "", fresh.Path)
	data := make([]byte, 2<<20)
	for i := range data {
		data[i] = byte(i%251) + 1
	}
	whole(func(s *Stack) error { _, err := s.WriteAt(data, 3<<20); return err })
	wantOpenVZ(t, 0, "", fresh.Path)
	whole(func(s *Stack) error { return s.Discard(0, s.Size()) })
	wantOpenVZ(t, 0, "", fresh.Path)

	// Copies: of an empty disk, and of one with holes everywhere.
	raw := filepath.Join(dir, "raw")
	disk := make([]byte, 9<<20)
	rng := rand.New(rand.NewPCG(21, 1))
	for range 40 {
		off := rng.IntN(len(disk)/4096) * 4096
		disk[off] = 1
	}
	for _, src := range []struct {
		name string
		disk []byte
	}{{"empty", make([]byte, 9<<20)}, {"sparse", disk}} {
		if err := os.WriteFile(raw, src.disk, 0o600); err != nil {
			t.Fatal(err)
		}
		for _, v := range []ploop.Format{ploop.FormatV1, ploop.FormatV2} {
			dst := filepath.Join(dir, src.name+v.String())
			if err := ploop.Convert(ctx, image.Ref{Path: raw, Raw: true}, dst, ploop.ConvertOptions{To: v, NoHoles: true}); err != nil {
				t.Fatal(err)
			}
			wantOpenVZ(t, 0, "", dst)
			if string(readDisk(t, image.Ref{Path: dst})) != string(src.disk) {
				t.Errorf("%s differs", dst)
			}
		}
	}

	// The tool's own limits are the ones that we know.
	for _, c := range []int64{32 << 10, 64 << 20, 16 << 10, 128 << 20, 63 * 512, 96 << 10} {
		im := mustCreate(t, filepath.Join(dir, "cluster"), ploop.CreateOptions{Size: 256 << 20, ClusterSize: c, NoHoles: true})
		if ploop.CommonClusterSize(c) {
			wantOpenVZ(t, 0, "", im.Path)
		} else {
			wantOpenVZ(t, 11, "Wrong cluster size", im.Path)
		}
		os.Remove(im.Path)
	}

	// A repair leaves a right header as well.
	b, err := os.ReadFile(fresh.Path)
	if err != nil {
		t.Fatal(err)
	}
	b[64] = 77 // an entry far behind the end of the file
	b[52] = 0
	if err := os.WriteFile(fresh.Path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ploop.Check([]image.Ref{fresh}, ploop.CheckOptions{Repair: true}); err != nil {
		t.Fatal(err)
	}
	wantOpenVZ(t, 0, "", fresh.Path)
}

// TestEmptyFlagIsTrue is what OpenVZ's tool wants of the flags, where it isn't
// installed: bit 0 is set just if nothing is allocated.
func TestEmptyFlagIsTrue(t *testing.T) {
	dir := memDir(t)
	ref := mustCreate(t, filepath.Join(dir, "a"), ploop.CreateOptions{Size: 1 << 20, ClusterSize: 64 << 10})
	want := func(when string, path string, empty bool) {
		t.Helper()
		i, err := ploop.ReadInfo(image.Ref{Path: path})
		if err != nil || i.Flags&format.FlagEmpty != 0 != empty || i.Allocated == 0 != empty {
			t.Errorf("%s: flags %#x, %d clusters, %v", when, i.Flags, i.Allocated, err)
		}
	}
	want("created", ref.Path, true)
	for _, c := range []struct {
		name  string
		do    func(s *Stack) error
		empty bool
	}{
		{"opened and closed", func(*Stack) error { return nil }, true},
		{"zeroes written", func(s *Stack) error { _, err := s.WriteAt(make([]byte, 4096), 0); return err }, true},
		{"written", func(s *Stack) error { _, err := s.WriteAt([]byte(strings.Repeat("x", 4096)), 0); return err }, false},
		{"opened again", func(*Stack) error { return nil }, false},
		{"discarded", func(s *Stack) error { return s.Discard(0, s.Size()) }, true},
	} {
		s := mustOpen(t, []image.Ref{ref}, Options{})
		if err := c.do(s); err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		want(c.name, ref.Path, c.empty)
	}
	for name, data := range map[string]string{"zero": strings.Repeat("\x00", 1<<20), "one": strings.Repeat("\x00", 1<<20-512) + strings.Repeat("x", 512)} {
		raw := filepath.Join(dir, name)
		if err := os.WriteFile(raw, []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := ploop.Convert(context.Background(), image.Ref{Path: raw, Raw: true}, raw+".hds", ploop.ConvertOptions{To: ploop.FormatV2}); err != nil {
			t.Fatal(err)
		}
		want("converted "+name, raw+".hds", name == "zero")
	}
}

// TestNoHoles counts blocks: with NoHoles all of the file is stored.
func TestNoHoles(t *testing.T) {
	dir := memDir(t)
	raw := image.Ref{Path: filepath.Join(dir, "raw"), Raw: true}
	disk := make([]byte, 8<<20)
	disk[0], disk[5<<20] = 1, 1
	if err := os.WriteFile(raw.Path, disk, 0o600); err != nil {
		t.Fatal(err)
	}
	stored := func(path string) (size, usage int64) {
		var st syscall.Stat_t
		if err := syscall.Stat(path, &st); err != nil {
			t.Fatal(err)
		}
		return st.Size, st.Blocks * 512
	}
	for _, to := range []ploop.Format{ploop.FormatRaw, ploop.FormatV1, ploop.FormatV2} {
		for _, no := range []bool{true, false} {
			dst := image.Ref{Path: filepath.Join(dir, "to"), Raw: to == ploop.FormatRaw}
			if err := ploop.Convert(context.Background(), raw, dst.Path, ploop.ConvertOptions{To: to, NoHoles: no}); err != nil {
				t.Fatal(err)
			}
			if size, usage := stored(dst.Path); usage >= size != no {
				t.Errorf("%v, no holes %t: %d bytes of %d are stored", to, no, usage, size)
			}
			if string(readDisk(t, dst)) != string(disk) {
				t.Errorf("%v differs", to)
			}
			os.Remove(dst.Path)
		}
	}
	long := mustCreate(t, filepath.Join(dir, "long"), ploop.CreateOptions{Size: 1 << 40, ClusterSize: 64 << 10, NoHoles: true})
	if size, usage := stored(long.Path); size < 64<<20 || usage < size {
		t.Errorf("%d bytes of a head of %d are stored", usage, size)
	}
}
