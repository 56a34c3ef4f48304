package ploop

import (
	"fmt"

	"holdfast/ploop/internal/draft"
	"holdfast/ploop/internal/format"
)

// DefaultClusterSize is what the ploop tool and QEMU make, in bytes.
const DefaultClusterSize = 1 << 20

// CreateOptions describe an image to make.
type CreateOptions struct {
	// Size of the disk in bytes, a multiple of 512. 0: the backing's.
	Size int64
	// ClusterSize in bytes, a multiple of 512 up to [MaxClusterSize].
	// 0: a ploop backing's, otherwise [DefaultClusterSize].
	ClusterSize int64
	// AnyClusterSize allows those that OpenVZ's tools refuse; see
	// [CommonClusterSize].
	AnyClusterSize bool
	// Version of the format, 1 or 2; 0: 2.
	Version int
	// NoHoles writes the zeroes of the file's head, instead of leaving a hole
	// where it is long, for which the ploop tool up to 1.15 refuses an image.
	NoHoles bool
	// Backing is the image that the new one will lie over; only its geometry
	// is taken, and the new one fits it. The format has no field to name it.
	Backing *ImageRef
}

// Create makes an empty image. It never replaces a file: one that exists is
// [fs.ErrExist]. The image is durable when Create returns, and after an error
// there is none.
func Create(path string, o CreateOptions) error {
	h, err := o.header()
	if err != nil {
		return fmt.Errorf("create %s: %w", path, err)
	}
	d, err := draft.New(path)
	if err != nil {
		return err
	}
	if err := beginImage(d, h, o.NoHoles); err != nil {
		d.Discard()
		return fmt.Errorf("create %s: %w", path, err)
	}
	return d.Publish()
}

// wholeHead is up to how many bytes the head of an image is written without a
// hole, asked for or not, so that the ploop tool takes a fresh one.
const wholeHead = 4 << 20

// beginImage writes the head of an image without clusters.
func beginImage(d *draft.Draft, h *format.Header, noHoles bool) error {
	if noHoles || int64(h.DataStart())*SectorSize <= wholeHead {
		if err := d.Zero(0, int64(h.DataStart())*SectorSize); err != nil {
			return err
		}
	}
	h.SetEmpty(true)
	if _, err := d.WriteAt(h.Encode(), 0); err != nil {
		return err
	}
	return d.Truncate(int64(h.DataStart()) * SectorSize)
}

// CommonClusterSize says whether all software takes clusters of n bytes.
// OpenVZ's tool and kernel want a power of two from 32 KiB to 64 MiB.
func CommonClusterSize(n int64) bool {
	return n >= 32<<10 && n <= 64<<20 && n&(n-1) == 0
}

// header makes the header that the options ask for.
func (o CreateOptions) header() (*format.Header, error) {
	if o.Backing != nil {
		if err := o.takeBacking(); err != nil {
			return nil, err
		}
	}
	if o.ClusterSize == 0 {
		o.ClusterSize = DefaultClusterSize
	}
	if o.Version == 0 {
		o.Version = 2
	}
	switch {
	case o.Version != 1 && o.Version != 2:
		return nil, fmt.Errorf("%w: format version %d, there are 1 and 2", ErrUnsupported, o.Version)
	case o.Size <= 0 || o.Size%SectorSize != 0:
		return nil, fmt.Errorf("%w: size of %d bytes, it must be a positive multiple of %d", ErrGeometry, o.Size, SectorSize)
	case o.ClusterSize < 0 || o.ClusterSize%SectorSize != 0:
		return nil, fmt.Errorf("%w: clusters of %d bytes, it must be a multiple of %d", ErrGeometry, o.ClusterSize, SectorSize)
	case o.ClusterSize > format.MaxClusterSize:
		return nil, fmt.Errorf("%w: clusters of %d bytes, at most %d are possible", ErrLimit, o.ClusterSize, format.MaxClusterSize)
	case !o.AnyClusterSize && !CommonClusterSize(o.ClusterSize):
		return nil, fmt.Errorf("%w: clusters of %d bytes, which other software refuses that wants a power of two from 32K to 64M; they are made only if any size is asked for", ErrUncommon, o.ClusterSize)
	}
	return format.NewHeader(o.Version, uint64(o.Size/SectorSize), uint32(o.ClusterSize/SectorSize))
}

// takeBacking fills in the geometry of the backing and checks what was given.
func (o *CreateOptions) takeBacking() error {
	i, err := ReadInfo(*o.Backing)
	if err != nil {
		return err
	}
	if o.Size == 0 {
		o.Size = i.Size
	}
	if o.Size < i.Size {
		return fmt.Errorf("%w: size of %d bytes, the backing %q has %d", ErrGeometry, o.Size, o.Backing, i.Size)
	}
	if i.Format == FormatRaw {
		return nil // any cluster size lies over it
	}
	if o.ClusterSize == 0 {
		o.ClusterSize = i.ClusterSize
	}
	if o.ClusterSize != i.ClusterSize {
		return fmt.Errorf("%w: clusters of %d bytes, the backing %q has %d", ErrGeometry, o.ClusterSize, o.Backing, i.ClusterSize)
	}
	return nil
}
