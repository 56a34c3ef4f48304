package ublk_test

import (
	"context"
	"log"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"

	"holdfast/ublk"
)

// loop serves a file of the device's size, all on the queue's thread.
type loop struct{}

var _ ublk.Handler = loop{}

func (loop) Begin(r *ublk.Request) {
	switch r.Op() {
	case ublk.OpRead:
		r.ReadFile(0, r.Offset())
	case ublk.OpWrite:
		var flags uint32
		if r.FUA() {
			flags = unix.RWF_DSYNC
		}
		r.WriteFile(0, r.Offset(), flags)
	case ublk.OpFlush:
		r.SyncFile(0)
	default:
		r.CompleteHere(unix.EOPNOTSUPP)
	}
}

func (loop) Transferred(r *ublk.Request, errno unix.Errno) { r.CompleteHere(errno) }

// A loop device: a file as /dev/ublkbN until the process is interrupted. ublk/examples/file is
// the same with O_DIRECT, discard and a command line.
func Example() {
	f, err := os.OpenFile("disk.img", os.O_RDWR, 0)
	if err != nil {
		log.Fatal(err)
	}
	st, err := f.Stat()
	if err != nil {
		log.Fatal(err)
	}
	if err := ublk.ProtectProcess(); err != nil {
		log.Print(err) // serve all the same
	}
	ctl, err := ublk.Open("")
	if err != nil {
		log.Fatal(err)
	}
	defer ctl.Close()
	ctx := context.Background()
	dev, err := ctl.Create(ctx, ublk.Config{ID: -1, Size: st.Size(), VolatileCache: true, FUA: true, Files: 1}, loop{})
	if err != nil {
		log.Fatal(err)
	}
	err = dev.SetFile(0, int(f.Fd()))
	if err == nil {
		err = dev.Start(ctx)
	}
	if err == nil {
		log.Print("serving ", dev.Path())
		interrupted, stop := signal.NotifyContext(ctx, os.Interrupt)
		<-interrupted.Done()
		stop()
	} else {
		log.Print(err)
	}
	if err := dev.Stop(ctx); err != nil {
		log.Fatal(err)
	}
}
