package control

import (
	"context"
	"path/filepath"
	"time"

	"holdfast/internal/spawner"
	"holdfast/ublk"
)

// timeoutPatience bounds the wait for the program that sets a disk's time-out.
const timeoutPatience = 5 * time.Second

// whenIdle sets the time-out of the disk whose queue directory is $0 to $1, in one of ten moments
// of half a second without a request in flight.
const whenIdle = `cd "$0" && for i in 0 1 2 3 4 5 6 7 8 9; do
	read -r reads writes <../inflight
	if [ "$reads$writes" = 00 ]; then echo "$1" >io_timeout; exit; fi
	sleep 0.05
done
exit 1`

// shortenTimeout has the driver notice soon that the server of a device died, where that has to
// be asked for; see ublk.Control.TimeoutAttr. udev's rule does the same, where there is udev. It
// is done before anybody is told of the device, by a program that has nothing open. Without it
// recovery takes longer, and that is all.
func (k *thisKernel) shortenTimeout(ctx context.Context, ctl *ublk.Control, id int) {
	path, value, err := ctl.TimeoutAttr(ctx, id)
	if err == nil && path == "" {
		return
	}
	if err == nil {
		err = setTimeout(ctx, k.spawner, path, value)
	}
	if err != nil {
		k.log.Debug().Err(err).Msgf("queue/io_timeout of /dev/ublkb%d stays: after a server's death its recovery may begin half a minute later", id)
	}
}

func setTimeout(ctx context.Context, s *spawner.Spawner, path, value string) error {
	ctx, cancel := context.WithTimeout(ctx, timeoutPatience)
	defer cancel()
	_, err := s.Output(ctx, "/bin/sh", "-c", whenIdle, filepath.Dir(path), value)
	return err
}
