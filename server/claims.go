package server

import (
	"errors"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"holdfast/api"
	"holdfast/ploop"
	"holdfast/state"
)

// claims are on the files of the device. They belong to the turn's holder.
type claims struct {
	all   *state.Claims
	files []state.ClaimedFile // claimed for good, by level
	log   zerolog.Logger
}

// add claims files for the device. A run directory that can't tell of others' claims is no
// reason not to serve: the images' own locks decide then.
func (c *claims) add(files []state.ClaimedFile) error {
	err := c.all.Add(files)
	switch {
	case errors.Is(err, state.ErrClaimed):
		return api.Errorf(api.CodeConflict, "%w", err)
	case err != nil:
		c.log.Warn().Err(err).Msg("the device's files could not be claimed")
	}
	return nil
}

// drop gives up what add claimed.
func (c *claims) drop(files []state.ClaimedFile) { c.all.Drop(files) }

// change claims the files that the device is to have from now on, all or none, and gives up
// the others.
func (c *claims) change(files []state.ClaimedFile) error {
	if err := c.add(files); err != nil {
		return err
	}
	c.drop(c.files)
	c.files = files
	return nil
}

// replaced gives up the file of a level for another one, which add claimed.
func (c *claims) replaced(level int, file state.ClaimedFile) {
	if level < len(c.files) {
		c.drop(c.files[level : level+1])
		c.files[level] = file
	}
}

// end gives up all of the device's.
func (c *claims) end() {
	c.drop(c.files)
	c.files = nil
}

// claimedFiles are the files of a spec, as they are claimed.
func claimedFiles(spec *api.Spec) ([]state.ClaimedFile, error) {
	var files []state.ClaimedFile
	for i := range spec.Images {
		f, err := claimedFile(spec, i, spec.Images[i])
		if err != nil {
			return nil, err
		}
		files = append(files, f)
	}
	return files, nil
}

// claimedFile is an image at a level of a spec. Only the top is written to.
func claimedFile(spec *api.Spec, level int, ref ploop.ImageRef) (state.ClaimedFile, error) {
	var st unix.Stat_t
	if err := unix.Stat(ref.Path, &st); err != nil {
		return state.ClaimedFile{}, api.Errorf(api.CodeImage, "image %q: %w", ref.Path, err)
	}
	return state.ClaimedFile{Path: ref.Path, ID: state.FileIDOf(&st), Write: level == len(spec.Images)-1 && !spec.ReadOnly}, nil
}
