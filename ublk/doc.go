// Package ublk serves Linux block devices from user space, through the kernel's
// ublk driver.
//
// # The concept
//
// The driver makes two nodes of a device: /dev/ublkbN, the disk that others use,
// and /dev/ublkcN, its server's end. A device has queues, and each queue as many
// tags as it is deep. The server leaves one command per tag with the driver
// (FETCH), through io_uring. A request for the disk completes the command of a
// free tag; the server reads from shared memory what is wanted, does it, and
// answers with a command that hands in the result and waits for the next
// request (COMMIT_AND_FETCH). Nothing else passes between the two.
//
//	ctl, err := ublk.Open("")
//	dev, err := ctl.Create(ctx, ublk.Config{ID: -1, Size: size, Files: 1}, handler)
//	err = dev.SetFile(0, fd)
//	err = dev.Start(ctx)      // dev.Path() exists from here on
//	…
//	err = dev.Stop(ctx)
//
// Two whole servers are in ublk/examples: null, the least that a handler can be, and file,
// which does what a loop device does.
//
// # The way of a request
//
// Each queue has one locked OS thread and one ring on it. The thread drains every
// completion, lets the Handler act on each, and enters the kernel once for all that
// came of it. The handler's Begin gets a Request and must not block. It may
//
//   - complete it: Request.CompleteHere;
//   - move it on the queue's own ring, between the request's pages and a registered
//     file, with Request.ReadFile, WriteFile and SyncFile: the fast path. Transferred
//     tells the end of it. No goroutine, no lock and no allocation is involved, and
//     on the zero-copy path no copy;
//   - give it to a goroutine, which may block, get at the bytes by
//     Request.ReadPayload and WritePayload, and end with Request.Complete, or with
//     Request.Requeue, which brings the request back to Begin.
//
// A request has one owner at any time: the handler, from Begin on, or the ring,
// from the start of a transfer to Transferred, or the driver, after Complete.
// Calling a method of a request that one does not own is a bug, and most such calls
// panic.
//
// # Data paths
//
// On the copy path the driver copies between a request's pages and a buffer of ours,
// which Request.Buffer shows. On the zero-copy path (AUTO_BUF_REG, Linux 6.16) it
// registers the pages with the ring, and we never see them; what needs the bytes
// goes through the driver (USER_COPY). When the kernel has no memory to register
// the pages, it delivers the request all the same, and its transfer takes a detour
// over a buffer that each queue keeps for that: slower, and never an error.
//
// # Concurrency
//
// Begin and Transferred of one queue are called on one thread, one at a time; those of
// different queues at the same time. Methods of Request marked "queue's thread"
// may be called only from within these two and from functions run by Queue.Post
// or Device.OnQueues. Control and Device may be used from any goroutine.
//
// # Deadlocks
//
//   - A handler that blocks stops its queue, and a handler that does I/O on a file
//     system on its own device waits for itself. So does a goroutine that waits for
//     something which a blocked queue must do.
//   - Device.Stop waits for every request that the handler owns. Held requests
//     must be completed, with an error if need be, or Stop ends by its deadline with
//     the device still there, and may be called again.
//   - Device.SetFile and Device.OnQueues wait for the queues: never call them on a
//     queue's thread.
//   - Memory reclaim may write to the device, and the server allocate memory for
//     serving that write. Queue threads mark themselves as I/O flushers
//     (PR_SET_IO_FLUSHER); ProtectProcess does so for the whole process and locks
//     its memory. Whoever serves a device of the same machine calls it first.
//   - The last server thread of a mount namespace that has its own device mounted
//     cannot exit. Serve from the host's namespace.
//
// # The end of the server
//
// When the process dies the driver fails or keeps the requests, as Config.Recovery
// says. A panic in a handler kills the process and so is such a death. A new server
// takes the device over with Control.Recover, and one that has to go without dying
// gives it up with Device.Leave. On kernels before 6.15 somebody has to set a time-out first,
// or it may be half a minute before the driver notices a death: Control.TimeoutAttr says what,
// and why the server must not be the one.
//
// A dead server's writes may still be on their way to its files, and land after the
// new server has done the same request again and its user has gone on. Nothing here
// keeps them from that: whoever recovers has to know that none is left, before Start
// (an open-file-description lock on the file can tell).
package ublk
