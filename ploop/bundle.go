package ploop

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// customaryTop is the GUID of the top where a descriptor has no TopGUID.
const customaryTop = "{5fbaabe3-6958-40ff-92a7-860e329aab41}"

// bundle is what a DiskDescriptor.xml says about how files lie over one another,
// read as leniently as can be: it is for advice only. Whoever wants to rely on a
// descriptor has ParseDescriptor.
type bundle struct {
	file   string            // the descriptor
	images map[string]string // by GUID
	parent map[string]string // GUIDs; none: the base
	top    string
}

type xmlBundle struct {
	Image []struct {
		GUID string `xml:"GUID"`
		File string `xml:"File"`
	} `xml:"StorageData>Storage>Image"`
	Snapshots struct {
		Top  string `xml:"TopGUID"`
		Shot []struct {
			GUID   string `xml:"GUID"`
			Parent string `xml:"ParentGUID"`
		} `xml:"Shot"`
	} `xml:"Snapshots"`
}

// maxBundle bounds the images and Shots that are looked at.
const maxBundle = 4096

func readBundle(path string) (*bundle, error) {
	b, err := readDescriptor(path)
	if err != nil {
		return nil, err
	}
	return parseBundle(path, b)
}

func parseBundle(path string, b []byte) (*bundle, error) {
	dec := xml.NewDecoder(bytes.NewReader(bytes.TrimPrefix(b, []byte("\ufeff"))))
	dec.CharsetReader = func(_ string, r io.Reader) (io.Reader, error) { return r, nil } // names in ASCII are all that is of use
	var x xmlBundle
	if err := dec.Decode(&x); err != nil {
		return nil, err
	}
	if len(x.Image) == 0 || len(x.Image) > maxBundle || len(x.Snapshots.Shot) > maxBundle {
		return nil, errors.New("no disk descriptor")
	}
	n := &bundle{file: path, images: map[string]string{}, parent: map[string]string{}, top: customaryTop}
	for _, im := range x.Image {
		if guid, err := parseGUID(im.GUID); err == nil {
			n.images[guid] = n.resolve(strings.TrimSpace(im.File))
		}
	}
	for _, s := range x.Snapshots.Shot {
		guid, err := parseGUID(s.GUID)
		parent, err2 := parseGUID(s.Parent)
		if err == nil && err2 == nil && parent != noParent {
			n.parent[guid] = parent
		}
	}
	if top, err := parseGUID(x.Snapshots.Top); err == nil {
		n.top = top
	} else if len(n.images) == 1 {
		for n.top = range n.images {
		}
	}
	return n, nil
}

