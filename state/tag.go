package state

import (
	"hash/fnv"
	"path/filepath"
)

// TagOf is the driver's mark on the devices of a state directory's daemons:
// "hold" in ASCII, and a hash of the directory's name.
func TagOf(stateDir string) uint64 {
	if abs, err := filepath.Abs(stateDir); err == nil {
		stateDir = abs
	}
	h := fnv.New32a()
	h.Write([]byte(stateDir))
	return 0x686f6c64<<32 | uint64(h.Sum32())
}
