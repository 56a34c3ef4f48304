// Package chain puts the images of a disk together: it checks that they fit each other, merges
// their indices, and reads and maps the disk for those who don't write to it.
package chain

import (
	"errors"
	"fmt"
	"math"
	"os"

	"holdfast/ploop/image"
	"holdfast/ploop/internal/format"
	"holdfast/ploop/internal/storage"
	"holdfast/ploop/internal/table"
)

// Chain is the images of a disk, base first, put together.
type Chain struct {
	Deltas []*format.Delta
	Geometry
	Table *table.Table
}

// Geometry is what the images of a disk agree on.
type Geometry struct {
	Size     int64  // of the disk, in bytes
	Cluster  int64  // in bytes
	Clusters uint64 // of the disk
	BaseEnd  int64  // the size of a raw base, which may end within a cluster
}

// Open opens the images of a disk for reading, base first. Nobody may write to them
// meanwhile. With damaged it takes images with bad BAT entries or a wrong data_off.
func Open(refs []image.Ref, damaged bool) (_ *Chain, err error) {
	if err := Count(refs); err != nil {
		return nil, err
	}
	if err := Distinct(refs); err != nil {
		return nil, err
	}
	v := &Chain{}
	defer func() {
		if err != nil {
			v.Close()
		}
	}()
	for level, ref := range refs {
		d, err := format.Open(ref, storage.OpenStill, false, true, format.Tolerance{Damaged: damaged, OddRaw: true})
		if err != nil {
			return nil, err
		}
		d.Level = level
		v.Deltas = append(v.Deltas, d)
		if d.Ext != nil {
			d.Ext.Forget()
		}
		if level < len(refs)-1 && !damaged {
			if err := d.LeftInUse(); err != nil {
				return nil, err
			}
		}
	}
	if err := Protect(v.Deltas); err != nil {
		return nil, err
	}
	if v.Geometry, err = Fit(v.Deltas, false); err != nil {
		return nil, err
	}
	return v, v.load()
}

// Count refuses a number of images that no stack can have.
func Count(refs []image.Ref) error {
	if len(refs) == 0 {
		return fmt.Errorf("%w: a stack needs at least one image", image.ErrGeometry)
	}
	if len(refs) > image.MaxDeltas {
		return fmt.Errorf("%w: a stack of %d images, at most %d are possible", image.ErrLimit, len(refs), image.MaxDeltas)
	}
	return nil
}

// Fit checks that images belong over one another, base first, and takes the geometry
// from the top. known says that they were served together before: a raw base may have become
// longer since.
func Fit(deltas []*format.Delta, known bool) (g Geometry, err error) {
	top := deltas[len(deltas)-1]
	t := &top.Header
	for i, d := range deltas {
		bad := func(off int64, what, found, want string) error {
			return &image.FormatError{File: d.Ref.Path, Offset: off, What: what, Found: found, Want: want, Class: image.ErrGeometry}
		}
		if d.Ref.Raw && i > 0 {
			return g, bad(-1, "raw image", fmt.Sprintf("at level %d", i), "only the base to be raw")
		}
		if d.Ref.Raw && d != top {
			if known {
				d.Size = min(d.Size, int64(t.Sectors+uint64(t.ClusterSectors)-1)*image.SectorSize)
			}
			d.SetRawCluster(t.ClusterSectors)
			if d.Header.Sectors > t.Sectors+uint64(t.ClusterSectors)-1 {
				return g, bad(-1, "size of the raw base", fmt.Sprintf("%d sectors", d.Header.Sectors), fmt.Sprintf("at most the disk's %d, rounded up to a cluster", t.Sectors))
			}
		}
		if d.Header.ClusterSectors != t.ClusterSectors {
			return g, bad(28, "cluster size", fmt.Sprintf("%d sectors", d.Header.ClusterSectors), fmt.Sprintf("%d as in the top image %q", t.ClusterSectors, top.Ref.Path))
		}
		if !d.Ref.Raw && d.Header.Sectors > t.Sectors {
			return g, bad(36, "disk size", fmt.Sprintf("%d sectors", d.Header.Sectors), fmt.Sprintf("at most the %d of the top image %q", t.Sectors, top.Ref.Path))
		}
	}
	g = Geometry{Size: int64(t.Sectors) * image.SectorSize, Cluster: t.ClusterSize(), Clusters: t.Clusters(), BaseEnd: math.MaxInt64}
	if base := deltas[0]; base.Ref.Raw {
		g.BaseEnd = base.Size
	}
	return g, nil
}

// Distinct refuses a file that is in the stack twice, by whatever names.
func Distinct(refs []image.Ref) error {
	var seen []os.FileInfo
	for _, r := range refs {
		fi, err := os.Stat(r.Path)
		if err != nil {
			return err // says the operation and the path by itself
		}
		for i, other := range seen {
			if os.SameFile(fi, other) {
				return &image.FormatError{File: r.Path, Offset: -1, What: "stack", Class: image.ErrGeometry, Found: fmt.Sprintf("the same file as image %d", i), Want: "each file once"}
			}
		}
		seen = append(seen, fi)
	}
	return nil
}

// load merges the BATs, the base's first.
func (v *Chain) load() (err error) {
	if v.Table, err = table.New(v.Clusters); err != nil {
		return err
	}
	for _, d := range v.Deltas {
		if _, _, err := d.FillTable(v.Table.Init, v.Clusters); err != nil {
			return err
		}
	}
	return nil
}

// ReadAt reads what the disk has at off, in whole sectors.
func (v *Chain) ReadAt(p []byte, off int64) error {
	for len(p) > 0 {
		i := off / v.Cluster
		in := off % v.Cluster
		n := min(int64(len(p)), v.Cluster-in)
		e := v.Table.Load(uint64(i))
		var err error
		switch {
		case !e.Mapped():
			clear(p[:n])
		case e.Bad():
			err = v.Deltas[e.Level()].ReadDamaged(e, uint64(i), in, p[:n])
		default:
			err = v.Deltas[e.Level()].Read(p[:n], e.Sector()*image.SectorSize+in)
		}
		if err != nil {
			return err
		}
		p, off = p[n:], off+n
	}
	return nil
}

// Close closes the images.
func (v *Chain) Close() (err error) {
	v.Table.Free()
	for _, d := range v.Deltas {
		err = errors.Join(err, d.File.Close())
	}
	return err
}

// Protect keeps others from beginning to write to the images that are only read.
func Protect(deltas []*format.Delta) error {
	top := deltas[len(deltas)-1].Ref.Path
	bundle := storage.InBundle(top)
	for _, d := range deltas {
		f, ok := d.File.(*storage.OSFile)
		if !ok || f.Write || !f.Locked() {
			continue
		}
		f.Guard = f.Guard || bundle
		if !f.Guard && storage.InBundle(d.Ref.Path) {
			continue // a golden base
		}
		if err := f.DenyWriters(); err != nil {
			return err
		}
	}
	return nil
}
