// Package device makes a live block device from a Spec: it binds a stack of
// images (package ploop) to a ublk device (package ublk).
//
// # The way of a request
//
// Each queue is one thread. For a request it asks its ploop.Reader where the
// data lies; if the answer is a place in a file, the transfer between the
// request's pages and that file goes onto the queue's own ring, and its end
// completes the request (fast.go). Everything else is given to a goroutine of
// its own, which may block (slow.go), and which completes the request through
// the queue's wake-up.
//
// # What must not wait for what
//
// The queue's thread waits for nothing. A slow request may wait for the end of
// fast transfers (a discard's grace period), never the other way round. A
// request that finds no space left is parked: it keeps its tag, holds no lock,
// and is tried again. Close fails what is parked, so that it never waits for
// storage to be added.
package device
