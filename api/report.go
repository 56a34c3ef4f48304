package api

import (
	"fmt"
	"time"

	"holdfast/ploop/image"
)

// ImageStatus is one file of the device's stack.
type ImageStatus = image.Status

// Status is a picture of a device, taken without stopping anything.
type Status struct {
	Name        string        `json:"name"`
	ID          int           `json:"id"`
	Path        string        `json:"path"`
	Size        int64         `json:"size"`         // bytes
	ClusterSize int64         `json:"cluster_size"` // bytes
	Clusters    uint64        `json:"clusters"`     // of the disk
	Allocated   int64         `json:"allocated"`    // clusters that the top image holds
	ReadOnly    bool          `json:"read_only"`
	Damaged     bool          `json:"damaged,omitempty"` // as Spec's
	State       string        `json:"state"`             // one of the State constants
	Since       time.Time     `json:"since"`             // State's
	Gate        []string      `json:"gate"`              // why requests are held; empty: they flow
	Standby     StandbyStatus `json:"standby"`
	Queues      int           `json:"queues"`
	Depth       int           `json:"depth"`
	DataPath    string        `json:"data_path"` // copy or zero-copy
	Images      []ImageStatus `json:"images"`    // base first
	Counters    Counters      `json:"counters"`
	Latency     []Latency     `json:"latency"`
	// Oldest is the oldest request under way: not held, not parked, not in replaced
	// files; nil: none is.
	Oldest *OldestRequest `json:"oldest,omitempty"`
	// Displaced are the images that are served from another file than the one at their path.
	Displaced []Displaced `json:"displaced,omitempty"`
	// LogicalBlock is the smallest unit of the device, in bytes.
	LogicalBlock int `json:"logical_block_size"`
}

// States of a device.
const (
	StateLive      = "live"
	StateParked    = "parked"    // requests wait for space in the storage
	StateHung      = "hung"      // a request is under way for longer than hungAfter
	StateStandby   = "standby"   // requests are held
	StateFailing   = "failing"   // standby has timed out: requests fail
	StateReplacing = "replacing" // files are being replaced, requests wait
	StateStopped   = "stopped"   // taken away behind our back
)

// StandbyStatus is all about standby.
type StandbyStatus struct {
	Value     string     `json:"value"`     // not supported, on or off
	Enabled   bool       `json:"enabled"`   // STANDBY_EN
	Flag      bool       `json:"flag"`      // STANDBY
	Consumers []string   `json:"consumers"` // who has a lease
	Since     *time.Time `json:"since,omitempty"`
	Cause     string     `json:"cause,omitempty"`    // the error that set the flag, or "by hand"
	ByHand    bool       `json:"by_hand,omitempty"`  // it is not ended by reopening the files
	Errno     string     `json:"errno,omitempty"`    // its name
	Deadline  *time.Time `json:"deadline,omitempty"` // when requests begin to fail
	Expired   bool       `json:"expired"`            // they do
	Held      int64      `json:"held"`               // requests held now
	Tags      int64      `json:"tags"`               // as many can be
	// Stuck counts requests begun in files that were replaced since, and which
	// have not come back from there; they will be served anew when they do.
	Stuck int64 `json:"stuck"`
	// How old the oldest of those held, and of the stuck, is, in seconds since it came.
	HeldSeconds  float64    `json:"held_seconds"`
	StuckSeconds float64    `json:"stuck_seconds"`
	Resume       string     `json:"resume"`   // how it ends: manual or reopen
	Attempts     uint64     `json:"attempts"` // to reopen, in this standby
	LastError    string     `json:"last_error,omitempty"`
	NextAttempt  *time.Time `json:"next_attempt,omitempty"`
	BadRanges    []BadRange `json:"bad_ranges,omitempty"` // whose errors are their own
	// Totals since the device was made.
	Seconds         float64           `json:"seconds"` // with the flag set
	Entered         uint64            `json:"entered"` // times
	Resumed         uint64            `json:"resumed"` // times
	HeldTotal       uint64            `json:"held_total"`
	HeldFailed      uint64            `json:"held_failed"`
	Triggers        map[string]uint64 `json:"triggers"`        // by the error's name
	Inconsistencies map[string]uint64 `json:"inconsistencies"` // by kind
}

// Latency is how long requests of one kind took, of one in LatencySample of them, from
// their arrival to their completion. Time held counts.
type Latency struct {
	Op      string   `json:"op"` // read, write, flush, discard, write_zeroes
	Count   uint64   `json:"count"`
	Sum     float64  `json:"sum"`     // seconds
	Buckets []uint64 `json:"buckets"` // up to LatencyBounds[i] and above the one before; the last is for all above
}

