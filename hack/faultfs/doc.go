// Package faultfs is storage that fails on demand: a FUSE file system that
// passes everything through to a directory, but for what a test tells it to do
// otherwise. It is for tests of what lies above: that a device holds, that a
// server recovers. Only root can mount it.
//
// # Use
//
// A mount is served by a child process, which is the test's own binary once
// more, so that a test may kill it, and never waits for itself:
//
//	func TestMain(m *testing.M) {
//		faultfs.Child() // does not return in the child
//		os.Exit(m.Run())
//	}
//
//	s, err := faultfs.Mount(backing, dir, faultfs.Options{})
//	defer s.Close()
//	s.Add(faultfs.Rule{Op: faultfs.Fsync, Path: "top", Errno: unix.EIO, Times: 1})
//	s.Dead(unix.ENOTCONN) // everything, from now
//	s.Dead(0)             // it is back
//
// Several mounts may lie over one directory: several ways to the same files, of
// which one is dead and another one works.
//
// # Rules
//
// The first rule that matches an operation is applied to it. It says which
// operations it matches (Op, Path, and Off and Len of a range of the file),
// which of those it applies to (After, Times, Chance), and what then happens,
// in this order: Delay, Hang, and then the operation itself, wholly (Apply), in
// part (Partial) or not at all, and the answer Errno. A rule with Errno 0 and
// nothing else does no harm, and counts.
//
//	an error                         {Op: Write, Errno: EIO}
//	done, but it says it is not      {Op: Write, Errno: EIO, Apply: true}
//	torn                             {Op: Write, Errno: EIO, Partial: 512}
//	a short write or read            {Op: Write, Partial: 512}
//	one in ten, the same each run    {Op: Read, Errno: EIO, Chance: 0.1, Seed: 7}
//	one write held back              {Op: Write, Off: 1 << 20, Len: 4096, Hang: true, Times: 1}
//
// What is held back lands when the rule is removed, over whatever was written
// since, as a write does that a dead host had on its way; [Storage.Drop] makes it
// fail instead. A hanging operation can't be interrupted, and keeps its
// process from dying, as with most real storage. Close and Kill cut it off; it
// then never lands.
//
// # Short transfers and io_uring
//
// Linux (seen on 6.12, 6.18 and 7.2) goes on at the wrong place after a short read or
// write by io_uring on a file that its FUSE server has declared for direct I/O,
// as this one does: fuse_direct_IO leaves the position alone, and io_uring, which
// asks for the rest by itself, relies on it. The data is shifted, and the caller
// told that all is well. It doesn't happen with Options.OneWriter, nor with
// read(2), write(2) and AIO. With Options.AsyncIO a short write is EIO.
//
// With Options.OneWriter a short read means that the file ends there: the kernel takes
// the rest from the page cache, which is zeroes.
//
// # What it is like otherwise
//
// Without Options.OneWriter all files are opened for direct I/O, whatever the opener asks:
// no page cache comes between, and each read and write of up to a megabyte is one
// operation. Neither names nor attributes are cached, as other mounts may change
// them. Locks (fcntl's, of open file descriptions too, and flock) are by default
// the kernel's own, and so seen only within one mount, as with storage that
// carries no locks; with Options.Locks they go to the files behind and hold
// between mounts. A lock that is held goes with the descriptor, or with the
// child. The files behind are written through the page cache: a killed child
// loses nothing that was answered.
package faultfs
