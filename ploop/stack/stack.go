package stack

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"holdfast/internal/failpoint"
	"holdfast/ploop/image"
	"holdfast/ploop/internal/chain"
	"holdfast/ploop/internal/format"
	"holdfast/ploop/internal/lock"
	"holdfast/ploop/internal/storage"
	"holdfast/ploop/internal/table"
)

// Stack is an open stack of images. See the package's text for how its methods
// may be used together.
type Stack struct {
	deltas   []*delta
	top      *delta
	readOnly bool
	noOrder  bool

	believing bool // tests' control: hold a failed sync only against those who shared it
	log       func(string, ...any)

	size     int64  // of the disk, in bytes
	cluster  int64  // in bytes
	clusters uint64 // of the disk
	baseEnd  int64  // the size of a raw base, which may end within a cluster
	misfit   int64  // bits that offsets and lengths of direct transfers don't have

	opts  Options
	table *table.Table
	locks lock.ByNumber
	grace grace
	slow  *Reader // of the blocking calls
	calls calls
	life  life
	space space
	index index

	// indexSeq counts writes of the index, synced those known durable.
	indexSeq, synced atomic.Uint64
	allocated        atomic.Int64 // clusters of the top

	bitmaps []*format.Bitmap // kept true by every write; nil: none
	unknown []format.Section // extension sections carried along
	keep    uint64           // positions of the file below it stay, on their account

	hintFailed atomic.Bool // and it was told of
	// reached are the mounts of files in this one's place before, where something may be
	// under way.
	reached []image.Mount

	closeMu sync.Mutex
	closed  atomic.Bool
}

// Open opens the images of a stack, base first, checks each of them wholly,
// and locks them: the top for this process alone, the others against writers.
// For a writable stack it then sets in_use, durably.
func Open(refs []image.Ref, o Options) (*Stack, error) {
	s, err := openStack(refs, o)
	if err != nil {
		return nil, err
	}
	if !s.readOnly {
		if o.Locked {
			if err := s.fence(o.Before); err != nil {
				s.discard()
				return nil, err
			}
		}
		if err := s.beginWriting(); err != nil {
			s.discard()
			return nil, err
		}
	}
	return s, nil
}

// discard gives up a stack that nobody has used.
func (s *Stack) discard() error {
	s.table.Free()
	return s.closeFiles()
}

func openStack(refs []image.Ref, o Options) (_ *Stack, err error) {
	if err := chain.Count(refs); err != nil {
		return nil, err
	}
	open := o.open
	if open == nil {
		open = storage.Open
		o.open = open
		if err := chain.Distinct(refs); err != nil {
			return nil, err
		}
	}
	if o.Damaged && !o.ReadOnly {
		return nil, fmt.Errorf("%w: damaged images are opened read-only", ErrReadOnly)
	}
	o.hasty = o.hasty || failpoint.Off("no-durable-room")
	s := &Stack{readOnly: o.ReadOnly, noOrder: o.noOrder, log: o.Log, opts: o}
	if s.log == nil {
		s.log = func(string, ...any) {}
	}
	defer func() {
		if err != nil {
			s.discard()
		}
	}()
	for level, ref := range refs {
		top := level == len(refs)-1
		raw := o.RawSize
		if top {
			raw = o.Size
		}
		d, err := openDelta(ref, open, top && !o.ReadOnly, !o.NoDirect, o.tolerance(), raw)
		if err != nil {
			return nil, err
		}
		d.Level = level
		s.deltas = append(s.deltas, d)
		if d.Ext != nil && (!top || o.ReadOnly) {
			d.Ext.Forget()
		}
		if err := s.checkInUse(d, top, o); err != nil {
			return nil, err
		}
	}
	if err := chain.Protect(s.images()); err != nil {
		return nil, err
	}
	s.top = s.deltas[len(s.deltas)-1]
	if err := s.wasLeft(o); err != nil {
		return nil, err
	}
	if err := s.fit(); err != nil {
		return nil, err
	}
	if err := s.load(); err != nil {
		return nil, err
	}
	s.space.expect(s.top.Size)
	s.start()
	if o.Damaged {
		s.logDamage()
	}
	if !o.ReadOnly && !s.top.Ref.Raw && (o.Distrust || o.TakeOver && s.top.Header.InUse == format.InUseDirty && s.top.cached()) {
		s.index.distrust(s)
	}
	return s, nil
}

