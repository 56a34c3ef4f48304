package api

import (
	"path/filepath"
	"slices"
	"time"
	"unicode/utf8"

	"holdfast/ploop/image"
)

// Switch is the body of a request that turns something on or off.
type Switch struct {
	On bool `json:"on"`
}

// Force is the body of a request that may be forced.
type Force struct {
	Force bool `json:"force,omitempty"`
}

// AttrValue is the body of a request that writes to an attribute.
type AttrValue struct {
	Value string `json:"value"`
}

// An AttrInfo is an attribute or a directory of the tree.
type AttrInfo struct {
	Path    string      `json:"path"`
	Dir     bool        `json:"dir"`
	Value   string      `json:"value"`   // of an attribute
	Entries []AttrEntry `json:"entries"` // of a directory
}

// An AttrEntry is a name in a directory.
type AttrEntry struct {
	Name   string `json:"name"`
	Dir    bool   `json:"dir"`
	Mode   uint32 `json:"mode"`             // permissions
	Target string `json:"target,omitempty"` // of a link
}

// UpgradeRequest is the body of a request for an upgrade.
type UpgradeRequest struct {
	// Binary is the new program, absolute; "": the file that is started without further ado.
	Binary string `json:"binary,omitempty"`
	// Devices are those whose servers are upgraded; empty: all that have a server.
	Devices []string `json:"devices,omitempty"`
	// Parallel is how many are at the same time; 0: 1.
	Parallel int `json:"parallel,omitempty"`
}

// UpgradeResult says how it went.
type UpgradeResult struct {
	PID     int     `json:"pid"`      // of the manager
	Devices int     `json:"devices"`  // that were left to another server
	Waiting int     `json:"waiting"`  // of those, not served yet
	PauseMS float64 `json:"pause_ms"` // no device's I/O waited for longer
	// Servers is how it went with each device, in the order of their names.
	Servers []UpgradedServer `json:"servers,omitempty"`
}

// What an upgrade may make of a server.
const (
	UpgradeDone    = "upgraded"
	UpgradeKept    = "kept"    // it can't leave its device, or doesn't answer, and goes on
	UpgradeUndone  = "undone"  // its successor didn't serve, and the program before it does again
	UpgradeFailed  = "failed"  // nor does that one
	UpgradeSkipped = "skipped" // not begun, as another one has failed
)

// UpgradedServer is one device of an upgrade.
type UpgradedServer struct {
	Device  string  `json:"device"`
	Result  string  `json:"result"` // one of the Upgrade constants
	Build   string  `json:"build"`  // of the program that serves it now
	Was     string  `json:"was"`    // and before
	PauseMS float64 `json:"pause_ms,omitempty"`
	Error   string  `json:"error,omitempty"`
}

// StopRequest is the body of a request to end all servers in order.
type StopRequest struct {
	Timeout Duration `json:"timeout,omitempty"` // "10s"; 0: as long as the client waits
}

// StopResult says which servers had not ended by then: their devices are in use, and they
// end when those are not any more.
type StopResult struct {
	Left []string `json:"left"`
}

// ReplaceRequest is what a file is to be replaced by.
type ReplaceRequest struct {
	Level *int      `json:"level,omitempty"` // 0 is the base; nil: the top
	Image image.Ref `json:"image"`
	Force bool      `json:"force,omitempty"`
	Drain Duration  `json:"drain,omitempty"` // "10s"; 0: DefaultDrain
}

// DefaultDrain is how long Replace waits for requests under way.
const DefaultDrain = 10 * time.Second

// CheckSpec validates a spec and cleans its paths.
func CheckSpec(spec *Spec) error {
	if err := spec.Validate(); err != nil {
		return Errorf(CodeInvalid, "%w", err)
	}
	spec.Images = slices.Clone(spec.Images)
	return CheckImages(spec.Images)
}

// CheckImages looks at paths from outside, and cleans them.
func CheckImages(images []image.Ref) error {
	for i := range images {
		p := images[i].Path
		if !filepath.IsAbs(p) {
			return Errorf(CodeInvalid, "image path %q is not absolute", p)
		}
		// JSON would silently turn other bytes into U+FFFD, in the record too.
		if !utf8.ValidString(p) {
			return Errorf(CodeInvalid, "image path %q is not UTF-8", p)
		}
		images[i].Path = filepath.Clean(p)
	}
	return nil
}
