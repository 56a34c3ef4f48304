package ploop

import (
	"fmt"
	"os"
	"path/filepath"

	"holdfast/ploop/internal/bundle"
)

// ParentGap says that a stack lacks an image which, by the DiskDescriptor.xml
// beside it, lies below one that it has.
type ParentGap struct {
	Image      string
	Parent     string
	Descriptor string
	Stack      []string // the whole way up to Image, base first
}

var _ error = (*ParentGap)(nil)

func (g *ParentGap) Error() string {
	return fmt.Sprintf("%q has a parent, %q, by %q; the whole stack is, base first: %s", g.Image, g.Parent, g.Descriptor, bundle.Quote(g.Stack))
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
			n, err := bundle.Read(filepath.Join(dir, bundle.DescriptorName))
			if err != nil {
				continue
			}
			guid, ok := n.Find(fi)
			if !ok {
				continue
			}
			parent, ok := n.Parent[guid]
			if !ok || i > 0 && samePath(n.Images[parent], refs[i-1].Path) {
				break
			}
			return &ParentGap{Image: ref.Path, Parent: n.Images[parent], Descriptor: n.File, Stack: n.Stack(guid)}
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
