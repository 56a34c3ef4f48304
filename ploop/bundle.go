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

func (n *bundle) advice() string {
	files := n.stack(n.top)
	if len(files) == 0 {
		return "an image: bundles are not supported yet, and this one names no top"
	}
	return fmt.Sprintf("an image: bundles are not supported yet; the top image of this one is %q, and its stack, base first: %s", files[len(files)-1], quoteAll(files))
}

func quoteAll(files []string) string {
	quoted := make([]string, len(files))
	for i, f := range files {
		quoted[i] = fmt.Sprintf("%q", f)
	}
	return strings.Join(quoted, " ")
}
