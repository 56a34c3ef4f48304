package ublk

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

func TestProtectProcess(t *testing.T) {
	if os.Getenv("HOLDFAST_VM") == "" {
		t.Skip("locks memory; runs in the VM")
	}
	if err := ProtectProcess(); err != nil {
		t.Fatal(err)
	}
	defer unix.Munlockall()
	n := 0
	done := make(chan struct{})
	for range 4 {
		go func() {
			if v, err := unix.PrctlRetInt(unix.PR_GET_IO_FLUSHER, 0, 0, 0, 0); err != nil || v != 1 {
				t.Errorf("a thread is no I/O flusher: %d, %v", v, err)
			}
			done <- struct{}{}
		}()
		<-done
		n++
	}
	if n != 4 {
		t.Fatal(n)
	}
}
