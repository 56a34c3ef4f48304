package device

import (
	"fmt"
	"path/filepath"
	"regexp"
	"strings"

	"holdfast/ploop"
	"holdfast/ublk"
)

// Spec says what a device is to be. It is plain data: printed, stored, compared.
type Spec struct {
	Name     string           `json:"name"`
	Images   []ploop.ImageRef `json:"images"` // base first, absolute paths
	ReadOnly bool             `json:"read_only,omitempty"`
	Queues   int              `json:"queues,omitempty"`    // 0: one per processor, at most 4
	Depth    int              `json:"depth,omitempty"`     // requests in flight per queue; 0: 128
	DataPath string           `json:"data_path,omitempty"` // "auto" or "" (the best the kernel has), "copy", "zero-copy"
}

const (
	defaultDepth     = 128
	mostDefaultQueue = 4
)

var (
	nameForm   = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9._-]{0,63}$`)
	kernelName = regexp.MustCompile(`^ublk[bc][0-9]+$`)
)

var dataPaths = map[string]ublk.DataPath{
	"": ublk.Auto, "auto": ublk.Auto, "copy": ublk.Copy, "zero-copy": ublk.ZeroCopy,
}

// Validate says what is wrong with a spec by itself, without looking at files.
func (s *Spec) Validate() error {
	if !nameForm.MatchString(s.Name) {
		return fmt.Errorf("device name %q: want 1 to 64 of a-z A-Z 0-9 . _ -, the first a letter or digit", s.Name)
	}
	if kernelName.MatchString(s.Name) {
		return fmt.Errorf("device name %q: names like the kernel's own (ublkb0) are not for devices", s.Name)
	}
	if len(s.Images) == 0 {
		return fmt.Errorf("device %s: no image given", s.Name)
	}
	if len(s.Images) > ploop.MaxDeltas {
		return fmt.Errorf("device %s: %d images, at most %d", s.Name, len(s.Images), ploop.MaxDeltas)
	}
	for i, r := range s.Images {
		switch {
		case !filepath.IsAbs(r.Path):
			return fmt.Errorf("device %s: image %q: the path is not absolute", s.Name, r.Path)
		case strings.ContainsRune(r.Path, 0):
			return fmt.Errorf("device %s: image %q: the path has a zero byte", s.Name, r.Path)
		case r.Raw && i > 0:
			return fmt.Errorf("device %s: image %q: only the base may be raw", s.Name, r.Path)
		}
	}
	if s.Queues < 0 || s.Queues > ublk.MaxQueues {
		return fmt.Errorf("device %s: %d queues, want 1 to %d (0: default)", s.Name, s.Queues, ublk.MaxQueues)
	}
	if s.Depth < 0 || s.Depth > ublk.MaxDepth {
		return fmt.Errorf("device %s: depth %d, want 1 to %d (0: default)", s.Name, s.Depth, ublk.MaxDepth)
	}
	if _, ok := dataPaths[s.DataPath]; !ok {
		return fmt.Errorf("device %s: data path %q, want auto, copy or zero-copy", s.Name, s.DataPath)
	}
	return nil
}
