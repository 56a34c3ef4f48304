package ploop

import (
	"encoding/xml"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"holdfast/ploop/internal/bundle"
	"holdfast/ploop/internal/format"
)

// Descriptor is the content of a DiskDescriptor.xml, which names the images
// of a disk and says how they lie over one another.
type Descriptor struct {
	File        string
	Size        int64 // of the disk, in bytes
	ClusterSize int64 // in bytes
	TopGUID     string
	// Stack is the way from the base to the top, base first.
	Stack []ImageRef
	// GUIDs has the same order.
	GUIDs []string
}

// The file's form. The root's name differs between products and is not looked at.
type xmlDescriptor struct {
	Parameters struct {
		Size uint64 `xml:"Disk_size"` // in sectors
	} `xml:"Disk_Parameters"`
	Storage []struct {
		Start     uint64 `xml:"Start"`
		End       uint64 `xml:"End"`
		Blocksize uint64 `xml:"Blocksize"` // in sectors
		Image     []struct {
			GUID string `xml:"GUID"`
			Type string `xml:"Type"`
			File string `xml:"File"`
		} `xml:"Image"`
	} `xml:"StorageData>Storage"`
	Snapshots struct {
		Top  string `xml:"TopGUID"`
		Shot []struct {
			GUID   string `xml:"GUID"`
			Parent string `xml:"ParentGUID"`
		} `xml:"Shot"`
	} `xml:"Snapshots"`
}

// ParseDescriptor reads a DiskDescriptor.xml and finds the stack of its top.
// File names in it are relative to its directory. The images themselves are
// not looked at. An error wraps [ErrCorrupt], [ErrUnsupported] or [ErrLimit]
// where it speaks of the content.
func ParseDescriptor(path string) (*Descriptor, error) {
	b, err := bundle.ReadFile(path)
	if err != nil {
		return nil, err
	}
	return parseDescriptor(path, b)
}

func parseDescriptor(path string, b []byte) (*Descriptor, error) {
	bad := func(class error, what, found, want string) error {
		return &FormatError{File: path, Offset: -1, What: what, Found: found, Want: want, Class: class}
	}
	if len(b) > bundle.MaxSize {
		return nil, bad(ErrLimit, "size", "more", fmt.Sprintf("at most %d bytes", bundle.MaxSize))
	}
	var x xmlDescriptor
	if err := xml.Unmarshal(b, &x); err != nil {
		return nil, bad(ErrCorrupt, "XML", fmt.Sprintf("%q", err), "a disk descriptor")
	}
	if len(x.Storage) != 1 {
		return nil, bad(ErrUnsupported, "number of Storage elements", fmt.Sprint(len(x.Storage)), "1")
	}
	st := x.Storage[0]
	size := x.Parameters.Size
	switch {
	case size == 0 || size > format.MaxBATEntries*format.MaxClusterSize/SectorSize:
		return nil, bad(ErrCorrupt, "Disk_size", fmt.Sprintf("%d sectors", size), "a possible one")
	case st.Start != 0 || st.End != size:
		return nil, bad(ErrCorrupt, "Start and End of the Storage", fmt.Sprintf("%d and %d", st.Start, st.End), fmt.Sprintf("0 and %d, the Disk_size", size))
	case st.Blocksize == 0 || st.Blocksize > format.MaxClusterSize/SectorSize:
		return nil, bad(ErrCorrupt, "Blocksize", fmt.Sprintf("%d sectors", st.Blocksize), fmt.Sprintf("1 to %d", format.MaxClusterSize/SectorSize))
	}
	images := map[string]ImageRef{}
	for _, im := range st.Image {
		guid, err := bundle.ParseGUID(im.GUID)
		if err != nil || guid == bundle.NoParent {
			return nil, bad(ErrCorrupt, "GUID of an Image", fmt.Sprintf("%.64q", im.GUID), "a GUID in braces, not all zero")
		}
		if _, ok := images[guid]; ok {
			return nil, bad(ErrCorrupt, "Images", guid+" twice", "each GUID once")
		}
		file := strings.TrimSpace(im.File)
		if file == "" || len(file) > 4096 || strings.ContainsRune(file, 0) {
			return nil, bad(ErrCorrupt, "File of Image "+guid, fmt.Sprintf("%.64q", file), "a file name")
		}
		if !filepath.IsAbs(file) {
			file = filepath.Join(filepath.Dir(path), file)
		}
		ref := ImageRef{Path: file}
		switch strings.TrimSpace(im.Type) {
		case "Compressed": // the name is history: nothing is compressed
		case "Plain":
			ref.Raw = true
		default:
			return nil, bad(ErrUnsupported, "Type of Image "+guid, fmt.Sprintf("%.64q", im.Type), "Compressed or Plain")
		}
		images[guid] = ref
	}
	parents := map[string]string{}
	for _, s := range x.Snapshots.Shot {
		guid, err := bundle.ParseGUID(s.GUID)
		if err != nil {
			return nil, bad(ErrCorrupt, "GUID of a Shot", fmt.Sprintf("%.64q", s.GUID), "a GUID in braces")
		}
		if _, ok := parents[guid]; ok {
			return nil, bad(ErrCorrupt, "Shots", guid+" twice", "each GUID once")
		}
		if parents[guid], err = bundle.ParseGUID(s.Parent); err != nil {
			return nil, bad(ErrCorrupt, "ParentGUID of Shot "+guid, fmt.Sprintf("%.64q", s.Parent), "a GUID in braces")
		}
	}
	top, err := bundle.ParseGUID(x.Snapshots.Top)
	if err != nil {
		return nil, bad(ErrCorrupt, "TopGUID", fmt.Sprintf("%.64q", x.Snapshots.Top), "a GUID in braces")
	}
	d := &Descriptor{File: path, Size: int64(size) * SectorSize, ClusterSize: int64(st.Blocksize) * SectorSize, TopGUID: top}
	for guid := top; guid != bundle.NoParent; {
		if len(d.Stack) == MaxDeltas {
			// A ring of Shots ends here as well.
			return nil, bad(ErrLimit, "way from the TopGUID to the base", "longer", fmt.Sprintf("at most %d Shots, none twice", MaxDeltas))
		}
		ref, ok := images[guid]
		if !ok {
			return nil, bad(ErrCorrupt, "Shot "+guid, "no Image of that GUID", "one")
		}
		parent, ok := parents[guid]
		if !ok {
			return nil, bad(ErrCorrupt, "Image "+guid, "no Shot of that GUID", "one")
		}
		if ref.Raw && parent != bundle.NoParent {
			return nil, bad(ErrUnsupported, "Image "+guid, "Plain with a parent", "only the base to be Plain")
		}
		d.Stack = append(d.Stack, ref)
		d.GUIDs = append(d.GUIDs, guid)
		guid = parent
	}
	if len(d.Stack) == 0 {
		return nil, bad(ErrCorrupt, "TopGUID", "all zero", "that of an Image")
	}
	slices.Reverse(d.Stack)
	slices.Reverse(d.GUIDs)
	return d, nil
}
