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

// A failureCounter is a launcher that knows how many processes of a server's have failed.
type failureCounter interface {
	Failed(name string) int
}

var (
	_ adopter        = (*launch.Fork)(nil)
	_ failureCounter = (*launch.Fork)(nil)
	_ boots          = (*launch.Systemd)(nil)
)

// failures of a server's processes; 0 if the launcher doesn't count them.
func failures(l launch.Launcher, name string) int {
	if c, ok := l.(failureCounter); ok {
		return c.Failed(name)
	}
	return 0
}

// A boots is a launcher that starts servers at boot by itself, and then not again.
type boots interface {
	// Missed says whether a server that was to be started at boot was not, and is not about to be.
	Missed(ctx context.Context, name string) (bool, error)
}
