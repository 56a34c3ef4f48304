package stack

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"holdfast/ploop"
	"holdfast/ploop/image"
	"holdfast/ploop/internal/format"
)

// qemu runs one of QEMU's tools and gives its output and exit code. Without
// the tool the test is skipped, unless HOLDFAST_TOOLS=required.
func qemu(t testing.TB, tool string, args ...string) (string, int) {
	t.Helper()
	path, err := exec.LookPath(tool)
	if err != nil {
		if os.Getenv("HOLDFAST_TOOLS") == "required" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	out, err := exec.Command(path, args...).CombinedOutput()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return string(out), exit.ExitCode()
	}
	if err != nil {
		t.Fatal(err)
	}
	return string(out), 0
}

func mustQEMU(t testing.TB, tool string, args ...string) string {
	t.Helper()
	out, code := qemu(t, tool, args...)
	if code != 0 {
		t.Fatalf("%s %q exits with %d:\n%s", tool, args, code, out)
	}
	return out
}

// qemuScatter has QEMU write random pieces, in disk as well.
func qemuScatter(t testing.TB, path string, disk []byte, rng *rand.Rand, n int) {
	t.Helper()
	args := []string{"-f", "parallels"}
	for range n {
		off := rng.IntN(len(disk)/image.SectorSize) * image.SectorSize
		k := min((1+rng.IntN(300))*image.SectorSize, len(disk)-off)
		pattern := byte(1 + rng.IntN(255))
		if rng.IntN(8) == 0 {
			pattern = 0
		}
		args = append(args, "-c", fmt.Sprintf("write -P %d %d %d", pattern, off, k))
		copy(disk[off:off+k], bytes.Repeat([]byte{pattern}, k))
	}
	mustQEMU(t, "qemu-io", append(args, path)...)
}

// wantSame wants disk from us and from QEMU.
func wantSame(t *testing.T, disk []byte, spec string, refs ...image.Ref) {
	t.Helper()
	if !bytes.Equal(readDisk(t, refs...), disk) {
		t.Error("we read something else")
	}
	raw := filepath.Join(filepath.Dir(refs[0].Path), "compare")
	if err := os.WriteFile(raw, disk, 0o600); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(raw)
	out, code := qemu(t, "qemu-img", "compare", "--image-opts", spec, "driver=raw,file.filename="+raw)
	if code != 0 {
		t.Errorf("QEMU reads something else: %s", out)
	}
}

func wantQEMUCheck(t *testing.T, code int, path string) {
	t.Helper()
	out, got := qemu(t, "qemu-img", "check", "-f", "parallels", path)
	if got != code {
		t.Errorf("qemu-img check exits with %d, want %d:\n%s", got, code, out)
	}
}

func TestInteropImages(t *testing.T) {
	for _, cluster := range []int64{512, 32 << 10, 63 * 512, 1 << 20} {
		t.Run(fmt.Sprint(cluster), func(t *testing.T) {
			dir := memDir(t)
			rng := rand.New(rand.NewPCG(3, uint64(cluster)))
			ref := image.Ref{Path: filepath.Join(dir, "theirs")}
			const size = 5<<20 + 3*512
			if cluster%4096 != 0 {
				// QEMU doesn't make such, but uses them.
				mustCreate(t, ref.Path, ploop.CreateOptions{Size: size, ClusterSize: cluster})
			} else {
				mustQEMU(t, "qemu-img", "create", "-q", "-f", "parallels", "-o", fmt.Sprintf("cluster_size=%d", cluster), ref.Path, fmt.Sprint(size))
			}
			disk := make([]byte, size)
			spec := "driver=parallels,file.filename=" + ref.Path
			for range 2 { // their turn and ours
				qemuScatter(t, ref.Path, disk, rng, 12)
				wantSame(t, disk, spec, ref)
				mustCheck(t, ploop.ExitClean, ref)
				disk = scatter(t, []image.Ref{ref}, rng, 12)
				s := mustOpen(t, []image.Ref{ref}, Options{})
				if err := s.Discard(0, 2<<20); err != nil {
					t.Fatal(err)
				}
				if _, err := s.ReadAt(disk, 0); err != nil {
					t.Fatal(err)
				}
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
				wantSame(t, disk, spec, ref)
				wantQEMUCheck(t, 0, ref.Path)
				mustCheck(t, ploop.ExitClean, ref)
			}
		})
	}
}

// TestInteropV1 has QEMU read and write a version 1 image of ours; it makes
// none itself.
func TestInteropV1(t *testing.T) {
	for _, cluster := range []int64{4096, 63 * 512, 256 << 10} {
		t.Run(fmt.Sprint(cluster), func(t *testing.T) {
			dir := memDir(t)
			rng := rand.New(rand.NewPCG(4, uint64(cluster)))
			ref := mustCreate(t, filepath.Join(dir, "v1"), ploop.CreateOptions{Size: 3 << 20, ClusterSize: cluster, Version: 1})
			disk := scatter(t, []image.Ref{ref}, rng, 20)
			spec := "driver=parallels,file.filename=" + ref.Path
			wantSame(t, disk, spec, ref)
			qemuScatter(t, ref.Path, disk, rng, 10)
			wantSame(t, disk, spec, ref)
			wantQEMUCheck(t, 0, ref.Path)
			mustCheck(t, ploop.ExitClean, ref)
		})
	}
}

