package manager

import (
	"context"

	"holdfast/manager/launch"
)

// An adopter is a launcher that has to be told of the servers that another one has started: its
// processes are not somebody else's, as a service manager's.
type adopter interface {
	Adopt(name string, pid int) error
}

var (
	_ adopter = (*launch.Fork)(nil)
	_ boots   = (*launch.Systemd)(nil)
)

// A boots is a launcher that starts servers at boot by itself, and then not again.
type boots interface {
	// Missed says whether a server that was to be started at boot was not, and is not about to be.
	Missed(ctx context.Context, name string) (bool, error)
}
