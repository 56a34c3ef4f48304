package main

import (
	"bytes"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"holdfast/ublk/examples/internal/servertest"
)

func TestMain(m *testing.M) { servertest.Main(m, main) }

func TestNullReadsZeroesAndEndsOnSignals(t *testing.T) {
	servertest.Paths(t, func(t *testing.T, path string) {
		for _, sig := range []os.Signal{unix.SIGINT, unix.SIGTERM} {
			s := servertest.Start(t, path, "-size", "4194304", "-queues", "2", "-depth", "16")
			if s.Says["size"] != "4194304" || s.Says["queues"] == "" || s.Says["depth"] != "16" || "-"+s.Says["data_path"] != path {
				t.Errorf("it says %v", s.Says)
			}
			s.Fio()
			if got, err := os.ReadFile(s.Path); err != nil || !bytes.Equal(got, make([]byte, 4<<20)) {
				t.Errorf("it reads as %d bytes, not 4 MiB of zeroes (%v)", len(got), err)
			}
			s.Signal(sig)
			if says := s.End(); says["reads"] == "0" || says["writes"] == "0" || says["reads"] == "" {
				t.Errorf("after fio it says %v", says)
			}
		}
	})
}

func TestNullRefusesZeroCopyThatIsNotThere(t *testing.T) { servertest.RefusesZeroCopy(t) }

func TestNullEndsWhenStoppedByOthers(t *testing.T) {
	s := servertest.Start(t)
	s.Stop()
	s.End()
}

func TestNullWrongCommandLine(t *testing.T) {
	for _, args := range [][]string{{"-copy", "-zero-copy"}, {"-queues", "many"}, {"-nonsense"}, {"name"}} {
		if code, stderr := servertest.Run(t, args...); code != 2 || stderr == "" {
			t.Errorf("%v: exit code %d, and it says %q", args, code, stderr)
		}
	}
}
