package main

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"holdfast/ublk"
	"holdfast/ublk/examples/internal/servertest"
)

func TestMain(m *testing.M) { servertest.Main(m, main) }

const size = 4 << 20

// What is written to the device is in the file, from where another server reads it.
func TestFileServesTheFile(t *testing.T) {
	servertest.Paths(t, func(t *testing.T, path string) {
		for _, cache := range []string{"-buffered=false", "-buffered"} {
			disk := filepath.Join(t.TempDir(), "disk.img")
			content := make([]byte, size)
			for i := range content {
				content[i] = byte(rand.Uint32())
			}
			if err := os.WriteFile(disk, content, 0o600); err != nil {
				t.Fatal(err)
			}
			s := servertest.Start(t, path, cache, "-queues", "2", disk)
			if got, err := os.ReadFile(s.Path); err != nil || !bytes.Equal(got, content) {
				t.Fatalf("%s: the device does not read as the file does (%v)", cache, err)
			}
			if cache != "-buffered" {
				s.Fio("--bsrange=4k-64k", "--verify=crc32c", "--verify_fatal=1", "--do_verify=1")
				s.Fio("--bs=64k", "--rw=randtrim")
			}
			if err := os.WriteFile(s.Path, content, 0); err != nil {
				t.Fatal(err)
			}
			f, err := os.Open(s.Path)
			if err == nil {
				err = f.Sync()
				f.Close()
			}
			if err != nil {
				t.Fatal(err)
			}
			s.Signal(unix.SIGTERM)
			says := s.End()
			for _, op := range []string{"reads", "writes", "flushes", "discards"} {
				if says[op] == "" || says[op] == "0" && (op != "discards" || cache != "-buffered") {
					t.Errorf("%s: after all that it says %v", cache, says)
				}
			}
			if got, err := os.ReadFile(disk); err != nil || !bytes.Equal(got, content) {
				t.Errorf("%s: the file is not what was written to the device (%v)", cache, err)
			}
			ro := servertest.Start(t, path, cache, "-read-only", disk)
			if got, err := os.ReadFile(ro.Path); err != nil || !bytes.Equal(got, content) {
				t.Errorf("%s, read-only: the device is not what the file is (%v)", cache, err)
			}
			if err := os.WriteFile(ro.Path, content[:4096], 0); !errors.Is(err, unix.EPERM) {
				t.Errorf("%s: a write to a read-only device: %v", cache, err)
			}
			ro.Signal(unix.SIGTERM)
			ro.End()
		}
	})
}

func TestFileWrongCommandLine(t *testing.T) {
	none := filepath.Join(t.TempDir(), "none")
	for _, c := range []struct {
		code int
		args []string
	}{{2, nil}, {2, []string{"a", "b"}}, {1, []string{none}}, {1, []string{"-read-only", "-buffered", t.TempDir()}}} {
		if code, stderr := servertest.Run(t, c.args...); code != c.code || stderr == "" {
			t.Errorf("%v: exit code %d, want %d, and it says %q", c.args, code, c.code, stderr)
		}
	}
}

// What a device is like follows from its file.
func TestFileGeometry(t *testing.T) {
	disk := filepath.Join(t.TempDir(), "disk.img")
	if err := os.WriteFile(disk, make([]byte, 8192+700), 0o600); err != nil {
		t.Fatal(err)
	}
	var cfg ublk.Config
	f, err := open(disk, true, false, &cfg)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	if cfg.Size != 8192+512 || !cfg.VolatileCache || !cfg.FUA || cfg.ReadOnly {
		t.Errorf("%+v", cfg)
	}
	if fi, err := os.Stat(disk); err != nil || fi.Size() != 8192+700 {
		t.Errorf("the file is another one now: %v, %v", fi, err)
	}
}
