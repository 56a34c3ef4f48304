package control

import (
	"context"
	"fmt"
	"time"

	"holdfast/api"
	"holdfast/internal/users"
)

// usersOf waits up to settle for transient users to go, and says who is left.
func (d *Daemon) usersOf(ctx context.Context, dev live) ([]api.User, error) {
	deadline := time.Now().Add(d.settle)
	for {
		all, err := d.scans.Of(map[int]string{dev.ID(): dev.Path()})
		held := all[dev.ID()]
		if err != nil || len(held) == 0 || !users.Transient(held) || time.Now().After(deadline) {
			return held, err
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return held, fmt.Errorf("gave up waiting: %w", ctx.Err())
		}
	}
}
