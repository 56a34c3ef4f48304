package sysfs

import (
	"errors"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// MaxValue is the longest value that an attribute takes, in bytes, with the
// newline: a page, as in the kernel.
const MaxValue = 4096

// An Entry is what a directory holds: a *Dir, an *Attr or a *Link.
type Entry interface {
	Info() Info
}

// Info describes an entry.
type Info struct {
	Name   string
	Mode   uint32 // type and permissions, as in stat(2)
	Target string // of a link
}

// IsDir says whether it is a directory.
func (i Info) IsDir() bool { return i.Mode&unix.S_IFMT == unix.S_IFDIR }

// Attr is a file with one value.
type Attr struct {
	Name string
	Mode uint32 // permissions: 0o444, 0o644, 0o200
	// Show is the value, without the newline at the end, which the front ends
	// add. It may be called many times at once.
	Show func() (string, error)
	// Store takes a value, as it was written but for one newline at the end.
	// It may be called many times at once. nil: the attribute can't be written,
	// whatever Mode says (and likewise for Show).
	Store func(string) error
}

// Link is a symbolic link.
type Link struct {
	Name, Target string
}

var _, _, _ Entry = (*Dir)(nil), (*Attr)(nil), (*Link)(nil)

// Dir is a directory.
type Dir struct {
	Name    string
	Entries []Entry
	// More, if there is one, says which entries there are besides at this
	// moment. It must not block. Names that can't be one (empty, with a slash),
	// and those that are there already, are left out.
	More func() []Entry
	// One is the one of More's entries that has this name, nil if there is none.
	// It is there to save making all of them for one; nil: More is asked.
	One func(name string) Entry
}

// Info describes the attribute. Permissions that no function stands behind are
// left out.
func (a *Attr) Info() Info {
	mode := a.Mode & 0o666
	if a.Show == nil {
		mode &^= 0o444
	}
	if a.Store == nil {
		mode &^= 0o222
	}
	return Info{Name: a.Name, Mode: unix.S_IFREG | mode}
}

// Info describes the link.
func (l *Link) Info() Info {
	return Info{Name: l.Name, Mode: unix.S_IFLNK | 0o777, Target: l.Target}
}

// Info describes the directory.
func (d *Dir) Info() Info { return Info{Name: d.Name, Mode: unix.S_IFDIR | 0o555} }

// All is what the directory holds now, in its order.
func (d *Dir) All() []Entry {
	all := slices.Clone(d.Entries)
	if d.More == nil {
		return all
	}
	seen := make(map[string]bool, len(all))
	for _, e := range all {
		seen[e.Info().Name] = true
	}
	for _, e := range d.More() {
		if name := e.Info().Name; validName(name) && !seen[name] {
			seen[name] = true
			all = append(all, e)
		}
	}
	return all
}

// Entry is the entry of this name, nil if there is none now.
func (d *Dir) Entry(name string) Entry {
	if !validName(name) {
		return nil
	}
	for _, e := range d.Entries {
		if e.Info().Name == name {
			return e
		}
	}
	if d.One != nil {
		return d.One(name)
	}
	if d.More == nil {
		return nil
	}
	for _, e := range d.More() {
		if e.Info().Name == name {
			return e
		}
	}
	return nil
}

func validName(name string) bool {
	return name != "" && name != "." && name != ".." && len(name) <= 255 && !strings.ContainsAny(name, "/\x00")
}

// Text is the attribute's value as it is read from a file: with a newline.
// EACCES: it can't be read.
func (a *Attr) Text() (string, error) {
	if !a.Readable() {
		return "", unix.EACCES
	}
	value, err := a.Show()
	if err != nil {
		return "", err
	}
	return value + "\n", nil
}

// Put stores text as it was written to a file, with or without a newline.
// EACCES: the attribute can't be written; E2BIG: that is more than MaxValue.
func (a *Attr) Put(text string) error {
	if !a.Writable() {
		return unix.EACCES
	}
	if len(text) > MaxValue {
		return unix.E2BIG
	}
	return a.Store(strings.TrimSuffix(text, "\n"))
}

// Readable says whether the attribute can be read by anybody at all.
func (a *Attr) Readable() bool { return a.Show != nil && a.Mode&0o444 != 0 }

// Writable says whether the attribute can be written by anybody at all.
func (a *Attr) Writable() bool { return a.Store != nil && a.Mode&0o222 != 0 }

// Errno is the error number by which a front end says err: the one in its
// chain, or else EINVAL for a write, which most likely had a wrong value, and
// EIO for a read. 0: there is no error.
func Errno(err error, write bool) unix.Errno {
	var errno unix.Errno
	switch {
	case err == nil:
		return 0
	case errors.As(err, &errno) && errno != 0:
		return errno
	case write:
		return unix.EINVAL
	}
	return unix.EIO
}
