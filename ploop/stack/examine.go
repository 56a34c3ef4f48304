package stack

import (
	"golang.org/x/sys/unix"

	"holdfast/ploop/image"
	"holdfast/ploop/internal/chain"
	"holdfast/ploop/internal/format"
	"holdfast/ploop/internal/plain"
	"holdfast/ploop/internal/storage"
)

// Examine says what would keep Open from taking images, as far as that can be seen while another
// stack has them open, in this process or another: whether they can be opened, and for
// writing, their headers, sizes and marks. It takes no lock, doesn't read the index, and may hang
// with the images' storage.
func Examine(refs []image.Ref, o Options) error {
	if err := chain.Distinct(refs); err != nil {
		return err
	}
	s := &Stack{readOnly: o.ReadOnly, opts: o, log: func(string, ...any) {}}
	defer s.closeFiles()
	for level, ref := range refs {
		top, raw := level == len(refs)-1, o.RawSize
		if top {
			raw = o.Size
		}
		d, err := openDelta(ref, storage.OpenUnlocked, false, false, o.tolerance(), raw)
		if err != nil {
			return err
		}
		d.Level = level
		s.deltas = append(s.deltas, d)
		if err := s.checkInUse(d, top, o); err != nil {
			return err
		}
	}
	s.top = s.deltas[len(s.deltas)-1]
	if err := s.wasLeft(o); err != nil {
		return err
	}
	if !o.ReadOnly {
		f, err := plain.Open(s.top.Ref.Path, unix.O_RDWR|unix.O_NONBLOCK, 0)
		if err != nil {
			return &image.IOError{Op: "open", File: s.top.Ref.Path, Offset: -1, Err: err}
		}
		f.Close()
	}
	return s.fit()
}

// wasLeft wants the mark of a top that is continued.
func (s *Stack) wasLeft(o Options) error {
	if o.Continue && !o.ReadOnly && !s.top.Ref.Raw && s.top.Header.InUse != format.InUseDirty {
		return s.top.Diverged(44, "in_use", "clear: the image was closed since, or is another", "the mark that the device left")
	}
	return nil
}
