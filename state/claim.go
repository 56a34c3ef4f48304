package state

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"holdfast/api"

	"golang.org/x/sys/unix"
)

// A device claims its files before it opens them: each for reading together with others, or
// for writing alone. A claim is a lock on a file in the run directory, so it never waits for
// storage, works where the storage has no locks, and ends with the last thread of its process:
// one that was killed and hangs in storage has its claims for as long as it may write.
//
// A claim's file has the names of those who have the claim. Which of the names count, and
// whether the claim is taken at all, is said by locks alone: what dead processes left means
// nothing. The locks are of open files (F_OFD_SETLK), not flock(2), as they can be looked at
// without being taken, and as there can be several on one file:
const (
	claimByte = int64(1) << 40 // the claim itself: read or write lock
	claimTurn = int64(1) << 41 // + n: somebody writes the name n
	claimName = int64(1) << 42 // + n: the name n counts

	claimSlot = 80 // bytes a name, padded with blanks, with a newline
	maxClaims = 1 << 20

	// So often, and with such pauses, a claim is asked for again whose owner has no name: it is
	// about to get one, or to be gone.
	claimTries = 100
	claimPause = 2 * time.Millisecond
)

// FileID is a file, by whatever path: the numbers of its file system and its inode, or of a
// block device its own number, by whatever node.
type FileID struct {
	Dev, Ino uint64
	Disk     bool // Dev is a block device's own number
}

// FileIDOf is what stat(2) says.
func FileIDOf(st *unix.Stat_t) FileID {
	if st.Mode&unix.S_IFMT == unix.S_IFBLK {
		return FileID{Dev: st.Rdev, Disk: true}
	}
	return FileID{Dev: st.Dev, Ino: st.Ino}
}

func (id FileID) file() string {
	dev := fmt.Sprintf("%d:%d", unix.Major(id.Dev), unix.Minor(id.Dev))
	if id.Disk {
		return "disk-" + dev
	}
	return dev + ":" + strconv.FormatUint(id.Ino, 10)
}

// isClaim says whether a file could be called so.
func isClaim(name string) bool {
	numbers, disk := strings.CutPrefix(name, "disk-")
	want := 3
	if disk {
		want = 2
	}
	parts := strings.Split(numbers, ":")
	return len(parts) == want && !slices.ContainsFunc(parts, func(p string) bool { return p == "" || strings.Trim(p, "0123456789") != "" })
}

func (id FileID) compare(o FileID) int { return strings.Compare(id.file(), o.file()) }

// ClaimedFile is a file that a device is to have.
type ClaimedFile struct {
	Path  string // for messages
	ID    FileID
	Write bool
}

// ErrClaimed is returned when a file belongs to another device: every ClaimError is it.
var ErrClaimed = errors.New("the file belongs to another device")

// ClaimError refuses a claim.
type ClaimError struct {
	Path  string
	Owner string // a device that has the file; "": could not be found out
}

var _ error = (*ClaimError)(nil)

func (e *ClaimError) Error() string {
	if e.Owner == "" {
		return fmt.Sprintf("image %q belongs to another device", e.Path)
	}
	return fmt.Sprintf("image %q belongs to device %q", e.Path, e.Owner)
}

func (e *ClaimError) Is(target error) bool { return target == ErrClaimed }

// Claims are those of one device's server. They end with Close, or with the process. Two
// servers of one device exclude each other as two devices do: the device's lock keeps them apart.
type Claims struct {
	dir, name string

	mu   sync.Mutex
	held map[FileID]*claim
}

type claim struct {
	file             *os.File
	slot             int64
	readers, writers int // Add's less Drop's
}

// NewClaims are the claims of the device name: none yet.
func NewClaims(runDir, name string) *Claims {
	return &Claims{dir: Run(runDir).Claims(), name: name, held: map[FileID]*claim{}}
}

