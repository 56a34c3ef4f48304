package device

import (
	"time"

	"holdfast/ploop"
	"holdfast/standby"
	"holdfast/ublk"
)

// ImageStatus is one file of the device's stack.
type ImageStatus = ploop.ImageStatus

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
	Recovery     string     `json:"recovery"` // manual or reopen
	Attempts     uint64     `json:"attempts"` // to reopen, in this standby
	LastError    string     `json:"last_error,omitempty"`
	NextAttempt  *time.Time `json:"next_attempt,omitempty"`
	BadRanges    []BadRange `json:"bad_ranges,omitempty"` // whose errors are their own
	// Totals since the device was made.
	Seconds         float64           `json:"seconds"`   // with the flag set
	Entered         uint64            `json:"entered"`   // times
	Recovered       uint64            `json:"recovered"` // times
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

// Status takes the picture. It waits for nothing but queues that have requests and for what
// the images' paths lead to, at most surveyTime for either, and once only if that hangs.
func (d *Device) Status() Status {
	s := d.gen.Load().stack.Status()
	cfg, info := d.dev.Config(), d.dev.Info()
	st := Status{
		Name: d.spec.Name, ID: d.ID(), Path: d.Path(),
		Size: s.Size, ClusterSize: s.ClusterSize, Clusters: s.Clusters, Allocated: s.Allocated, ReadOnly: s.ReadOnly, Damaged: d.spec.Damaged,
		Queues: info.Queues, Depth: info.Depth, DataPath: cfg.DataPath.String(), LogicalBlock: cfg.LogicalBlock,
		Images: s.Images, Latency: d.latency(),
	}
	c := &st.Counters
	var ended uint64
	for i := range d.queues {
		q := &d.queues[i].stats
		ended += q.ended.Load() // before what began, so that the difference isn't negative
		c.Reads += q.ops[ublk.OpRead].Load()
		c.Writes += q.ops[ublk.OpWrite].Load()
		c.Flushes += q.ops[ublk.OpFlush].Load()
		c.Discards += q.ops[ublk.OpDiscard].Load()
		c.WriteZeroes += q.ops[ublk.OpWriteZeroes].Load()
		c.ReadBytes += q.bytes[ublk.OpRead].Load()
		c.WriteBytes += q.bytes[ublk.OpWrite].Load()
		c.DiscardBytes += q.bytes[ublk.OpDiscard].Load()
		c.WriteZeroBytes += q.bytes[ublk.OpWriteZeroes].Load()
		c.Errors += q.errors.Load()
		c.Slow += q.slow.Load()
	}
	c.InFlight = int64(c.Reads + c.Writes + c.Flushes + c.Discards + c.WriteZeroes - ended)
	c.Parked = d.parked.Load()
	var reasons standby.Reason
	st.Standby, reasons = d.standbyStatus()
	st.Gate = reasons.Names()
	d.oldest(&st)
	st.Displaced = d.displaced(st.Images)
	st.State, st.Since = d.state(&st, reasons)
	return st
}

// state puts a device's state in a word, and since when it is so.
func (d *Device) state(st *Status, reasons standby.Reason) (string, time.Time) {
	switch {
	case d.ended():
		return StateStopped, time.Unix(0, d.since.Load())
	case reasons&standby.Standby != 0 && st.Standby.Expired:
		return StateFailing, *st.Standby.Deadline
	case reasons&standby.Standby != 0:
		return StateStandby, *st.Standby.Since
	case reasons&standby.Replace != 0:
		return StateReplacing, time.Unix(0, d.replacingSince.Load())
	case st.Oldest != nil && st.Oldest.Seconds >= hungAfter.Seconds():
		return StateHung, st.Oldest.Since
	case st.Counters.Parked > 0:
		return StateParked, time.Unix(0, d.parkedSince.Load())
	}
	return StateLive, time.Unix(0, d.since.Load())
}
