// Package build tells programs of the same source apart.
package build

import (
	"fmt"
	"os"
	"runtime/debug"
)

// override is set by the linker (-X holdfast/internal/build.override=1.2) for builds without
// version control.
var override string

// Version is the module's version, or the commit that the program was built from.
func Version() string {
	if override != "" {
		return override
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	if v := info.Main.Version; v != "" && v != "(devel)" {
		return v
	}
	rev, dirty := "", ""
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision":
			rev = s.Value
		case s.Key == "vcs.modified" && s.Value == "true":
			dirty = "+changes"
		}
	}
	if len(rev) > 12 {
		rev = rev[:12]
	}
	if rev == "" {
		return "devel"
	}
	return "devel-" + rev + dirty
}

// ID identifies the file of the running program.
func ID() string {
	id, err := Of("/proc/self/exe")
	if err != nil {
		return "unknown"
	}
	return id
}

// Of identifies a program's file: one that was installed over another has another size or time.
func Of(path string) (string, error) {
	fi, err := os.Stat(path)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%x-%x", fi.Size(), fi.ModTime().UnixNano()), nil
}
