// Package sysfs is a tree of attributes in the manner of the kernel's sysfs:
// small text files, each of which shows one value, and some of which take one.
//
// A tree is plain data: a [Dir] has entries, which are [Attr]s, [Link]s and
// more Dirs. What an attribute means is known only to its functions. This
// package walks such a tree by path ([Dir.Read], [Dir.Write], [Dir.List]), for
// a command or an API; package sysfs/fusefs mounts it, so that cat and echo
// work on it.
//
// # What comes and goes
//
// A directory whose entries change has a function for them (Dir.More), which is
// called at every look; nothing is cached. Everything else in a tree must stay
// as it is once the tree is in use, and so no lock is needed.
//
// # What may block
//
// Show and Store may: the front ends see to it that one that hangs stops
// nobody but who asked. More may not: every walk to a path below it waits.
//
// # Errors
//
// A function's error reaches the reader or writer as an errno: the one that is
// in the error's chain (errors.As finds a syscall.Errno), else [Errno]'s
// answer. A wrong value is EINVAL.
package sysfs
