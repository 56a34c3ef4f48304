package target

import (
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"time"
)

// maxStack bounds how deep devices are followed that are stacked on one another.
const maxStack = 16

// statTime is how long a path has to tell what it is. A target may export a file in
// storage that is dead, and the others are looked at all the same.
const statTime = time.Second

// disks are the whole disks below a path, itself included if it is one. ok is false if
// something on the way hangs: then they aren't all.
func (s *scanner) disks(path string) (disks []string, ok bool) {
	found := map[string]struct{}{}
	s.hung = false
	s.follow(path, found, maxStack)
	return slices.Sorted(maps.Keys(found)), !s.hung
}

// known are the disks of a backing as they were when they could last be told.
func (s *scanner) known(k Kind, b Backing) []string {
	for _, was := range s.last[k].Backings {
		if was.Name == b.Name && was.Path == b.Path {
			return was.Disks
		}
	}
	return nil
}

type number struct {
	major, minor uint32
	ok           bool
}

// number asks for a device number and waits for so long. While the question hangs it isn't
// asked again.
func (s *scanner) number(path string) number {
	came, asked := s.asked[path]
	wait := time.Duration(0)
	if !asked {
		came, wait = make(chan number, 1), statTime
		s.asked[path] = came
		go func() {
			var n number
			n.major, n.minor, n.ok = s.Number(path)
			came <- n
		}()
	}
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case n := <-came:
		delete(s.asked, path)
		return n
	case <-t.C:
		s.hung = true
		return number{}
	}
}

func (s *scanner) follow(path string, found map[string]struct{}, depth int) {
	n := s.number(path)
	if !n.ok {
		return
	}
	dir, err := filepath.EvalSymlinks(filepath.Join(s.Sys, "dev", "block", fmt.Sprintf("%d:%d", n.major, n.minor)))
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
