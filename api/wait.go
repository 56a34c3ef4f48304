package api

import (
	"context"
	"errors"
	"io/fs"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

// StateRemoved is what a wait calls a device that there is not.
const StateRemoved = "removed"

// States are all that a device can be waited for in.
var States = []string{
	StateLive, StateHung, StateParked, StateStandby, StateFailing, StateReplacing, StateStopped,
	StateCreating, StateRemoving, StateRecovering, StateUnrecovered, StateUnreleased, StateWaiting, StateLost, StateSilent, StateDying, StateEnded, StateRemoved,
}

// CheckStates refuses what is no state.
func CheckStates(states []string) error {
	if len(states) == 0 {
		return Errorf(CodeInvalid, "no state is given to wait for")
	}
	for _, s := range states {
		if !slices.Contains(States, s) {
			return Errorf(CodeInvalid, "%q is not a state of a device: there are %s", s, strings.Join(States, ", "))
		}
	}
	return nil
}

// The pause before a client connects anew to a manager that is gone doubles from the first to
// the longest.
const (
	firstReconnect   = 100 * time.Millisecond
	longestReconnect = 2 * time.Second
)

// Wait returns when the device is in one of the states; the manager or the server does the
// waiting, and is asked nothing meanwhile. While there is none, as during a restart or an
// upgrade, it waits for the next one.
func (c *Client) Wait(ctx context.Context, name string, states []string) (*Device, error) {
	if err := CheckStates(states); err != nil {
		return nil, err
	}
	path := devicePath(name) + "/wait?" + url.Values{"state": states}.Encode()
	for pause := firstReconnect; ; pause = min(2*pause, longestReconnect) {
		dev, err := call[Device](ctx, c, http.MethodGet, path, nil)
		if code := CodeOf(err); err == nil || ctx.Err() != nil || code != CodeUnreachable && code != CodeStopping || errors.Is(err, fs.ErrPermission) {
			return dev, err
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return nil, err
		}
	}
}
