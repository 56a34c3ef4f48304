package ploop

import (
	"errors"
	"fmt"
	"math"
	"os"
)

// view is the images of a disk, base first, put together.
type view struct {
	deltas []*Delta
	geometry
	table *table
}

// geometry is what the images of a disk agree on.
type geometry struct {
	size     int64  // of the disk, in bytes
	cluster  int64  // in bytes
	clusters uint64 // of the disk
	baseEnd  int64  // the size of a raw base, which may end within a cluster
}

// openView opens the images of a disk for reading, base first. Nobody may write to them
// meanwhile. With damaged it takes images with bad BAT entries or a wrong data_off.
func openView(refs []ImageRef, damaged bool) (_ *view, err error) {
	if err := countImages(refs); err != nil {
		return nil, err
	}
	if err := distinct(refs); err != nil {
		return nil, err
	}
	v := &view{}
	defer func() {
		if err != nil {
			v.close()
		}
	}()
	for level, ref := range refs {
		d, err := openTolerant(ref, openStill, false, true, damageTolerance{damaged: damaged, oddRaw: true})
		if err != nil {
			return nil, err
		}
		d.level = level
		v.deltas = append(v.deltas, d)
		if d.ext != nil {
			d.ext.forget()
		}
		if level < len(refs)-1 && !damaged {
			if err := d.leftInUse(); err != nil {
				return nil, err
			}
		}
	}
	if err := protect(v.deltas); err != nil {
		return nil, err
	}
	if v.geometry, err = fit(v.deltas, false); err != nil {
		return nil, err
	}
	return v, v.load()
}

func countImages(refs []ImageRef) error {
	if len(refs) == 0 {
		return fmt.Errorf("%w: a stack needs at least one image", ErrGeometry)
	}
	if len(refs) > MaxDeltas {
		return fmt.Errorf("%w: a stack of %d images, at most %d are possible", ErrLimit, len(refs), MaxDeltas)
	}
	return nil
}

// fit checks that images belong over one another, base first, and takes the geometry
// from the top. known says that they were served together before: a raw base may have become
// longer since.
func fit(deltas []*Delta, known bool) (g geometry, err error) {
	top := deltas[len(deltas)-1]
	t := &top.hdr
	for i, d := range deltas {
		bad := func(off int64, what, found, want string) error {
			return &FormatError{File: d.ref.Path, Offset: off, What: what, Found: found, Want: want, Class: ErrGeometry}
		}
		if d.ref.Raw && i > 0 {
			return g, bad(-1, "raw image", fmt.Sprintf("at level %d", i), "only the base to be raw")
		}
		if d.ref.Raw && d != top {
			if known {
				d.size = min(d.size, int64(t.Sectors+uint64(t.ClusterSectors)-1)*SectorSize)
			}
			d.setRawCluster(t.ClusterSectors)
			if d.hdr.Sectors > t.Sectors+uint64(t.ClusterSectors)-1 {
				return g, bad(-1, "size of the raw base", fmt.Sprintf("%d sectors", d.hdr.Sectors), fmt.Sprintf("at most the disk's %d, rounded up to a cluster", t.Sectors))
			}
		}
		if d.hdr.ClusterSectors != t.ClusterSectors {
			return g, bad(28, "cluster size", fmt.Sprintf("%d sectors", d.hdr.ClusterSectors), fmt.Sprintf("%d as in the top image %q", t.ClusterSectors, top.ref.Path))
		}
		if !d.ref.Raw && d.hdr.Sectors > t.Sectors {
			return g, bad(36, "disk size", fmt.Sprintf("%d sectors", d.hdr.Sectors), fmt.Sprintf("at most the %d of the top image %q", t.Sectors, top.ref.Path))
		}
	}
	g = geometry{size: int64(t.Sectors) * SectorSize, cluster: t.ClusterSize(), clusters: t.Clusters(), baseEnd: math.MaxInt64}
	if base := deltas[0]; base.ref.Raw {
		g.baseEnd = base.size
	}
	return g, nil
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

// load merges the BATs, the base's first.
func (v *view) load() (err error) {
	if v.table, err = newTable(v.clusters); err != nil {
		return err
	}
	for _, d := range v.deltas {
		if _, _, err := d.fillTable(v.table.init, v.clusters); err != nil {
			return err
		}
	}
	return nil
}

// readAt reads what the disk has at off, in whole sectors.
func (v *view) readAt(p []byte, off int64) error {
	for len(p) > 0 {
		i := off / v.cluster
		in := off % v.cluster
		n := min(int64(len(p)), v.cluster-in)
		e := v.table.load(uint64(i))
		var err error
		switch {
		case !e.mapped():
			clear(p[:n])
		case e.bad():
			err = v.deltas[e.level()].readDamaged(e, uint64(i), in, p[:n])
		default:
			err = v.deltas[e.level()].read(p[:n], e.sector()*SectorSize+in)
		}
		if err != nil {
			return err
		}
		p, off = p[n:], off+n
	}
	return nil
}

func (v *view) close() (err error) {
	v.table.free()
	for _, d := range v.deltas {
		err = errors.Join(err, d.file.Close())
	}
	return err
}

// protect keeps others from beginning to write to the images that are only read.
func protect(deltas []*Delta) error {
	top := deltas[len(deltas)-1].ref.Path
	bundle := inBundle(top)
	for _, d := range deltas {
		f, ok := d.file.(*osFile)
		if !ok || f.write || !f.Locked() {
			continue
		}
		f.guard = f.guard || bundle
		if !f.guard && inBundle(d.ref.Path) {
			continue // a golden base
		}
		if err := f.denyWriters(); err != nil {
			return err
		}
	}
	return nil
}
