package api

import "time"

// ServerInfo says who answers on a server's own socket.
type ServerInfo struct {
	API      int       `json:"api"` // APIVersion
	Version  string    `json:"version"`
	Build    string    `json:"build"`    // of the program: what an upgrade changes
	Instance string    `json:"instance"` // of its journal of events
	PID      int       `json:"pid"`
	Name     string    `json:"name"` // the device's
	Phase    string    `json:"phase"`
	Started  time.Time `json:"started"`
}

// States of a device's server, as its manager sees them.
const (
	ServerNone     = "none"     // there is no process
	ServerStarting = "starting" // it doesn't have its socket yet
	ServerUp       = "up"
	ServerSilent   = "silent" // it lives, and doesn't answer
	ServerDying    = "dying"  // it was killed, and can't end: a thread waits for storage
)

// ServerState is the process that serves a device, as its manager sees it.
type ServerState struct {
	PID     int       `json:"pid"` // 0: none
	State   string    `json:"state"`
	Since   time.Time `json:"since"`             // State's
	AsOf    time.Time `json:"as_of,omitzero"`    // when it last said what is shown of the device; zero: not yet
	Build   string    `json:"build,omitempty"`   // of its program
	Problem string    `json:"problem,omitempty"` // what it waits for
}

// LeaveRequest is the body of a request to leave a device to another server.
type LeaveRequest struct{}

// States of a device that its server can't tell.
const (
	StateSilent = "silent" // its server lives, and doesn't answer
	StateDying  = "dying"  // its server was killed, and can't end
	StateEnded  = "ended"  // it was ended in order, and nobody serves it
)