// TestInteropStack compares two deltas with QEMU's backing chain.
func TestInteropStack(t *testing.T) {
	dir := memDir(t)
	rng := rand.New(rand.NewPCG(5, 0))
	base := mustCreate(t, filepath.Join(dir, "base"), ploop.CreateOptions{Size: 4 << 20, ClusterSize: 64 << 10})
	disk := make([]byte, 4<<20)
	qemuScatter(t, base.Path, disk, rng, 20)
	top := mustCreate(t, filepath.Join(dir, "top"), ploop.CreateOptions{Backing: &base})
	refs := []image.Ref{base, top}
	disk = scatter(t, refs, rng, 20)
	spec := fmt.Sprintf("driver=parallels,file.filename=%s,backing.driver=parallels,backing.file.filename=%s", top.Path, base.Path)
	wantSame(t, disk, spec, refs...)
	// QEMU writes through the chain; it copies up as we do.
	mustQEMU(t, "qemu-io", "--image-opts", spec, "-c", "write -P 7 100k 3k", "-c", "write -P 8 1000k 900k")
	copy(disk[100<<10:], bytes.Repeat([]byte{7}, 3<<10))
	copy(disk[1000<<10:], bytes.Repeat([]byte{8}, 900<<10))
	wantSame(t, disk, spec, refs...)
	disk = scatter(t, refs, rng, 10)
	wantSame(t, disk, spec, refs...)
	for _, r := range refs {
		wantQEMUCheck(t, 0, r.Path)
	}
	mustCheck(t, ploop.ExitClean, refs...)
}

func TestInteropConvert(t *testing.T) {
	dir := memDir(t)
	rng := rand.New(rand.NewPCG(6, 0))
	src := mustCreate(t, filepath.Join(dir, "src"), ploop.CreateOptions{Size: 6 << 20, ClusterSize: 128 << 10})
	disk := scatter(t, []image.Ref{src}, rng, 30)
	// Ours to raw by both.
	raw := image.Ref{Path: filepath.Join(dir, "raw"), Raw: true}
	if err := ploop.Convert(context.Background(), src, raw.Path, ploop.ConvertOptions{To: ploop.FormatRaw}); err != nil {
		t.Fatal(err)
	}
	mustQEMU(t, "qemu-img", "compare", "-f", "parallels", "-F", "raw", src.Path, raw.Path)
	// Raw to parallels by both.
	theirs := image.Ref{Path: filepath.Join(dir, "theirs")}
	mustQEMU(t, "qemu-img", "convert", "-f", "raw", "-O", "parallels", raw.Path, theirs.Path)
	if !bytes.Equal(readDisk(t, theirs), disk) {
		t.Error("their conversion reads differently here")
	}
	for _, f := range []ploop.Format{ploop.FormatV1, ploop.FormatV2} {
		ours := image.Ref{Path: filepath.Join(dir, f.String())}
		if err := ploop.Convert(context.Background(), raw, ours.Path, ploop.ConvertOptions{To: f, ClusterSize: 64 << 10}); err != nil {
			t.Fatal(err)
		}
		wantSame(t, disk, "driver=parallels,file.filename="+ours.Path, ours)
		wantQEMUCheck(t, 0, ours.Path)
	}
}

// TestInteropCheck wants one verdict from both checks. QEMU 7.2 sees less;
// what it should see is in the third column.
func TestInteropCheck(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(im *smallImage)
		code   int
		theirs int // 7.2's
		after  int // ours after the repair: what the file lacks is lost
	}{
		{"clean", func(im *smallImage) {}, 0, 0, 0},
		{"leak", func(im *smallImage) { im.b = append(im.b, make([]byte, 8192)...) }, 3, 3, 0},
		{"part of a cluster leaked", func(im *smallImage) { im.b = append(im.b, make([]byte, 100)...) }, 3, 3, 0},
		{"gap inside", func(im *smallImage) { im.entry(0, 0) }, 0, 0, 0},
		{"in use", func(im *smallImage) { im.put32(44, format.InUseDirty) }, 2, 2, 0},
		{"beyond the file", func(im *smallImage) { im.entry(5, 1000) }, 2, 2, 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			im := newSmallImage(2)
			c.change(im)
			ref := image.Ref{Path: filepath.Join(memDir(t), "image")}
			if err := os.WriteFile(ref.Path, im.b, 0o600); err != nil {
				t.Fatal(err)
			}
			mustCheck(t, c.code, ref)
			wantQEMUCheck(t, c.theirs, ref.Path)
			r, err := ploop.Check([]image.Ref{ref}, ploop.CheckOptions{Repair: true})
			if err != nil || r.ExitCode() != c.after {
				t.Errorf("repair: %v, %+v", err, r)
			}
			wantQEMUCheck(t, 0, ref.Path)
			mustCheck(t, ploop.ExitClean, ref)
		})
	}
}

// TestInteropLocks: an image that we have open for writing QEMU can't open,
// and the other way round.
func TestInteropLocks(t *testing.T) {
	ref := mustCreate(t, filepath.Join(memDir(t), "a"), ploop.CreateOptions{Size: 1 << 20, ClusterSize: 4096})
	s := mustOpen(t, []image.Ref{ref}, Options{})
	if out, code := qemu(t, "qemu-io", "-f", "parallels", "-c", "read 0 512", ref.Path); code == 0 {
		t.Errorf("QEMU opens our image: %s", out)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}
