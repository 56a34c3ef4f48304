package manager

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"time"
)

// timeoutPatience bounds the wait for the program that sets a disk's time-out.
const timeoutPatience = 5 * time.Second

// whenIdle sets the time-out of the disk whose queue directory is $0 to $1, in one of ten moments
// of half a second without a request in flight: for those the kernel would wait, and have all
// others wait.
const whenIdle = `cd "$0" && for i in 0 1 2 3 4 5 6 7 8 9; do
	read -r reads writes <../inflight
	if [ "$reads$writes" = 00 ]; then echo "$1" >io_timeout; exit; fi
	sleep 0.05
done
exit 1`

// shortenTimeout has the driver notice soon that the server of a new device died, where that has to
// be asked for; see ublk.Control.TimeoutAttr. udev's rule does the same, where there is udev. A
// program does it that has nothing open. Without it a recovery begins later, and that is all.
func shortenTimeout(ctx context.Context, d driver, id int) error {
	path, value, err := d.timeoutAttr(ctx, id)
	if err != nil || path == "" {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, timeoutPatience)
	defer cancel()
	return setTimeout(ctx, path, value)
}

func setTimeout(ctx context.Context, path, value string) error {
	cmd := exec.CommandContext(ctx, shell, "-c", whenIdle, filepath.Dir(path), value)
	cmd.Dir, cmd.WaitDelay = "/", time.Second
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %.200s", path, err, out)
	}
	return nil
}
