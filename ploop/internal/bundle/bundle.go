// Package bundle reads a DiskDescriptor.xml as leniently as can be, to give advice about the
// images that it names.
package bundle

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

	"holdfast/ploop/image"
)

// customaryTop is the GUID of the top where a descriptor has no TopGUID.
const customaryTop = "{5fbaabe3-6958-40ff-92a7-860e329aab41}"

// Bundle is what a DiskDescriptor.xml says about how files lie over one another,
// read as leniently as can be: it is for advice only. Whoever wants to rely on a
// descriptor has ParseDescriptor.
type Bundle struct {
	File   string            // the descriptor
	Images map[string]string // by GUID
	Parent map[string]string // GUIDs; none: the base
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

// Read reads the descriptor at path.
func Read(path string) (*Bundle, error) {
	b, err := ReadFile(path)
	if err != nil {
		return nil, err
	}
	return parseBundle(path, b)
}

func parseBundle(path string, b []byte) (*Bundle, error) {
	dec := xml.NewDecoder(bytes.NewReader(bytes.TrimPrefix(b, []byte("\ufeff"))))
	dec.CharsetReader = func(_ string, r io.Reader) (io.Reader, error) { return r, nil } // names in ASCII are all that is of use
	var x xmlBundle
	if err := dec.Decode(&x); err != nil {
		return nil, err
	}
	if len(x.Image) == 0 || len(x.Image) > maxBundle || len(x.Snapshots.Shot) > maxBundle {
		return nil, errors.New("no disk descriptor")
	}
	n := &Bundle{File: path, Images: map[string]string{}, Parent: map[string]string{}, top: customaryTop}
	for _, im := range x.Image {
		if guid, err := ParseGUID(im.GUID); err == nil {
			n.Images[guid] = n.resolve(strings.TrimSpace(im.File))
		}
	}
	for _, s := range x.Snapshots.Shot {
		guid, err := ParseGUID(s.GUID)
		parent, err2 := ParseGUID(s.Parent)
		if err == nil && err2 == nil && parent != NoParent {
			n.Parent[guid] = parent
		}
	}
	if top, err := ParseGUID(x.Snapshots.Top); err == nil {
		n.top = top
	} else if len(n.Images) == 1 {
		for n.top = range n.Images {
		}
	}
	return n, nil
}

// resolve finds an image's file: relative to the descriptor, and where a bundle
// was moved whose names are absolute, beside it.
func (n *Bundle) resolve(file string) string {
	dir := filepath.Dir(n.File)
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

// Stack is the way from the base up to an image, as far as it is known.
func (n *Bundle) Stack(guid string) (files []string) {
	for range image.MaxDeltas {
		file, ok := n.Images[guid]
		if !ok {
			break
		}
		files = append(files, file)
		if guid, ok = n.Parent[guid]; !ok {
			break
		}
	}
	slices.Reverse(files)
	return files
}

// Find looks an image up by its file.
func (n *Bundle) Find(fi os.FileInfo) (guid string, ok bool) {
	for guid, file := range n.Images {
		if other, err := os.Stat(file); err == nil && os.SameFile(fi, other) {
			return guid, true
		}
	}
	return "", false
}

// Advice says what of the bundle can be given in its place.
func (n *Bundle) Advice() string {
	files := n.Stack(n.top)
	if len(files) == 0 {
		return "an image: bundles are not supported yet, and this one names no top"
	}
	return fmt.Sprintf("an image: bundles are not supported yet; the top image of this one is %q, and its stack, base first: %s", files[len(files)-1], Quote(files))
}

// Quote writes file names for a message, in quotes.
func Quote(files []string) string {
	quoted := make([]string, len(files))
	for i, f := range files {
		quoted[i] = fmt.Sprintf("%q", f)
	}
	return strings.Join(quoted, " ")
}
