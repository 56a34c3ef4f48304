package ploop

import (
	"fmt"
	"slices"
)

// fence says whether the top may be written to, where another server may have writes under way.
func (s *Stack) fence(before []Mount) error {
	d := s.top
	f, ok := d.file.(*osFile)
	if !ok {
		if !d.file.Locked() {
			return fmt.Errorf("%q: %w", d.ref.Path, ErrNoLock)
		}
		return nil
	}
	if len(before) == 0 && (!f.Locked() || f.mount.Scope == ScopeMount) {
		before = []Mount{{Boot: f.mount.Boot}}
	}
	for _, m := range before {
		if why := fenceOff(f.mount, m, f.Locked()); why != "" {
			class := ErrLocalLock
			if !f.Locked() {
				class = ErrNoLock
			}
			return fmt.Errorf("%q: %w: %s", d.ref.Path, class, why)
		}
	}
	return nil
}

// tells says whether a lock on d, which was just had, tells that nothing which is under way in a
// file that was reached by before can land in d. One on a file system of this host's own is
// another file than one that lies elsewhere.
func (d *delta) tells(before []Mount) (why string) {
	if !d.file.Locked() {
		return "the file system has no locks"
	}
	f, ok := d.file.(*osFile)
	if !ok || f.mount.Scope == ScopeHost {
		return ""
	}
	i := slices.IndexFunc(before, func(m Mount) bool {
		return m.Super != f.mount.Super && (m.Scope != ScopeStorage || f.mount.Scope != ScopeStorage)
	})
	if i < 0 {
		return ""
	}
	return fmt.Sprintf("they are under way in another mount (%s), whose locks this one (%s) does not see", mountName(before[i]), mountName(f.mount))
}

// mounts are those where something of this stack, or of one before it, may be under way.
func (s *Stack) mounts() []Mount {
	all := slices.Clone(s.reached)
	if f, ok := s.top.file.(*osFile); ok && !slices.ContainsFunc(all, func(m Mount) bool { return m.Super == f.mount.Super && m.Node == f.mount.Node }) {
		all = append(all, f.mount)
	}
	return all
}