// cached says whether the image is, or may be, read through the page cache, where what a failed
// sync has lost may still be seen.
func (d *delta) cached() bool {
	f, ok := d.File.(*storage.OSFile)
	return ok && !f.Direct.Bypasses
}

// TopCached says that the top goes through the page cache, or that nothing tells that it doesn't.
func (s *Stack) TopCached() bool { return s.top.cached() }

// start readies what all stacks begin with.
func (s *Stack) start() {
	s.grace.init()
	s.calls.init()
	s.life.ended = make(chan struct{})
	s.slow = s.NewReader()
}

func (s *Stack) checkInUse(d *delta, top bool, o Options) error {
	err := d.LeftInUse()
	if err == nil {
		return nil
	}
	if top && o.ReadOnly || top && o.TakeOver || o.Damaged {
		if !o.Continue && !o.Damaged { // nobody expected it to be
			s.log("%q was not closed cleanly; its index checks clean and is used as it is", d.Ref.Path)
		}
		return nil
	}
	return err
}

// fit checks that the deltas belong over one another and takes the geometry
// from the top.
func (s *Stack) fit() error {
	g, err := chain.Fit(s.images(), s.opts.TakeOver || s.opts.Size > 0)
	if err != nil {
		return err
	}
	s.size, s.cluster, s.clusters, s.baseEnd = g.Size, g.Cluster, g.Clusters, g.BaseEnd
	s.misfit = 0
	for _, d := range s.deltas {
		if f, ok := d.File.(*storage.OSFile); ok {
			s.misfit |= f.Direct.Unit - 1
		}
	}
	return nil
}

// load merges the BATs, the base's first, and readies the top's free space.
func (s *Stack) load() (err error) {
	if s.table, err = table.New(s.clusters); err != nil {
		return err
	}
	for _, d := range s.deltas {
		used, n, err := d.FillTable(s.table.Init, s.clusters)
		if err != nil {
			return err
		}
		if d == s.top && !d.Ref.Raw {
			s.allocated.Store(n)
			s.space.load(used)
		}
	}
	return nil
}

// logDamage says what a damaged stack can't give.
func (s *Stack) logDamage() {
	d := s.Damage()
	for _, g := range d.Guesses {
		s.log("%s", g)
	}
	if d.UnreadableBytes > 0 {
		s.log("%q: %d bytes of the disk can't be read, the first of them at %v", s.top.Ref.Path, d.UnreadableBytes, d.Unreadable[0])
	}
	if d.DoubtfulBytes > 0 {
		s.log("%q: %d bytes of the disk share their place with others and may be wrong, the first of them at %v", s.top.Ref.Path, d.DoubtfulBytes, d.Doubtful[0])
	}
}

// Damage looks through the whole index for what the images have lost ([Options.Damaged]).
func (s *Stack) Damage() *image.Damage { return s.view().Damage() }

// view is the stack as it is read by those who don't write to it.
func (s *Stack) view() *chain.Chain {
	g := chain.Geometry{Size: s.size, Cluster: s.cluster, Clusters: s.clusters, BaseEnd: s.baseEnd}
	return &chain.Chain{Deltas: s.images(), Geometry: g, Table: s.table}
}

// writeHeader writes the top's first sector and makes it durable.
func (s *Stack) writeHeader() error {
	d := s.top
	b := storage.AlignedBuffer(image.SectorSize)
	s.index.fill(s, b, 0, nil)
	if _, err := d.File.WriteAt(b, 0); err != nil {
		return d.IOError("write header", 0, err)
	}
	return d.IOError("sync", -1, d.File.Sync())
}

func (s *Stack) closeFiles() (err error) {
	for _, d := range s.deltas {
		err = errors.Join(err, d.release())
	}
	return err
}
