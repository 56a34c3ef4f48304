package stack

import (
	"errors"
	"fmt"
	"slices"

	"holdfast/ploop/image"
	"holdfast/ploop/internal/chain"
	"holdfast/ploop/internal/format"
	"holdfast/ploop/internal/storage"
	"holdfast/ploop/internal/table"
)

// successor is a stack that is being made to go on where another one stands. Nobody else has it.
type successor struct{ *Stack }

// succeed makes the stack of Handover.Prepare.
func (s *Stack) succeed(c Succession) (_ *Stack, err error) {
	if err := s.checkSuccession(c); err != nil {
		return nil, err
	}
	n := &successor{&Stack{readOnly: s.readOnly, noOrder: s.noOrder, log: s.log, opts: s.opts}}
	n.opts.Size = s.size // a raw base may have become longer
	n.start()
	n.grace.skip = s.grace.skip
	s.space.ahead.wait(s, lockTime) // nobody else does
	if !s.idle() {
		n.life.before = append(n.life.before, s)
	}
	if !s.life.predecessorsIdle() {
		s.life.mu.Lock()
		n.life.before = append(n.life.before, s.life.before...)
		s.life.mu.Unlock()
	}
	n.life.careless = s.life.careless
	c.Drained = c.Drained && len(n.life.before) == 0
	if !c.Drained {
		n.reached = s.mounts()
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, n.unmark(), n.discard(), s.takeLocksBack())
		}
	}()
	for level, ref := range c.Refs {
		d := s.deltas[level]
		if c.Reopen[level] {
			if d, err = s.reopen(level, ref, c); err != nil {
				return nil, err
			}
		} else {
			d.users.Add(1)
		}
		n.deltas = append(n.deltas, d)
	}
	if err := chain.Protect(n.images()); err != nil {
		return nil, err
	}
	n.top = n.deltas[len(n.deltas)-1]
	if err := n.distinct(c); err != nil {
		return nil, err
	}
	if err := n.inherit(s, c); err != nil {
		return nil, err
	}
	if c.Reopen[n.Top()] && !n.readOnly && !n.top.Ref.Raw {
		if err := n.mark(); err != nil {
			return nil, err
		}
	}
	if n.top == s.top {
		s.life.after.Store(n.Stack)
	}
	return n.Stack, nil
}

func (s *Stack) checkSuccession(c Succession) error {
	if s.closed.Load() {
		return ErrClosed
	}
	if len(c.Refs) != len(s.deltas) || len(c.Reopen) != len(s.deltas) {
		return fmt.Errorf("%w: %d images, %d to reopen or not, in the place of %d", image.ErrGeometry, len(c.Refs), len(c.Reopen), len(s.deltas))
	}
	for level, d := range s.deltas {
		if !c.Reopen[level] && c.Refs[level] != d.Ref {
			return fmt.Errorf("%w: image %d is said to be %v now, and not to be opened", image.ErrGeometry, level, c.Refs[level])
		}
	}
	top := s.Top()
	if stuck := s.life.structure.Load(); stuck > 0 && (!c.Force || !c.Reopen[top]) {
		how := "; abort its mount (umount -f, or 1 into /sys/fs/fuse/connections/N/abort), or force it if the old storage is fenced off for certain"
		if !c.Reopen[top] {
			how = ", which would go on to be used"
		}
		return fmt.Errorf("%w: %d writes of the index of %q have not come back and could still land%s", ErrInFlight, stuck, s.top.Ref.Path, how)
	}
	return nil
}

