package target

import (
	"fmt"
	"maps"
	"path/filepath"
	"slices"
)

// maxStack bounds how deep devices are followed that are stacked on one another.
const maxStack = 16

// disks are the whole disks below a path, itself included if it is one.
func (s *scanner) disks(path string) []string {
	found := map[string]struct{}{}
	s.follow(path, found, maxStack)
	return slices.Sorted(maps.Keys(found))
}

func (s *scanner) follow(path string, found map[string]struct{}, depth int) {
	major, minor, ok := s.Number(path)
	if !ok {
		return
	}
	dir, err := filepath.EvalSymlinks(filepath.Join(s.Sys, "dev", "block", fmt.Sprintf("%d:%d", major, minor)))
	if err != nil {
		return
	}
	s.descend(dir, found, depth)
}

// descend takes a block device's directory in sysfs.
func (s *scanner) descend(dir string, found map[string]struct{}, depth int) {
	if depth == 0 {
		return
	}
	if number, _ := attr(dir, "partition"); number != "" {
		dir = filepath.Dir(dir)
	}
	name := filepath.Base(dir)
	if _, seen := found[name]; seen {
		return
	}
	found[name] = struct{}{}
	slaves, _, _ := list(filepath.Join(dir, "slaves"))
	for _, slave := range slaves {
		if below, err := filepath.EvalSymlinks(filepath.Join(dir, "slaves", slave)); err == nil {
			s.descend(below, found, depth-1)
		}
	}
	if file, _ := attr(dir, "loop", "backing_file"); file != "" {
		s.follow(file, found, depth-1)
	}
}
