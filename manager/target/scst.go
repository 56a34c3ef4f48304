package target

import (
	"path/filepath"
	"strings"
)

// scst reads devices/<name>/filename, which has the path in its first line, and "[key]"
// in the second if it was set by an administrator.
func (s *scanner) scst() (present bool, out []Backing, err error) {
	names, _, err := list(filepath.Join(s.SCST, "devices"))
	if err != nil {
		return false, nil, err
	}
	_, present, err = list(s.SCST)
	if err != nil || !present {
		return false, nil, err
	}
	for _, name := range names {
		text, err := attr(s.SCST, "devices", name, "filename")
		if err != nil {
			return true, nil, err
		}
		if path, _, _ := strings.Cut(text, "\n"); path != "" {
			out = append(out, Backing{Name: name, Path: path})
		}
	}
	return true, out, nil
}
