package server

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"holdfast/api"
	"holdfast/ploop"
	"holdfast/server/device"
	"holdfast/state"
)

// identify looks up the files of a stack.
func identify(refs []ploop.ImageRef) ([]state.ImageID, error) {
	ids := make([]state.ImageID, len(refs))
	for i, ref := range refs {
		var st unix.Stat_t
		if err := unix.Stat(ref.Path, &st); err != nil {
			return nil, api.Errorf(api.CodeImage, "image %w", &fs.PathError{Op: "stat", Path: ref.Path, Err: err})
		}
		ids[i] = state.ImageID{Dev: st.Dev, Ino: st.Ino}
	}
	return ids, nil
}

// changed says of the first image that isn't the file it was when it was served, or of which
// that can't be told; nil: all are the same. With remounted the file systems may have been
// mounted anew since; without, that makes the content decide.
func changed(rec *state.Record, boot string, remounted bool) error {
	for i, ref := range rec.Spec.Images {
		ids, err := identify(rec.Spec.Images[i : i+1])
		if err != nil {
			return err
		}
		was := rec.Images[i]
		anew := boot == rec.BootID && ids[0].Dev != was.Dev && !remounted
		if e := evidenceOf(rec, i); e != nil {
			if err := ploop.SameFile(e, ref, anew); err != nil {
				return err
			}
			continue
		}
		switch {
		case ids[0].Ino == was.Ino && anew:
			return fmt.Errorf("image %q lies on another file system than the one that was served, or on the same one mounted anew, which can't be told", ref.Path)
		case ids[0].Ino != was.Ino:
			return fmt.Errorf("image %q: %w: it is inode %d, and that was inode %d", ref.Path, ploop.ErrUnproven, ids[0].Ino, was.Ino)
		}
	}
	return nil
}

// evidenceOf an image, nil: there is none.
func evidenceOf(rec *state.Record, level int) *ploop.Evidence {
	if level >= len(rec.Evidence) || rec.Evidence[level].Mount.Boot == "" {
		return nil
	}
	return &rec.Evidence[level]
}

// knownOf is what the record knows of the files. Whatever the earlier server had under way went
// to the top.
func knownOf(rec *state.Record) device.Known {
	k := device.Known{Size: rec.Size, Before: slices.Clone(rec.Earlier)}
	if rec.Spec.Images[0].Raw && len(rec.Spec.Images) > 1 {
		if e := evidenceOf(rec, 0); e != nil {
			k.RawSize = e.Size
		}
	}
	top := len(rec.Images) - 1
	if e := evidenceOf(rec, top); e != nil {
		k.Before = append(k.Before, e.Mount)
	} else if len(rec.Evidence) == 0 { // an old record
		k.Before = append(k.Before, ploop.Mount{Boot: rec.BootID, Super: rec.Images[top].Dev, Node: rec.Images[top].Ino})
	}
	return k
}

// recordOpened takes what was opened into the record.
func recordOpened(rec *state.Record, o device.Opened) {
	rec.Size, rec.Evidence, rec.Earlier, rec.Left = o.Size, o.Merge(rec.Evidence), o.Earlier, false
	rec.Images = slices.Clone(rec.Images)
	for i, e := range o.Evidence {
		if e.Mount.Boot != "" && i < len(rec.Images) {
			rec.Images[i] = state.ImageID{Dev: e.Device, Ino: e.Inode}
		}
	}
}

// replaced forgets what was known of a level's file, but for the mount by which writes to it
// may be under way. A file on another file system of this host's own is out of their reach.
func replaced(rec *state.Record, level int, id state.ImageID, by ploop.ImageRef) {
	before := knownOf(rec).Before
	rec.Images, rec.Evidence = slices.Clone(rec.Images), slices.Clone(rec.Evidence)
	rec.Images[level] = id
	if level < len(rec.Evidence) {
		rec.Evidence[level] = ploop.Evidence{}
	}
	if level != len(rec.Images)-1 {
		return
	}
	now, err := ploop.MountOf(by.Path)
	rec.Earlier = slices.DeleteFunc(before, func(m ploop.Mount) bool {
		return err == nil && now.Scope == ploop.ScopeHost && m.Scope == ploop.ScopeHost && now.Super != m.Super
	})
}

// notTheFile says whether an error is of a file that isn't the one that was served, or may not
// be: who knows better can force it.
func notTheFile(err error) bool {
	return errors.Is(err, ploop.ErrUnproven) || errors.Is(err, ploop.ErrDiverged)
}

// opened takes what the device has opened into its record, before it is served and later. What
// can't be recorded in the state directory is in the run directory: no reopening fails for that.
func (s *Server) opened(o device.Opened) error {
	s.mu.Lock()
	served := s.dev != nil
	s.mu.Unlock()
	var err error
	if served {
		err = s.ledger.recordChange(func(rec *state.Record) { recordOpened(rec, o) })
	} else {
		err = s.ledger.amend(func(rec *state.Record) {
			recordOpened(rec, o)
			rec.PID, rec.BootID = os.Getpid(), s.boot
		})
	}
	if err != nil {
		s.log.Warn().Err(err).Msg("where its images are could not be recorded")
	}
	return nil
}
