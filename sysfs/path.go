package sysfs

import (
	"io/fs"
	"strings"

	"golang.org/x/sys/unix"
)

// maxLinks is how many links one walk follows, as in the kernel (MAXSYMLINKS).
const maxLinks = 40

// Lookup finds what is at a path from d, "block/v1/queue/standby" (a slash
// before it is allowed); links are followed, the last one too. A path can't
// leave the tree: ".." of d itself, and a link to an absolute path, are not
// found. Errors are *fs.PathError with ENOENT, ENOTDIR or ELOOP.
func (d *Dir) Lookup(path string) (Entry, error) {
	e, errno := d.walk(path)
	if errno != 0 {
		return nil, &fs.PathError{Op: "lookup", Path: path, Err: errno}
	}
	return e, nil
}

func (d *Dir) walk(path string) (Entry, unix.Errno) {
	dirs := []*Dir{d} // from the root to where we are
	todo := strings.Split(path, "/")
	var at Entry = d
	for links := 0; len(todo) > 0; {
		name := todo[0]
		todo = todo[1:]
		dir, ok := at.(*Dir)
		if !ok { // "file/" and "file/." as well
			return nil, unix.ENOTDIR
		}
		switch name {
		case "", ".":
			continue
		case "..":
			if len(dirs) == 1 {
				return nil, unix.ENOENT
			}
			dirs = dirs[:len(dirs)-1]
			at = dirs[len(dirs)-1]
			continue
		}
		switch e := dir.Entry(name).(type) {
		case *Dir:
			dirs, at = append(dirs, e), e
		case *Attr:
			at = e
		case *Link:
			if links++; links > maxLinks {
				return nil, unix.ELOOP
			}
			if e.Target == "" || e.Target[0] == '/' {
				return nil, unix.ENOENT
			}
			todo = append(strings.Split(e.Target, "/"), todo...)
		default:
			return nil, unix.ENOENT
		}
	}
	return at, 0
}

// Read is the value of the attribute at a path, without a newline. Errors are
// *fs.PathError; besides Lookup's there are EISDIR, EACCES and Show's own.
func (d *Dir) Read(path string) (string, error) {
	a, err := d.attr("read", path)
	if err != nil {
		return "", err
	}
	text, err := a.Text()
	if err != nil {
		return "", &fs.PathError{Op: "read", Path: path, Err: err}
	}
	return strings.TrimSuffix(text, "\n"), nil
}

// Write gives a value to the attribute at a path. Errors are *fs.PathError;
// besides Lookup's there are EISDIR, EACCES, E2BIG and Store's own.
func (d *Dir) Write(path, value string) error {
	a, err := d.attr("write", path)
	if err != nil {
		return err
	}
	if err := a.Put(value); err != nil {
		return &fs.PathError{Op: "write", Path: path, Err: err}
	}
	return nil
}

func (d *Dir) attr(op, path string) (*Attr, error) {
	e, errno := d.walk(path)
	if errno == 0 {
		if a, ok := e.(*Attr); ok {
			return a, nil
		}
		errno = unix.EISDIR
	}
	return nil, &fs.PathError{Op: op, Path: path, Err: errno}
}

// List describes what is in the directory at a path, or the attribute there.
// Links in it are not followed. Errors are Lookup's.
func (d *Dir) List(path string) ([]Info, error) {
	e, errno := d.walk(path)
	if errno != 0 {
		return nil, &fs.PathError{Op: "list", Path: path, Err: errno}
	}
	dir, ok := e.(*Dir)
	if !ok {
		return []Info{e.Info()}, nil
	}
	all := dir.All()
	infos := make([]Info, len(all))
	for i, e := range all {
		infos[i] = e.Info()
	}
	return infos, nil
}
