package server

import (
	"context"

	"holdfast/api"
)

// A turn is had by one operation on the device at a time, and by none after the one that ended
// the server.
type turn struct {
	device string
	taken  chan struct{} // holds one token while an operation runs
	ended  chan struct{} // closed with the turn held, after exit was set
	exit   int
}

func newTurn(device string) *turn {
	return &turn{device: device, taken: make(chan struct{}, 1), ended: make(chan struct{})}
}

// take waits for the turn, which is held until end is called.
func (t *turn) take(ctx context.Context) (end func(), err error) {
	select {
	case t.taken <- struct{}{}:
		if t.isEnded() {
			t.giveBack()
			return nil, t.isOver()
		}
		return t.giveBack, nil
	case <-t.ended:
		return nil, t.isOver()
	case <-ctx.Done():
		return nil, api.Errorf(api.CodeBusy, "device %q: gave up waiting for another operation on it: %w", t.device, ctx.Err())
	}
}

// tryTake takes the turn if no operation has it.
func (t *turn) tryTake() bool {
	select {
	case t.taken <- struct{}{}:
		return true
	default:
		return false
	}
}

func (t *turn) giveBack() { <-t.taken }

// finish ends the server, once what is being answered has been. The turn is held, so nothing that
// would change the device comes after it.
func (t *turn) finish(code int) {
	if t.isEnded() {
		return
	}
	t.exit = code
	close(t.ended)
}

func (t *turn) isEnded() bool {
	select {
	case <-t.ended:
		return true
	default:
		return false
	}
}

func (t *turn) isOver() error {
	return api.Errorf(api.CodeStopping, "the server of device %q ends", t.device)
}

// inBackground runs what can't be left half done, with the turn taken: it goes on when
// ctx ends.
func (t *turn) inBackground(ctx context.Context, what string, do func(context.Context) error) error {
	end, err := t.take(ctx)
	if err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() {
		err := do(context.WithoutCancel(ctx))
		end()
		done <- err
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return api.Errorf(api.CodeInternal, "device %q: %s goes on in the server: %w", t.device, what, ctx.Err())
	}
}
