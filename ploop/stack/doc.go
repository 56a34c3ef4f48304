// Package stack serves a disk from a stack of ploop images, which are deltas over one another and,
// if wanted, over one raw base: it reads, writes, allocates, copies up and discards, and goes on
// with other files where the storage below has to be replaced. The format, and the tools for images
// that aren't served, are package ploop's.
//
// # The merged table
//
// A [Stack] keeps one table for the whole stack, with the level and the place
// of each cluster of the disk, eight bytes a cluster, so that a read costs the
// same at any depth. Only the top delta is ever written.
//
// # Two ways in
//
// Slow and complete: [Stack.ReadAt], [Stack.WriteAt], [Stack.WriteZeroes],
// [Stack.Discard] and [Stack.Flush] may be called from any number of
// goroutines, and block.
//
// Fast and partial: a [Reader] belongs to one thread. Reader.Locate answers,
// without a lock or an allocation, in which file and where a range of the disk
// lies; the caller then moves the data itself (io_uring) and calls
// Reader.Leave. What the fast way can't do, it says, and the caller takes the
// slow one.
//
// # Concurrency
//
// Each change of a cluster's place holds that cluster's lock. A change that
// gives a place up for reuse (discard) must also outlast the fast transfers
// that were told of the place before: it marks the table's entry busy, which
// turns later ones to the slow path where they wait for the lock, and then
// waits for a grace period, as RCU does (grace.go). So a caller must not wait
// for anything of this package between Locate and Leave: that would be a
// deadlock with the first discard.
//
// # Order and durability
//
// What an entry of the BAT points to reads right from the moment the entry can be on
// stable storage. Room that the file system has reserved for the file, and a sync has made durable
// since, reads as zeroes until data comes to it: so a cluster that had nothing before gets
// a place in it without a sync, its data beside its entry (zeroes.go). The file
// grows ahead of need, and that is synced, off the way of the requests (ahead.go). Data that is copied
// up, or comes to a place that was used before, is synced before its entry goes into the file
// (index.go); many such allocations share one sync. A write is acknowledged when data and entry are
// in the file, and a flush makes them
// durable. At most one sync of a file is under way, and who wants one meanwhile
// shares the next (syncs.go). Power may fail at any point: the image then checks
// clean but for leaked clusters. A failed write of the index is read back before memory is
// trusted again. The header's in_use is set, durably, before the first write
// and cleared at a clean Close.
//
// # Succession
//
// Files of a live stack are replaced, or opened anew when their storage is
// back, by handing it over to another stack that goes on where the old one stands: see [Handover].
//
// What hangs in dead storage is never waited for, and a handover ends every wait
// of this package for somebody else. What hangs can't do harm when it comes back
// late: it writes no structure, since it asks before each such
// write, and the new stack gives no cluster a place that it may write data to.
// What did begin to write structure, or could still write over newer data in
// the same file by another way, has Prepare refuse. The old stack's lock,
// which only it gives back, is the witness of that.
package stack
