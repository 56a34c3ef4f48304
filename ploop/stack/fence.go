package stack

import (
	"fmt"
	"slices"

	"holdfast/ploop/image"
	"holdfast/ploop/internal/storage"
)

// fence says whether the top may be written to, where another server may have writes under way.
func (s *Stack) fence(before []image.Mount) error {
	d := s.top
	f, ok := d.File.(*storage.OSFile)
	if !ok {
		if !d.File.Locked() {
			return fmt.Errorf("%q: %w", d.Ref.Path, ErrNoLock)
		}
		return nil
	}
	if len(before) == 0 && (!f.Locked() || f.Mount.Scope == image.ScopeMount) {
		before = []image.Mount{{Boot: f.Mount.Boot}}
	}
	for _, m := range before {
		if why := storage.FenceOff(f.Mount, m, f.Locked()); why != "" {
			class := ErrLocalLock
			if !f.Locked() {
				class = ErrNoLock
			}
			return fmt.Errorf("%q: %w: %s", d.Ref.Path, class, why)
		}
	}
	return nil
}

// whyLate says why a lock on d, which was just had, does not prove that nothing is under way in a
// file reached by before that can land in d; "": it does. One on a file system of this host's own
// is another file than one that lies elsewhere.
func (d *delta) whyLate(before []image.Mount) (why string) {
	if !d.File.Locked() {
		return "the file system has no locks"
	}
	f, ok := d.File.(*storage.OSFile)
	if !ok || f.Mount.Scope == image.ScopeHost {
		return ""
	}
	i := slices.IndexFunc(before, func(m image.Mount) bool {
		return m.Super != f.Mount.Super && (m.Scope != image.ScopeStorage || f.Mount.Scope != image.ScopeStorage)
	})
	if i < 0 {
		return ""
	}
	return fmt.Sprintf("they are under way in another mount (%s), whose locks this one (%s) does not see", storage.MountName(before[i]), storage.MountName(f.Mount))
}

// mounts are those where something of this stack, or of one before it, may be under way.
func (s *Stack) mounts() []image.Mount {
	all := slices.Clone(s.reached)
	if f, ok := s.top.File.(*storage.OSFile); ok && !slices.ContainsFunc(all, func(m image.Mount) bool { return m.Super == f.Mount.Super && m.Node == f.Mount.Node }) {
		all = append(all, f.Mount)
	}
	return all
}
