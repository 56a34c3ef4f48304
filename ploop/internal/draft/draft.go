// Package draft makes new files that nobody sees before they are whole and durable.
package draft

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"holdfast/ploop/internal/plain"
	"holdfast/ploop/internal/storage"
)

// Draft is a file under construction. It has a temporary name beside its
// final one, so that nobody ever sees half an image, and neither a failure nor
// a power cut leaves one under the final name.
type Draft struct {
	plain.File
	final string
}

// New refuses a final name that is taken, which publish does again.
func New(final string) (*Draft, error) {
	if _, err := os.Lstat(final); err == nil {
		return nil, &fs.PathError{Op: "create", Path: final, Err: fs.ErrExist}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for {
		name := filepath.Join(filepath.Dir(final), fmt.Sprintf(".holdfast-%d.tmp", rand.Uint64()))
		// What is in a disk is its owner's matter.
		f, err := plain.Open(name, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL, 0o600)
		switch {
		case err == nil:
			return &Draft{File: f, final: final}, nil
		case err != unix.EEXIST:
			return nil, &fs.PathError{Op: "create", Path: name, Err: err}
		}
	}
}

// Zero writes zeroes, which leave no hole.
func (d *Draft) Zero(off, n int64) error {
	b := make([]byte, min(n, storage.CopyChunk))
	for n > 0 {
		k, err := d.WriteAt(b[:min(n, int64(len(b)))], off)
		if err != nil {
			return err
		}
		off, n = off+int64(k), n-int64(k)
	}
	return nil
}

// Publish makes the content durable, gives the file its final name, and makes
// that durable too. After an error nothing of the draft is left.
func (d *Draft) Publish() (err error) {
	defer func() {
		if err != nil {
			d.Discard()
		}
	}()
	if err := d.Sync(); err != nil {
		return fmt.Errorf("sync %s: %w", d.Name(), err)
	}
	err = unix.Renameat2(unix.AT_FDCWD, d.Name(), unix.AT_FDCWD, d.final, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) {
		// A file system without it: a hard link doesn't replace either.
		if err = unix.Link(d.Name(), d.final); err == nil {
			err = unix.Unlink(d.Name())
		}
	}
	if err != nil {
		return fmt.Errorf("create %s: %w", d.final, err)
	}
	if err := d.Close(); err != nil {
		return err
	}
	return syncDir(filepath.Dir(d.final))
}

// Close does nothing the second time: the descriptor may be another file's then.
func (d *Draft) Close() error {
	fd := d.FD
	if d.FD = -1; fd < 0 {
		return fs.ErrClosed
	}
	return unix.Close(fd)
}

// Discard removes the draft. It does nothing after publish.
func (d *Draft) Discard() {
	if d.Close() == nil {
		os.Remove(d.Name())
	}
}

func syncDir(dir string) error {
	f, err := plain.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return &fs.PathError{Op: "open", Path: dir, Err: err}
	}
	defer f.Close()
	// Some file systems can't sync a directory and say so; theirs is then
	// durable by other means, or not at all, and no caller could do better.
	err = plain.Retry(func() error { return unix.Fsync(f.FD) })
	if err != nil && err != unix.EINVAL && !plain.Unsupported(err) {
		return &fs.PathError{Op: "sync", Path: dir, Err: err}
	}
	return nil
}
