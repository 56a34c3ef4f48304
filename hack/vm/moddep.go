package main

import (
	"fmt"
	"path"
	"strings"
)

// moduleDeps is modules.dep: from a module's name to its file and the files
// that it needs, relative to the modules directory.
type moduleDeps map[string]moduleEntry

type moduleEntry struct {
	file  string
	needs []string // files
}

func parseModulesDep(text string) moduleDeps {
	deps := moduleDeps{}
	for _, line := range strings.Split(text, "\n") {
		file, needs, ok := strings.Cut(line, ":")
		if ok {
			deps[moduleName(file)] = moduleEntry{file, strings.Fields(needs)}
		}
	}
	return deps
}

// moduleName is a module's name as the kernel knows it: without directory and
// extensions, with underscores.
func moduleName(file string) string {
	name, _, _ := strings.Cut(path.Base(file), ".ko")
	return strings.ReplaceAll(name, "-", "_")
}

// closure lists the files of the named modules and of all that they need, each
// after what it needs. Modules in builtin are in the kernel and left out.
func (d moduleDeps) closure(builtin map[string]bool, names ...string) ([]string, error) {
	var out []string
	done := map[string]bool{}
	var add func(name string) error
	add = func(name string) error {
		if done[name] || builtin[name] {
			return nil
		}
		done[name] = true // before the needs: depmod's cycles must not loop us
		e, ok := d[name]
		if !ok {
			return fmt.Errorf("the kernel has no module %s, neither built in nor as a file", name)
		}
		for _, n := range e.needs {
			if err := add(moduleName(n)); err != nil {
				return err
			}
		}
		out = append(out, e.file)
		return nil
	}
	for _, n := range names {
		if err := add(moduleName(n)); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func parseModulesBuiltin(text string) map[string]bool {
	out := map[string]bool{}
	for _, line := range strings.Fields(text) {
		out[moduleName(line)] = true
	}
	return out
}