// Add claims files, all or none. What was claimed before stays so, and a file that was added
// twice is to be dropped twice. An error that is not ErrClaimed is the run directory's:
// whether another device has the file could not be found out.
func (c *Claims) Add(files []ClaimedFile) error {
	if !api.IsName(c.name) {
		return fmt.Errorf("claim files: %q is no name of a device", c.name)
	}
	if err := os.MkdirAll(c.dir, 0o700); err != nil {
		return fmt.Errorf("claim files: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	// In one order: of two that claim the same files at once, one gets them.
	sorted := slices.Clone(files)
	slices.SortStableFunc(sorted, func(a, b ClaimedFile) int { return a.ID.compare(b.ID) })
	for i, f := range sorted {
		if err := c.add(f); err != nil {
			for _, f := range sorted[:i] {
				c.drop(f)
			}
			return err
		}
	}
	return nil
}

func (c *Claims) add(f ClaimedFile) (err error) {
	cl := c.held[f.ID]
	if cl == nil {
		if cl, err = c.take(f); err != nil {
			return err
		}
		c.held[f.ID] = cl
	} else if f.Write && cl.writers == 0 {
		if err := setLock(cl.file, unix.F_WRLCK, claimByte); err != nil {
			if !locked(err) {
				return fmt.Errorf("claim image %q: %w", f.Path, err)
			}
			return &ClaimError{f.Path, otherOwner(cl.file)}
		}
	}
	if f.Write {
		cl.writers++
	} else {
		cl.readers++
	}
	return nil
}

// take takes the claim on a file that the device doesn't have yet.
func (c *Claims) take(f ClaimedFile) (*claim, error) {
	path := filepath.Join(c.dir, f.ID.file())
	for try := 1; ; try++ {
		file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o600)
		if err != nil {
			return nil, fmt.Errorf("claim image %q: %w", f.Path, err)
		}
		kind := int16(unix.F_RDLCK)
		if f.Write {
			kind = unix.F_WRLCK
		}
		err = setLock(file, kind, claimByte)
		if err == nil && stillAt(file, path) {
			cl := &claim{file: file}
			if err := cl.sign(c.name); err != nil {
				cl.remove(path)
				return nil, fmt.Errorf("claim image %q: %w", f.Path, err)
			}
			return cl, nil
		}
		owner := ""
		if err != nil {
			owner = otherOwner(file)
		}
		file.Close()
		switch {
		case err == nil: // its last owner has removed it meanwhile
		case !locked(err):
			return nil, fmt.Errorf("claim image %q: %w", f.Path, err)
		case owner != "" || try >= claimTries:
			return nil, &ClaimError{f.Path, owner}
		}
		if try >= 10*claimTries {
			return nil, fmt.Errorf("claim image %q: %q is removed again and again", f.Path, path)
		}
		if err != nil {
			time.Sleep(claimPause)
		}
	}
}

// sign puts the device's name in a free place. Places are tried at random, among twice as many
// each time: to try all of them from the first would take a thousand readers of one base
// thousands of attempts each, and each attempt looks through all locks.
func (cl *claim) sign(name string) error {
	for span := int64(1); ; span = min(2*span, maxClaims) {
		cl.slot = rand.Int64N(span)
		err := setLock(cl.file, unix.F_WRLCK, claimTurn+cl.slot)
		if err == nil {
			break
		}
		if !locked(err) {
			return err
		}
	}
	if _, err := cl.file.WriteAt(fmt.Appendf(nil, "%-*s\n", claimSlot-1, name), cl.slot*claimSlot); err != nil {
		return err
	}
	return setLock(cl.file, unix.F_WRLCK, claimName+cl.slot)
}

// Drop gives up what Add claimed with the same files. Files that are not claimed are passed over.
func (c *Claims) Drop(files []ClaimedFile) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, f := range files {
		c.drop(f)
	}
}

func (c *Claims) drop(f ClaimedFile) {
	cl := c.held[f.ID]
	switch {
	case cl == nil:
		return
	case f.Write && cl.writers > 0:
		cl.writers--
	case !f.Write && cl.readers > 0:
		cl.readers--
	default:
		return
	}
	switch {
	case cl.readers+cl.writers == 0:
		cl.remove(filepath.Join(c.dir, f.ID.file()))
		delete(c.held, f.ID)
	case cl.writers == 0 && f.Write:
		_ = setLock(cl.file, unix.F_RDLCK, claimByte) // to less, which nobody can prevent
	}
}

// Close gives up all claims.
func (c *Claims) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for id, cl := range c.held {
		cl.remove(filepath.Join(c.dir, id.file()))
		delete(c.held, id)
	}
}

// remove ends a claim. The file goes if nobody else has a claim on it: who has opened it
// already finds out that it is not in its place any more (see stillAt).
func (cl *claim) remove(path string) {
	removeUnclaimed(cl.file, path)
	cl.file.Close()
}

func removeUnclaimed(file *os.File, path string) {
	if setLock(file, unix.F_WRLCK, claimByte) == nil && stillAt(file, path) {
		os.Remove(path)
	}
}

// Owner is a device that has a claim on a file.
func Owner(runDir string, id FileID) (name string, ok bool) {
	path := filepath.Join(Run(runDir).Claims(), id.file())
	for range claimTries {
		file, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
		if err != nil {
			return "", false
		}
		taken := isLocked(file, claimByte, 1) >= 0
		name = otherOwner(file)
		file.Close()
		if !taken || name != "" {
			return name, taken && name != ""
		}
		time.Sleep(claimPause)
	}
	return "", true
}

// SweepClaims removes the files of claims that nobody has: those of servers that died, and of
// files that no device has any more.
func SweepClaims(runDir string) error {
	dir := Run(runDir).Claims()
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("claims: %w", err)
	}
	for _, e := range entries {
		if !isClaim(e.Name()) || !e.Type().IsRegular() {
			continue
		}
		path := filepath.Join(dir, e.Name())
		file, err := os.OpenFile(path, os.O_RDWR|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
		if err != nil {
			continue
		}
		// Who wants the claim just now finds it locked by nobody with a name, and asks again.
		if isLocked(file, claimByte, 1) < 0 {
			removeUnclaimed(file, path)
		}
		file.Close()
	}
	return nil
}

// otherOwner is a name in a claim's file that counts and is not this open file's own, "": there
// is none.
func otherOwner(file *os.File) string {
	at := isLocked(file, claimName, maxClaims)
	if at < 0 {
		return ""
	}
	b := make([]byte, claimSlot)
	n, _ := file.ReadAt(b, (at-claimName)*claimSlot)
	if name := strings.TrimSpace(string(b[:n])); api.IsName(name) {
		return name
	}
	return ""
}

// stillAt says that a path leads to a file that is open.
func stillAt(file *os.File, path string) bool {
	var a, b unix.Stat_t
	return unix.Fstat(int(file.Fd()), &a) == nil && unix.Lstat(path, &b) == nil && a.Dev == b.Dev && a.Ino == b.Ino
}