// resolve finds an image's file: relative to the descriptor, and where a bundle
// was moved whose names are absolute, beside it.
func (n *bundle) resolve(file string) string {
	dir := filepath.Dir(n.file)
	path := file
	if !filepath.IsAbs(file) {
		path = filepath.Join(dir, file)
	}
	if _, err := os.Lstat(path); err != nil {
		beside := filepath.Join(dir, file[strings.LastIndexAny(file, `/\`)+1:])
		if _, err := os.Lstat(beside); err == nil {
			return beside
		}
	}
	return path
}

// stack is the way from the base up to an image, as far as it is known.
func (n *bundle) stack(guid string) (files []string) {
	for range MaxDeltas {
		file, ok := n.images[guid]
		if !ok {
			break
		}
		files = append(files, file)
		if guid, ok = n.parent[guid]; !ok {
			break
		}
	}
	slices.Reverse(files)
	return files
}

// find looks an image up by its file.
func (n *bundle) find(fi os.FileInfo) (guid string, ok bool) {
	for guid, file := range n.images {
		if other, err := os.Stat(file); err == nil && os.SameFile(fi, other) {
			return guid, true
		}
	}
	return "", false
}

// ParentGap says that a stack lacks an image which, by the DiskDescriptor.xml
// beside it, lies below one that it has.
type ParentGap struct {
	Image      string
	Parent     string
	Descriptor string
	Stack      []string // the whole way up to Image, base first
}

func (g *ParentGap) Error() string {
	return fmt.Sprintf("%q has a parent, %q, by %q; the whole stack is, base first: %s", g.Image, g.Parent, g.Descriptor, quoteAll(g.Stack))
}

func quoteAll(files []string) string {
	quoted := make([]string, len(files))
	for i, f := range files {
		quoted[i] = fmt.Sprintf("%q", f)
	}
	return strings.Join(quoted, " ")
}

// FindParentGap asks the descriptors beside the images of a stack, base first,
// whether another image belongs below one of them. nil: they don't say so. It
// is advice: a stack without its base reads as if nobody had ever written to
// that.
func FindParentGap(refs []ImageRef) *ParentGap {
	for i, ref := range refs {
		fi, err := os.Stat(ref.Path)
		if err != nil || !fi.Mode().IsRegular() {
			continue
		}
		for _, dir := range besides(ref.Path) {
			n, err := readBundle(filepath.Join(dir, DescriptorName))
			if err != nil {
				continue
			}
			guid, ok := n.find(fi)
			if !ok {
				continue
			}
			parent, ok := n.parent[guid]
			if !ok || i > 0 && samePath(n.images[parent], refs[i-1].Path) {
				break
			}
			return &ParentGap{Image: ref.Path, Parent: n.images[parent], Descriptor: n.file, Stack: n.stack(guid)}
		}
	}
	return nil
}

// besides are the directories that a file is in: where its name is, and where a
// symbolic link leads.
func besides(path string) []string {
	dirs := []string{filepath.Dir(path)}
	if real, err := filepath.EvalSymlinks(path); err == nil && filepath.Dir(real) != dirs[0] {
		dirs = append(dirs, filepath.Dir(real))
	}
	return dirs
}

func samePath(a, b string) bool {
	fa, err := os.Stat(a)
	fb, err2 := os.Stat(b)
	return err == nil && err2 == nil && os.SameFile(fa, fb)
}

// openError tells apart what can't be opened because of what it is.
func openError(path string, err error) error {
	var st unix.Stat_t
	if (errors.Is(err, unix.EISDIR) || errors.Is(err, unix.ENXIO)) && unix.Stat(path, &st) == nil && st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return wrongKind(path, st.Mode)
	}
	return &IOError{Op: "open", File: path, Offset: -1, Err: err}
}

// wrongKind refuses what can't hold an image; mode is stat's. Of a bundle it
// names the images.
func wrongKind(path string, mode uint32) error {
	e := &FormatError{File: path, Offset: -1, What: "file", Want: "a regular file or a block device", Class: ErrNotImage}
	switch mode & unix.S_IFMT {
	case unix.S_IFDIR:
		e.Found = "a directory"
		if n, err := readBundle(filepath.Join(path, DescriptorName)); err == nil {
			e.Found = "a directory with a " + DescriptorName
			e.Want = n.advice()
		}
	case unix.S_IFIFO:
		e.Found = "a FIFO"
	case unix.S_IFSOCK:
		e.Found = "a socket"
	case unix.S_IFCHR:
		e.Found = "a character device"
	default:
		e.Found = "neither a regular file nor a block device"
	}
	return e
}

func (n *bundle) advice() string {
	files := n.stack(n.top)
	if len(files) == 0 {
		return "an image: bundles are not supported yet, and this one names no top"
	}
	return fmt.Sprintf("an image: bundles are not supported yet; the top image of this one is %q, and its stack, base first: %s", files[len(files)-1], quoteAll(files))
}

// explain says what a file is that isn't a ploop image, if it is a descriptor.
func (d *delta) explain(err error, head []byte) error {
	text := bytes.TrimLeft(bytes.TrimPrefix(head, []byte("\ufeff")), " \t\r\n")
	if !errors.Is(err, ErrNotPloop) || !bytes.HasPrefix(text, []byte("<")) {
		return err
	}
	n, bad := readBundle(d.ref.Path)
	if bad != nil {
		return err
	}
	return &FormatError{File: d.ref.Path, Offset: -1, What: "file", Found: "a disk descriptor", Want: n.advice(), Class: ErrNotImage}
}
