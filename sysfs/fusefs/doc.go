// Package fusefs mounts a tree of attributes (package sysfs) by FUSE, so that
// plain programs can use it: cat, echo, ls, find, a shell's read and [ -e ].
//
// # What a file is like
//
// As in the kernel's sysfs: a file shows the size of a page, whatever its value;
// a read at offset 0 asks for the value anew, and the reads after it go on in
// the same answer; one write(2) is one value, at whatever offset, and its
// error is Store's. Opening, truncating and appending do nothing by themselves.
// Everybody may read, the file's mode says who may write, and root too gets
// EACCES where nobody may. Nothing can be made or removed: EACCES or EPERM. A
// file whose name has vanished works while it is open, as far as Show does.
//
// Nothing is cached: neither names nor attributes nor values.
//
// # What may hang
//
// Show and Store run on goroutines of their own. If a caller is interrupted
// (killed, say) while one hangs, it gets EINTR after a second and the function
// is left to itself; a Store may then still take effect. Of one attribute so
// many can be left hanging, then it answers EBUSY until one returns. Other
// attributes, and the unmount, are not held up. But another
// writer of the same attribute may wait, in the kernel, until the Store under
// way is over or interrupted.
//
// # The deadlock
//
// The process that serves a tree must never open, stat or walk it: the system
// call waits for the server, which may be waiting for the thread that makes the
// call. Nor may it start a child with its working directory in the tree
// (exec.Cmd.Dir): between fork and exec the child is the process, as far as
// waiting goes. And it must not wait for a child that uses the tree while it
// holds a lock that a Show needs. [Mount] itself looks at the directory only
// before it is mounted. To read the tree, read it in memory (sysfs.Dir).
//
// # Memory
//
// A process that may not touch the disk for memory (mlockall) can serve a tree:
// requests are of 32 KiB at most, and few are under way at once.
package fusefs
