// Package device makes a live block device from a Spec: it binds a stack of
// images (package ploop) to a ublk device (package ublk).
//
// # The way of a request
//
// Each queue is one thread. For a request it asks its ploop.Reader where the
// data lies; if the answer is a place in a file, the transfer between the
// request's pages and that file goes onto the queue's own ring, and its end
// completes the request (fast.go). Everything else is given to a worker, a goroutine
// that may block (slow.go), and which completes the request through
// the queue's wake-up. A device has a bounded number of workers, and thereby of threads
// and buffers, however many requests hang; further ones wait in lists (pool.go).
//
// # Holding
//
// Each request looks at the gate first, one atomic load. If it is closed, the request is kept on
// its queue, with its tag and its pages, until the gate's owner (package standby) says that it is
// to begin anew or to fail. A request whose end meets an error that leads to standby is sent back
// to its beginning, where the gate then keeps it; its user sees nothing. That is the only way in
// which requests are kept, whatever they were in the middle of.
//
// # Replacing
//
// The files below a device are replaced by building another ploop.Stack while the gate is
// closed, and giving it to the queues (replace.go, reopen.go). What has not come back from
// the old files in time is late: its result won't count, and it begins anew when it
// comes (epochs.go).
//
// # What must not wait for what
//
// The queue's thread waits for nothing. A slow request may wait for the end of
// fast transfers (a discard's grace period), never the other way round. A
// request that finds no space left is parked: it keeps its tag, holds no lock and no
// worker, and is tried again (park.go). Close fails what is parked, so that it never waits for
// storage to be added. Nothing waits in the machine of package standby, whose lock covers
// all devices: what a change of it means is done by the queues and by a goroutine of
// the device's own (standby.go). One change of a device's files, or its Close, is under
// way at a time (Device.lock); reading its status needs none of that.
package device