// reopen opens the file that is to be a level's.
func (s *Stack) reopen(level int, ref image.Ref, c Succession) (*delta, error) {
	was := s.deltas[level]
	write := level == s.Top() && !s.readOnly
	var raw int64
	if was.Ref.Raw && !c.Force {
		raw = was.Size
	}
	open := func() (*delta, error) {
		return openDelta(ref, s.opts.open, write, !s.opts.NoDirect, s.opts.tolerance(), raw)
	}
	d, err := open()
	if errors.Is(err, image.ErrLocked) && c.Drained && was.File.Locked() {
		if err := was.giveLock(); err != nil {
			s.log("%v", err) // the storage may be dead, and its locks with it
		}
		d, err = open()
	}
	switch {
	case errors.Is(err, image.ErrLocked) && !c.Drained && !s.readOnly:
		return nil, fmt.Errorf("%w; if that is this device itself: requests are under way in the old storage and could still land here, so wait for them or abort its mount", err)
	case err != nil:
		return nil, err
	}
	d.Level = level
	if ref.Raw && level == s.Top() && d.Size > s.size {
		d.Size = s.size // forced, and longer
		d.SetRawCluster(format.RawCluster / image.SectorSize)
	}
	if why := d.whyLate(s.mounts()); write && !c.Drained && !c.Force && why != "" {
		err := fmt.Errorf("%w, and nothing tells whether they could land in %q: %s; abort the old storage's mount, or force it", ErrInFlight, ref.Path, why)
		return nil, errors.Join(err, d.release())
	}
	return d, nil
}

// distinct refuses a file that is in the stack twice. It asks no storage.
func (n *successor) distinct(c Succession) error {
	for i, d := range n.deltas {
		for k, other := range n.deltas {
			if k != i && c.Reopen[i] && sameFile(d, other) {
				return &image.FormatError{File: d.Ref.Path, Offset: -1, What: "stack", Class: image.ErrGeometry, Found: fmt.Sprintf("the same file as image %d", k), Want: "each file once"}
			}
		}
	}
	return nil
}

func sameFile(a, b *delta) bool {
	f, ok := a.File.(*storage.OSFile)
	g, ok2 := b.File.(*storage.OSFile)
	return ok && ok2 && f.Dev == g.Dev && f.Ino == g.Ino
}

// inherit checks the images opened anew and builds the stack's state from
// them and from what s knows.
func (n *successor) inherit(s *Stack, c Succession) (err error) {
	for level, d := range n.deltas {
		if !c.Reopen[level] {
			continue
		}
		if level == n.Top() && !n.readOnly && !d.Ref.Raw {
			if err := d.canGrow(); err != nil {
				return err
			}
		}
		if was := s.deltas[level]; level == n.Top() && !c.Force && s.space.cut.Load() && sameFile(was, d) {
			return d.truncated(d.Size, s.space.size.Load())
		}
		if c.Force {
			err = n.takeInUse(d)
		} else {
			err = n.sameHead(s.deltas[level], d)
		}
		if err != nil {
			return err
		}
		if level == n.Top() && c.Force && !n.readOnly {
			if err := d.extLoss(); err != nil {
				return err
			}
			if d.Ext != nil {
				if d.Ext, err = d.Ext.Keepable(d.Delta); err != nil {
					return err
				}
			}
		} else if d.Ext != nil && (level != n.Top() || n.readOnly) {
			d.Ext.Forget()
		}
	}
	if err := n.fit(); err != nil {
		return err
	}
	if n.size != s.size || n.cluster != s.cluster {
		return &image.FormatError{File: n.top.Ref.Path, Offset: -1, What: "disk", Class: image.ErrGeometry,
			Found: fmt.Sprintf("%d bytes in clusters of %d", n.size, n.cluster),
			Want:  fmt.Sprintf("%d bytes in clusters of %d, which can't change under a live device", s.size, s.cluster)}
	}
	if n.table, err = table.New(n.clusters); err != nil {
		return err
	}
	known := s.knowledge()
	if c.Force {
		err = n.mergeAnew(s, c)
	} else {
		err = n.compare(s, c, known)
	}
	if err != nil {
		return err
	}
	n.inheritEnd(s, c)
	if n.readOnly || n.top.Ref.Raw {
		return nil
	}
	n.inheritIndex(c, known)
	n.inheritExtension(s, c)
	n.inheritSpace(s, c)
	return nil
}

// takeInUse is the check of in_use for images that are taken as they are.
func (n *successor) takeInUse(d *delta) error {
	o := n.opts
	o.TakeOver = true
	return n.checkInUse(d, d.Level == n.Top(), o)
}

