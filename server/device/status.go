package device

import (
	"time"

	"holdfast/api"
	"holdfast/standby"
	"holdfast/ublk"
)

// Status takes the picture. It waits for nothing but queues that have requests and for what
// the images' paths lead to, at most surveyTime for either, and once only if that hangs.
func (d *Device) Status() api.Status {
	s := d.gen.Load().stack.Status()
	cfg, info := d.dev.Config(), d.dev.Info()
	st := api.Status{
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
	st.Standby, reasons = d.holding.standbyStatus()
	st.Gate = reasons.Names()
	d.oldest(&st)
	st.Displaced = d.paths.displaced(st.Images)
	st.State, st.Since = d.state(&st, reasons)
	return st
}

// state puts a device's state in a word, and since when it is so.
func (d *Device) state(st *api.Status, reasons standby.Reason) (string, time.Time) {
	switch {
	case d.link.ended():
		return api.StateStopped, time.Unix(0, d.since.Load())
	case reasons&standby.Standby != 0 && st.Standby.Expired:
		return api.StateFailing, *st.Standby.Deadline
	case reasons&standby.Standby != 0:
		return api.StateStandby, *st.Standby.Since
	case reasons&standby.Replace != 0:
		return api.StateReplacing, time.Unix(0, d.replacingSince.Load())
	case st.Oldest != nil && st.Oldest.Seconds >= hungAfter.Seconds():
		return api.StateHung, st.Oldest.Since
	case st.Counters.Parked > 0:
		return api.StateParked, time.Unix(0, d.parkedSince.Load())
	}
	return api.StateLive, time.Unix(0, d.since.Load())
}
