package stack

import "sync/atomic"

// zeroes knows which of the top's new clusters read as zeroes whatever a power cut leaves of the
// data in them: those of room that the file system has reserved, and a sync has made durable
// since. The entry of such a cluster may be on the disk before its data.
//
// All are positions, and only rise. A sync that fails may have lost the reservation as well as
// data, and a later one that succeeds doesn't tell: room that wasn't durable then isn't relied on
// any more.
type zeroes struct {
	room    atomic.Int64 // reserved up to here
	durable atomic.Int64 // and that is durable up to here
	doubted atomic.Int64 // but for what lies below this

	reserved atomic.Bool // the last growth was
}

// last says whether a cluster that wasn't written to since the file grew lasts.
func (z *zeroes) last(pos uint64) bool {
	return int64(pos) < z.durable.Load() && int64(pos) >= z.doubted.Load()
}

// gains says whether a sync would have more clusters last.
func (z *zeroes) gains() bool { return z.room.Load() > max(z.durable.Load(), z.doubted.Load()) }

// grown is told of room up to a position.
func (z *zeroes) grown(end uint64, lasting bool) {
	z.reserved.Store(lasting)
	if !lasting {
		raise(&z.doubted, int64(end))
	}
	raise(&z.room, int64(end))
}

// doubt is told of a sync that failed.
func (z *zeroes) doubt() {
	if room := z.room.Load(); room > z.durable.Load() {
		raise(&z.doubted, room)
	}
}

// inherit takes over what another stack knows of the same file.
func (z *zeroes) inherit(from *zeroes) {
	// What is durable first: what is doubted meanwhile is doubted here, too.
	z.durable.Store(from.durable.Load())
	z.room.Store(from.room.Load())
	z.doubted.Store(from.doubted.Load())
	z.reserved.Store(from.reserved.Load())
}
