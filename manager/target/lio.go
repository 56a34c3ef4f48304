package target

import (
	"path/filepath"
	"regexp"
)

// lio reads configfs: target/core/<hba>/<name>/. The path of a backstore is in udev_path
// if that was written, as targetcli does; in any case info has what the backstore was
// made with.
func (s *scanner) lio() (present bool, out []Backing, err error) {
	core := filepath.Join(s.Configfs, "target", "core")
	hbas, present, err := list(core)
	if err != nil || !present {
		return false, nil, err
	}
	for _, hba := range hbas {
		if hba == "alua" {
			continue
		}
		names, _, err := list(filepath.Join(core, hba))
		if err != nil {
			return true, nil, err
		}
		for _, name := range names {
			dir := filepath.Join(core, hba, name)
			enabled, err := attr(dir, "enable")
			if err != nil {
				return true, nil, err
			}
			if enabled != "1" {
				continue
			}
			path, err := attr(dir, "udev_path")
			if err != nil {
				return true, nil, err
			}
			if path == "" {
				info, err := attr(dir, "info")
				if err != nil {
					return true, nil, err
				}
				path = lioPath(info)
			}
			if path != "" {
				out = append(out, Backing{Name: hba + "/" + name, Path: path})
			}
		}
	}
	return true, out, nil
}

// What iblock, and fileio, say of their backing.
var (
	lioUdevPath = regexp.MustCompile(`UDEV PATH: (\S+)`)
	lioDevice   = regexp.MustCompile(`iBlock device: ([^\s]+)`)
	lioFile     = regexp.MustCompile(`File: (\S+)  Size:`)
)

// lioPath finds the path in a backstore's info; "": there is none.
func lioPath(info string) string {
	for _, re := range []*regexp.Regexp{lioUdevPath, lioFile} {
		if m := re.FindStringSubmatch(info); m != nil {
			return m[1]
		}
	}
	if m := lioDevice.FindStringSubmatch(info); m != nil {
		return filepath.Join("/dev", m[1])
	}
	return ""
}
