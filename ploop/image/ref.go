package image

import (
	"fmt"
)

// Ref names one file of a stack and how to read it.
type Ref struct {
	Path string `json:"path"`
	// Raw is said, never guessed: the content of a raw image belongs to the
	// disk's user, who could make it look like a ploop image.
	Raw bool `json:"raw,omitempty"`
}

// ParseRef takes FILE or raw@FILE, the notation of dm-ploop's table.
func ParseRef(s string) (Ref, error) {
	r := Ref{Path: s}
	if len(s) >= 4 && s[:4] == "raw@" {
		r = Ref{Path: s[4:], Raw: true}
	}
	if r.Path == "" {
		return r, fmt.Errorf("image %q: no file name", s)
	}
	return r, nil
}

func (r Ref) String() string {
	if r.Raw {
		return "raw@" + r.Path
	}
	return r.Path
}
