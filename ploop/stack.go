package ploop

import (
	"errors"
	"fmt"
	"math"
	"os"
	"sync"
	"sync/atomic"
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
	table *table
	locks clusterLocks
	grace grace
	slow  *Reader // of the blocking calls
	calls calls
	life  life
	space space
	index index

	// indexSeq counts writes of the index, synced those known durable.
	indexSeq, synced atomic.Uint64
	allocated        atomic.Int64 // clusters of the top

	bitmaps []*Bitmap // kept true by every write; nil: none
	unknown []section // extension sections carried along
	keep    uint64    // positions of the file below it stay, on their account

	hintFailed atomic.Bool // and it was told of
	// reached are the mounts of files in this one's place before, where something may be
	// under way.
	reached []Mount

	closeMu sync.Mutex
	closed  atomic.Bool
}

// Open opens the images of a stack, base first, checks each of them wholly,
// and locks them: the top for this process alone, the others against writers.
// For a writable stack it then sets in_use, durably.
func Open(refs []ImageRef, o Options) (*Stack, error) {
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
	s.table.free()
	return s.closeFiles()
}

func openStack(refs []ImageRef, o Options) (_ *Stack, err error) {
	if len(refs) == 0 {
		return nil, fmt.Errorf("%w: a stack needs at least one image", ErrGeometry)
	}
	if len(refs) > MaxDeltas {
		return nil, fmt.Errorf("%w: a stack of %d images, at most %d are possible", ErrLimit, len(refs), MaxDeltas)
	}
	open := o.open
	if open == nil {
		if open = openOSFile; o.still {
			open = openStill
		}
		o.open = open
		if err := distinct(refs); err != nil {
			return nil, err
		}
	}
	if o.Damaged && !o.ReadOnly {
		return nil, fmt.Errorf("%w: damaged images are opened read-only", ErrReadOnly)
	}
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
		d, err := openKnown(ref, open, top && !o.ReadOnly, !o.NoDirect, o.tolerance(), raw)
		if err != nil {
			return nil, err
		}
		d.level = level
		s.deltas = append(s.deltas, d)
		if d.ext != nil && (!top || o.ReadOnly) {
			d.ext.forget()
		}
		if err := s.checkInUse(d, top, o); err != nil {
			return nil, err
		}
	}
	if err := protect(s.deltas); err != nil {
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
	s.expect(s.top.size)
	s.start()
	if o.Damaged {
		s.logDamage()
	}
	if !o.ReadOnly && !s.top.ref.Raw && (o.Distrust || o.TakeOver && s.top.hdr.InUse == inUseDirty && s.top.cached()) {
		s.index.distrust(s)
	}
	return s, nil
}

// cached says whether the image is, or may be, read through the page cache, where what a failed
// sync has lost may still be seen.
func (d *delta) cached() bool {
	f, ok := d.file.(*osFile)
	return ok && !f.dio.bypasses
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

// distinct refuses a file that is in the stack twice, by whatever names.
func distinct(refs []ImageRef) error {
	var seen []os.FileInfo
	for _, r := range refs {
		fi, err := os.Stat(r.Path)
		if err != nil {
			return err // says the operation and the path by itself
		}
		for i, other := range seen {
			if os.SameFile(fi, other) {
				return &FormatError{File: r.Path, Offset: -1, What: "stack", Class: ErrGeometry, Found: fmt.Sprintf("the same file as image %d", i), Want: "each file once"}
			}
		}
		seen = append(seen, fi)
	}
	return nil
}

func (s *Stack) checkInUse(d *delta, top bool, o Options) error {
	if d.ref.Raw || d.hdr.InUse != inUseDirty {
		return nil
	}
	if top && o.ReadOnly || top && o.TakeOver || o.Damaged {
		if !o.Continue && !o.Damaged { // nobody expected it to be
			s.log("%q was not closed cleanly; its index checks clean and is used as it is", d.ref.Path)
		}
		return nil
	}
	return &FormatError{File: d.ref.Path, Offset: 44, What: "in_use", Class: ErrInUse,
		Found: "the image was not closed cleanly", Want: "0; if nobody has it open, run 'holdfast image check --repair' on it"}
}

// fit checks that the deltas belong over one another and takes the geometry
// from the top.
func (s *Stack) fit() error {
	t := &s.top.hdr
	for i, d := range s.deltas {
		bad := func(off int64, what, found, want string) error {
			return &FormatError{File: d.ref.Path, Offset: off, What: what, Found: found, Want: want, Class: ErrGeometry}
		}
		if d.ref.Raw && i > 0 {
			return bad(-1, "raw image", fmt.Sprintf("at level %d", i), "only the base to be raw")
		}
		if d.ref.Raw && d != s.top {
			if known := s.opts.TakeOver || s.opts.Size > 0; known {
				// The stack was served before: the two belong together.
				d.size = min(d.size, int64(t.Sectors+uint64(t.ClusterSectors)-1)*SectorSize)
			}
			d.setRawCluster(t.ClusterSectors)
			if d.hdr.Sectors > t.Sectors+uint64(t.ClusterSectors)-1 {
				return bad(-1, "size of the raw base", fmt.Sprintf("%d sectors", d.hdr.Sectors), fmt.Sprintf("at most the disk's %d, rounded up to a cluster", t.Sectors))
			}
		}
		if d.hdr.ClusterSectors != t.ClusterSectors {
			return bad(28, "cluster size", fmt.Sprintf("%d sectors", d.hdr.ClusterSectors), fmt.Sprintf("%d as in the top image %q", t.ClusterSectors, s.top.ref.Path))
		}
		if !d.ref.Raw && d.hdr.Sectors > t.Sectors {
			return bad(36, "disk size", fmt.Sprintf("%d sectors", d.hdr.Sectors), fmt.Sprintf("at most the %d of the top image %q", t.Sectors, s.top.ref.Path))
		}
	}
	s.size = int64(t.Sectors) * SectorSize
	s.cluster = t.ClusterSize()
	s.clusters = t.Clusters()
	s.misfit = 0
	for _, d := range s.deltas {
		if f, ok := d.file.(*osFile); ok {
			s.misfit |= f.dio.unit - 1
		}
	}
	s.baseEnd = math.MaxInt64
	if base := s.deltas[0]; base.ref.Raw {
		s.baseEnd = base.size
	}
	return nil
}

// load merges the BATs, the base's first, and readies the top's free space.
func (s *Stack) load() (err error) {
	if s.table, err = newTable(s.clusters); err != nil {
		return err
	}
	for _, d := range s.deltas {
		if d.ref.Raw {
			for i := range min(d.hdr.Clusters(), s.clusters) {
				s.table.init(i, makeEntry(0, i*uint64(d.hdr.ClusterSectors)))
			}
			continue
		}
		used, n, err := d.scanTable(s.table.init)
		if err != nil {
			return err
		}
		if d == s.top {
			s.allocated.Store(n)
			s.space.load(used)
		}
	}
	return nil
}

// writeHeader writes the top's first sector and makes it durable.
func (s *Stack) writeHeader() error {
	d := s.top
	b := AlignedBuffer(SectorSize)
	s.index.fill(s, b, 0, nil)
	if _, err := d.file.WriteAt(b, 0); err != nil {
		return d.ioError("write header", 0, err)
	}
	return d.ioError("sync", -1, d.file.Sync())
}

func (s *Stack) closeFiles() (err error) {
	for _, d := range s.deltas {
		err = errors.Join(err, d.release())
	}
	return err
}
