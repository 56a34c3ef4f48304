package image

// A Scope is who sees a lock on a file. It is no property of the lock, which can be had almost
// everywhere, but of the file system by which the file was reached.
type Scope string

// Scopes, from the narrowest on.
const (
	// ScopeMount: those who reach the file by the same mount (more exactly, by the same
	// superblock). Another mount of the same storage knows nothing of the lock.
	ScopeMount Scope = "mount"
	// ScopeHost: all of this host, since its kernel reaches that storage by one superblock.
	ScopeHost Scope = "host"
	// ScopeStorage: everybody, since the storage itself keeps the lock.
	ScopeStorage Scope = "storage"
)

// Mount says by what a file was reached. It is plain data, to be kept for a server that
// has to find out whether writes of this one may still be under way: see ploop.Options.
type Mount struct {
	Boot  string `json:"boot"`         // the kernel's boot_id
	Since int64  `json:"since"`        // when that was so, in nanoseconds since the boot (CLOCK_BOOTTIME)
	Super uint64 `json:"super"`        // the superblock's device number, unused by others while it lives
	ID    uint64 `json:"id,omitempty"` // the mount's, unique in one boot; 0: not known (before Linux 6.8)
	// Type and Source are as in mountinfo(5); empty where the mount is in no table, as one
	// that was detached (umount -l).
	Type   string `json:"type,omitempty"`
	Source string `json:"source,omitempty"`
	Scope  Scope  `json:"scope"` // of locks
	// Node and Disk are the numbers of a special file and of its block device: the lock is
	// the special file's. 0: it is a regular file.
	Node uint64 `json:"node,omitempty"`
	Disk uint64 `json:"disk,omitempty"`
}
