package ploop

import (
	"golang.org/x/sys/unix"
)

// Examine says what would keep Open from taking images, as far as that can be seen while another
// stack has them open, in this process or another: whether they can be opened, and for
// writing, their headers, sizes and marks. It takes no lock, doesn't read the index, and may hang
// with the images' storage.
func Examine(refs []ImageRef, o Options) error {
	if err := distinct(refs); err != nil {
		return err
	}
	s := &Stack{readOnly: o.ReadOnly, opts: o, log: func(string, ...any) {}}
	defer s.closeFiles()
	for level, ref := range refs {
		top, raw := level == len(refs)-1, o.RawSize
		if top {
			raw = o.Size
		}
		d, err := openDelta(ref, openUnlocked, false, false, o.tolerance(), raw)
		if err != nil {
			return err
		}
		d.level = level
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
		f, err := openPlain(s.top.ref.Path, unix.O_RDWR|unix.O_NONBLOCK, 0)
		if err != nil {
			return &IOError{Op: "open", File: s.top.ref.Path, Offset: -1, Err: err}
		}
		f.Close()
	}
	return s.fit()
}

// wasLeft wants the mark of a top that is continued.
func (s *Stack) wasLeft(o Options) error {
	if o.Continue && !o.ReadOnly && !s.top.ref.Raw && s.top.hdr.InUse != inUseDirty {
		return s.top.diverged(44, "in_use", "clear: the image was closed since, or is another", "the mark that the device left")
	}
	return nil
}