// inheritIndex marks what isn't known durable of the index as lost: it is
// written anew before anything relies on it.
func (n *successor) inheritIndex(c Succession, known knowledge) {
	l := &n.index.lost
	l.Lock()
	defer l.Unlock()
	l.recent, l.sectors = map[int64]uint64{}, known.unsynced
	l.n.Store(int64(len(l.sectors)))
	if !c.Reopen[n.Top()] {
		n.index.doubt = map[int64][]indexOp{}
		for i, op := range known.doubt {
			if !n.inTop(op.from) {
				op.from = n.table.Load(i) // a lower image may be another
			}
			at := format.SectorOfEntry(i)
			n.index.doubt[at] = append(n.index.doubt[at], op)
		}
		for i := range known.doubt {
			n.table.SetBusy(i)
		}
	}
	for at := range l.sectors {
		n.index.mark(n.Stack, at)
	}
}

// inheritExtension carries over what the file of a top in use doesn't tell.
func (n *successor) inheritExtension(s *Stack, c Succession) {
	own := n.top.Ext
	n.bitmaps, n.unknown, n.keep = s.bitmaps, s.unknown, s.keep
	if c.Reopen[n.Top()] {
		n.top.Ext, n.top.ExtErr = s.top.Ext, nil
	}
	if !c.Force {
		return
	}
	if own != nil && c.Reopen[n.Top()] {
		n.unknown = own.Unknown
	}
	if len(n.bitmaps) == 0 {
		return
	}
	n.log("%q: its dirty bitmaps are not known to be true and say that all was written", n.top.Ref.Path)
	n.bitmaps = slices.Clone(n.bitmaps)
	for i, b := range n.bitmaps {
		set := *b // s goes on with its own if this is undone
		set.Bits = make([]uint64, len(b.Bits))
		for g := range b.Granules() {
			set.Bits[g/64] |= 1 << (g % 64)
		}
		n.bitmaps[i] = &set
	}
}

// inheritEnd knows where the top's file ends. What of s is still under way may
// yet make it longer.
func (n *successor) inheritEnd(s *Stack, c Succession) {
	p := &n.space
	if c.Reopen[n.Top()] {
		n.space.expect(n.top.Size)
	} else {
		n.space.expect(s.space.size.Load())
		p.cut.Store(s.space.cut.Load())
	}
	raise(&p.reach, s.space.reach.Load())
}

// inheritSpace finds out where new clusters may be put. What s doesn't hold for
// free isn't, although no entry has it: the durable index may still have one, or
// a failed write might bring one.
func (n *successor) inheritSpace(s *Stack, c Succession) {
	d, p := n.top, &n.space
	end := s.space.end.Load()
	whole := end
	if c.Reopen[n.Top()] {
		whole = d.FileClusters()
		if int64(d.Header.SectorAt(whole))*image.SectorSize < d.Size {
			end = max(end, whole+1) // nothing is known of the end that is half a cluster
		}
		end = max(end, whole)
		if c.Force && len(n.unknown) > 0 {
			n.keep = max(n.keep, end)
		}
	}
	if c.Force || !c.Drained && !n.life.careless {
		p.freeze(end)
		return
	}
	s.space.mu.Lock()
	defer s.space.mu.Unlock()
	p.free = s.space.free.Clone(whole)
	p.next, p.have = s.space.next, s.space.have
	p.zeroes.inherit(&s.space.zeroes)
	if c.Reopen[n.Top()] {
		// The file is cut off by nobody, so what lies behind the last cluster
		// that was ever used is free, but not known to be zero.
		for pos := s.space.next; pos < whole; pos++ {
			p.free.Add(pos)
		}
		p.next, p.have = end, end
	}
	p.end.Store(p.have)
	for i := range n.clusters {
		if e := n.table.Load(i); n.inTop(e) {
			p.free.Remove(d.Header.PositionOf(uint64(e.Sector())))
		}
	}
}

// mark sets in_use in the new top, durably.
func (n *successor) mark() error {
	d := n.top
	b := storage.AlignedBuffer(image.SectorSize)
	if err := d.ReadSectors(b, 0, min(image.SectorSize, d.Size)); err != nil {
		return d.IOError("read header", 0, err)
	}
	n.life.first = b
	d.Header.InUse, d.Header.ExtOff = format.InUseDirty, 0
	d.Header.Flags &^= format.FlagEmpty
	if err := n.writeHeader(); err != nil {
		return err
	}
	d.WroteFirst()
	return nil
}
