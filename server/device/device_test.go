package device

import (
	"context"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/rs/zerolog"

	"holdfast/api"
	"holdfast/ploop"
	"holdfast/ploop/stack"
	"holdfast/ublk"
)

// openControl skips where there is no driver, but not in the VM, which is
// there to have one.
func openControl(t testing.TB) *ublk.Control {
	t.Helper()
	if os.Getenv("HOLDFAST_VM") != "" {
		if out, err := exec.Command("modprobe", "ublk_drv").CombinedOutput(); err != nil {
			t.Fatalf("modprobe ublk_drv: %v: %s", err, out)
		}
	}
	ctl, err := ublk.Open("")
	if err != nil {
		if os.Getenv("HOLDFAST_VM") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	t.Cleanup(func() { ctl.Close() })
	return ctl
}

// dataPathsOf are those that this kernel has.
func dataPathsOf(t testing.TB, ctl *ublk.Control) []string {
	t.Helper()
	f, err := ctl.Features(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	switch {
	case f.Has(ublk.FeatureAutoBufReg) && testing.Short():
		return []string{"zero-copy"} // the other one is for other kernels to test
	case f.Has(ublk.FeatureAutoBufReg):
		return []string{"copy", "zero-copy"}
	}
	return []string{"copy"}
}

// onOtherKernel leaves case i to the other kernel, where HOLDFAST_CASES shares them out.
func onOtherKernel(i int) bool {
	return os.Getenv("HOLDFAST_CASES") == []string{"odd", "even"}[i%2]
}

// sharedOut leaves a whole test to the other kernel.
func sharedOut(t *testing.T, i int) {
	t.Helper()
	if onOtherKernel(i) {
		t.Skip("to save time: for the other kernel to test")
	}
}

func serve(t testing.TB, ctl *ublk.Control, spec api.Spec) *Device {
	t.Helper()
	log := zerolog.New(zerolog.NewTestWriter(t))
	d, err := Open(t.Context(), spec, Options{Control: ctl, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(context.Background(), true); err != nil {
			t.Error(err)
		}
	})
	return d
}

func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// makeStack creates n deltas of one geometry.
func makeStack(t testing.TB, dir string, n, version int, size, cluster int64) []ploop.ImageRef {
	t.Helper()
	var refs []ploop.ImageRef
	for i := range n {
		p := filepath.Join(dir, fmt.Sprintf("delta%02d", i))
		if err := ploop.Create(p, ploop.CreateOptions{Size: size, ClusterSize: cluster, AnyClusterSize: true, Version: version}); err != nil {
			t.Fatal(err)
		}
		refs = append(refs, ploop.ImageRef{Path: p})
	}
	return refs
}

func checkClean(t testing.TB, refs []ploop.ImageRef) {
	t.Helper()
	rep, err := ploop.Check(refs, ploop.CheckOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if rep.ExitCode() != 0 {
		found, _ := json.MarshalIndent(rep, "", " ")
		t.Fatalf("the image does not check clean: %s", found)
	}
}

// TestFioVerify writes random blocks with checksums over stacks of 1, 2 and 64
// deltas, of both versions, on every data path, trims and zeroes among them,
// and reads all of it back, also after the device was made anew.
func TestFioVerify(t *testing.T) {
	ctl := openControl(t)
	for _, path := range dataPathsOf(t, ctl) {
		for i, c := range []struct{ deltas, version int }{{64, 2}, {1, 1}, {1, 2}, {2, 2}} {
			written, trimmed := "16m", "6m"
			if testing.Short() {
				if i > 1 || onOtherKernel(i) {
					continue
				}
				written, trimmed = "3m", "1m"
			}
			t.Run(fmt.Sprintf("%s/%d deltas/v%d", path, c.deltas, c.version), func(t *testing.T) {
				dir := t.TempDir()
				refs := makeStack(t, dir, c.deltas, c.version, 32<<20, 64<<10)
				// The lower deltas hold something to copy up.
				for i := 1; i < len(refs); i++ {
					s, err := stack.Open(refs[:i], stack.Options{})
					if err != nil {
						t.Fatal(err)
					}
					b := make([]byte, 256<<10)
					for k := range b {
						b[k] = byte(i)
					}
					if _, err := s.WriteAt(b, int64(i)<<20%(30<<20)); err != nil {
						t.Fatal(err)
					}
					if err := s.Close(); err != nil {
						t.Fatal(err)
					}
				}
				spec := api.Spec{Name: "fio", Images: refs, DataPath: path, Queues: 2}
				d := serve(t, ctl, spec)
				job := []string{"--name=v", "--filename=" + d.Path(), "--ioengine=io_uring", "--direct=1", "--iodepth=32",
					"--bsrange=512-128k", "--blockalign=512", "--verify=crc32c", "--verify_fatal=1", "--randrepeat=1", "--random_generator=tausworthe64",
					"--rw=randwrite", "--io_size=" + written, "--fsync=64", "--do_verify=1"}
				run(t, "fio", job...)
				trim := []string{"--name=t", "--filename=" + d.Path(), "--ioengine=libaio", "--direct=1", "--iodepth=32", "--bs=16k",
					"--rw=randtrimwrite", "--io_size=" + trimmed, "--verify=crc32c", "--verify_fatal=1"}
				run(t, "fio", trim...)
				before := hash(t, d.Path())
				if err := d.Close(t.Context(), false); err != nil {
					t.Fatal(err)
				}
				checkClean(t, refs)
				d = serve(t, ctl, spec)
				if after := hash(t, d.Path()); after != before {
					t.Fatal("the disk changed over closing and opening")
				}
			})
		}
	}
}

// hash is a checksum, cheap in an emulated machine, of all of a file or device.
func hash(t testing.TB, path string) string { return hashPrefix(t, path, 1<<62) }

func hashPrefix(t testing.TB, path string, n int64) string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h := crc32.New(crc32.MakeTable(crc32.Castagnoli))
	if _, err := io.Copy(h, io.LimitReader(f, n)); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%x", h.Sum(nil))
}