// Counters are totals since the device was made, but for InFlight and Parked.
type Counters struct {
	Reads          uint64  `json:"reads"`
	Writes         uint64  `json:"writes"`
	Flushes        uint64  `json:"flushes"`
	Discards       uint64  `json:"discards"`
	WriteZeroes    uint64  `json:"write_zeroes"`
	ReadBytes      uint64  `json:"read_bytes"`
	WriteBytes     uint64  `json:"write_bytes"`
	DiscardBytes   uint64  `json:"discard_bytes"`
	WriteZeroBytes uint64  `json:"write_zeroes_bytes"`
	Errors         uint64  `json:"errors"`
	Slow           uint64  `json:"slow"` // requests that took the slow way
	InFlight       int64   `json:"inflight"`
	Parked         int64   `json:"parked"`         // waiting for space
	ParkedSeconds  float64 `json:"parked_seconds"` // how old the oldest of these is
}

// Where a request is.
const (
	AtTransfer = "transfer" // its data is being moved between its pages and a file, or a file synced
	AtStorage  = "storage"  // a call of the slow path is under way in the storage
	AtWorker   = "worker"   // it waits its turn on the slow path
	AtQueue    = "queue"    // not known: the thread of its queue doesn't answer
)

// OldestRequest is the one that is under way for the longest time.
type OldestRequest struct {
	Since   time.Time `json:"since"`            // when it came, to a second
	Seconds float64   `json:"seconds"`          // since then
	At      string    `json:"at"`               // one of the At constants
	Op      string    `json:"op,omitempty"`     // as in Latency
	Offset  int64     `json:"offset,omitempty"` // on the disk, in bytes; of a flush 0
	Length  int64     `json:"length,omitempty"` // bytes
	// Of a transfer: the file, the image's level, and where in it; -1: it is synced.
	File       string `json:"file,omitempty"`
	Level      *int   `json:"level,omitempty"`
	FileOffset *int64 `json:"file_offset,omitempty"`
}

// Displaced is an image that is served from an open file which is not known to be the one at
// its path. I/O goes on all the same; but whoever opens the path, as an upgrade, a recovery or
// a reopening does, gets something else.
type Displaced struct {
	Level int    `json:"level"`
	Path  string `json:"path"`
	How   string `json:"how"`             // one of the Path constants
	Error string `json:"error,omitempty"` // of PathError
}

// How an image is displaced.
const (
	PathGone   = "gone"   // nothing is at its path: the file was deleted or renamed, or its mount is gone
	PathOther  = "other"  // another file is at its path
	PathError  = "error"  // its path can't be looked up
	PathSilent = "silent" // looking it up hangs for longer than hungAfter
)

// String says it in words.
func (d Displaced) String() string {
	switch d.How {
	case PathGone:
		return fmt.Sprintf("level %d is served from a file that is no longer at its path %q: it was deleted or renamed, or its mount is gone", d.Level, d.Path)
	case PathOther:
		return fmt.Sprintf("level %d is served from a file that is no longer at its path: %q is another file now", d.Level, d.Path)
	case PathError:
		return fmt.Sprintf("whether level %d is served from the file at its path %q is not known: %s", d.Level, d.Path, d.Error)
	}
	return fmt.Sprintf("whether level %d is served from the file at its path %q is not known: looking it up hangs", d.Level, d.Path)
}

// BadRange is a range of a file whose errors are its own: they go to who asks for it, and the
// rest of the device is served.
type BadRange struct {
	Op     string `json:"op"` // read, write, write index …
	Level  int    `json:"level"`
	File   string `json:"file"`
	Offset int64  `json:"offset"` // in the file, in bytes
	Length int64  `json:"length"`
	Errno  string `json:"errno"`
}

// String is the range in a few words.
func (b BadRange) String() string {
	return fmt.Sprintf("%s of %d bytes at offset %d of %q (level %d): %s", b.Op, b.Length, b.Offset, b.File, b.Level, b.Errno)
}

// LatencySample says that one request in so many is timed: the fast path reads
// no clock for the others.
const LatencySample = 64

// LatencyBounds are the upper bounds of the histograms' buckets, in seconds.
var LatencyBounds = []float64{50e-6, 100e-6, 200e-6, 500e-6, 1e-3, 2e-3, 5e-3, 10e-3, 20e-3, 50e-3, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 300}
