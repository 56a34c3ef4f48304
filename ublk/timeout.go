package ublk

import (
	"context"
	"fmt"
	"os"
	"strings"
)

// TimeoutAttr says what is to be written to which file, once the device is started, so that the
// driver notices soon that its server died; "": nothing.
//
// Before Linux 6.15 (6.16 for sure, by FeatureQuiesce) the driver looks for a dead server
// when a request comes or times out. One that died with every tag of a queue in its hands
// lets no request come, and the time is 30 s by default, so that recovery would begin so late.
// It is no time-out for the server, which may take as long as it likes; and it outlives
// servers.
//
// For the change, even to the value that is there, the kernel freezes the queue: it waits, and
// can't be interrupted, until no request is in flight, and every other request waits meanwhile, in
// front of the queue, where no server sees it. With a request that hangs in its storage, or is
// held, that has no end. Hence:
//
//   - It is done when the device is new, before others are told of it, and only in a moment
//     without a request (the disk's attribute inflight). Without it recovery takes longer,
//     and nothing else is lost.
//   - The server must not do it itself. Were it killed in the kernel's wait, it would not end before
//     its requests do, which wait for its end. So somebody else does, who has nothing of
//     the device or its storage open: a udev rule, or a process of its own.
func (c *Control) TimeoutAttr(ctx context.Context, id int) (path, value string, err error) {
	const soon = "500" // ms; a device whose requests wait has a timer run twice a second
	have, err := c.Features(ctx)
	if err != nil || have.Has(FeatureQuiesce) {
		return "", "", err
	}
	info, err := c.GetInfo(ctx, id)
	if err != nil || !info.Flags.Has(FeatureUserRecovery) {
		return "", "", err
	}
	path = fmt.Sprintf("/sys/block/ublkb%d/queue/io_timeout", id)
	is, err := os.ReadFile(path)
	if err != nil || strings.TrimSpace(string(is)) == soon {
		return "", "", err
	}
	return path, soon, nil
}
