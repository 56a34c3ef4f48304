package ploop

import "fmt"

// ImageRef names one file of a stack and how to read it.
type ImageRef struct {
	Path string `json:"path"`
	// Raw is said, never guessed: the content of a raw image belongs to the
	// disk's user, who could make it look like a ploop image.
	Raw bool `json:"raw,omitempty"`
}

// ParseImageRef takes FILE or raw@FILE, the notation of dm-ploop's table.
func ParseImageRef(s string) (ImageRef, error) {
	r := ImageRef{Path: s}
	if len(s) >= 4 && s[:4] == "raw@" {
		r = ImageRef{Path: s[4:], Raw: true}
	}
	if r.Path == "" {
		return r, fmt.Errorf("image %q: no file name", s)
	}
	return r, nil
}

func (r ImageRef) String() string {
	if r.Raw {
		return "raw@" + r.Path
	}
	return r.Path
}
