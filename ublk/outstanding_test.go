package ublk

import (
	"fmt"
	"os"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// TestOutstanding: a request is seen while a goroutine or the ring has it, with the place of
// its transfer, and not when it was answered.
func TestOutstanding(t *testing.T) {
	in, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	defer out.Close()
	seen := func(q *Queue) []string {
		got := make(chan []string)
		if err := q.Post(func() {
			var list []string
			q.Outstanding(func(r *Request, transfers bool) {
				s := fmt.Sprintf("%v %v", r.Op(), transfers)
				if transfers {
					slot, off := r.Transfer()
					s += fmt.Sprintf(" %d %d", slot, off)
				}
				list = append(list, s)
			})
			got <- list
		}); err != nil {
			t.Fatal(err)
		}
		return <-got
	}
	held := make(chan *Request, 1)
	ended := make(chan struct{})
	h := funcHandler{
		begin: func(r *Request) { held <- r },
		transferred: func(r *Request, errno unix.Errno) {
			r.CompleteHere(errno)
			close(ended)
		},
	}
	first := true
	end := make(chan struct{})
	f := startFake(t, 1, 4096, []*os.File{in}, h, func(_ int, d *ioDesc) bool {
		*d = ioDesc{opFlags: uint32(OpRead), startSector: 8, nrSectors: 1}
		if !first {
			<-end // the one tag is with the driver
		}
		was := first
		first = false
		return was
	})
	r := <-held
	if got := seen(f.Queue); !slices.Equal(got, []string{"READ false"}) {
		t.Errorf("with a goroutine: %q", got)
	}
	if err := f.Post(func() { r.ReadFile(0, 0) }); err != nil {
		t.Fatal(err)
	}
	if got := seen(f.Queue); !slices.Equal(got, []string{"READ true 0 0"}) {
		t.Errorf("with the ring: %q", got)
	}
	close(end)
	if _, err := out.Write(make([]byte, 512)); err != nil {
		t.Fatal(err)
	}
	<-ended
	f.wait()
}
