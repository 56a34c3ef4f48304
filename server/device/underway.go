package device

import (
	"sync"
	"sync/atomic"
	"time"

	"holdfast/api"
	"holdfast/ublk"
)

// hungAfter is how long a request may be under way before its device is called hung. A SCSI
// initiator gives a command 30 s before it aborts it: that leaves it 20 s for somebody to act.
var hungAfter = 10 * time.Second

// surveyTime bounds how long Status waits for the queues, and for what the images' paths lead
// to: their answers take microseconds, and a picture without them is better than none.
const surveyTime = 100 * time.Millisecond

// coarse is a clock for the fast path, which reads no other: the seconds since it was first
// used, stored by one goroutine for all devices.
var coarse struct {
	once    sync.Once
	start   time.Time
	seconds atomic.Uint32
}

func startClock() {
	coarse.once.Do(func() {
		coarse.start = time.Now()
		go func() {
			for range time.Tick(time.Second) {
				clockNow()
			}
		}()
	})
}

func clockNow() uint32 {
	now := uint32(time.Since(coarse.start) / time.Second)
	coarse.seconds.Store(now)
	return now
}

// whereabouts of a tag's request on the slow path.
type whereabouts struct {
	in     atomic.Pointer[generation] // in a call on its stack
	parked atomic.Bool
}

// survey is what a queue's thread sees of its requests: the oldest of each sort, by the coarse
// clock.
type survey struct {
	underWay, held, parked, late *sighting
}

type sighting struct {
	came        uint32
	at          string
	op          ublk.Op
	offset, len int64
	level       int
	fileOffset  int64
}

// survey looks at all requests of a queue. It runs on the queue's thread.
func (q *queue) survey(uq *ublk.Queue) *survey {
	s := new(survey)
	held := make([]bool, len(q.came))
	for _, r := range q.held {
		held[r.Tag()] = true
	}
	uq.Outstanding(func(r *ublk.Request, transfers bool) {
		tag := r.Tag()
		w := &q.slow[tag]
		see := sighting{came: q.came[tag], at: api.AtWorker, op: r.Op(), offset: r.Offset(), len: int64(r.Len())}
		sort := &s.underWay
		in := w.in.Load()
		switch {
		case held[tag]:
			sort = &s.held
		case transfers:
			see.at = api.AtTransfer
			see.level, see.fileOffset = r.Transfer()
			if r.User>>stateBits&epochMask != q.epoch {
				sort = &s.late
			}
		case in != nil && in != q.gen:
			sort = &s.late
		case in != nil:
			see.at = api.AtStorage
		case w.parked.Load():
			sort = &s.parked
		}
		if *sort == nil || see.came < (*sort).came {
			*sort = &see
		}
	})
	return s
}

// add keeps the older of each sort.
func (s *survey) add(t *survey) {
	for _, p := range []struct {
		of   **sighting
		with *sighting
	}{{&s.underWay, t.underWay}, {&s.held, t.held}, {&s.parked, t.parked}, {&s.late, t.late}} {
		if p.with != nil && (*p.of == nil || p.with.came < (*p.of).came) {
			*p.of = p.with
		}
	}
}

// oldest fills in how old the requests are. It wakes only queues that have some, and never
// waits for long.
func (d *Device) oldest(st *api.Status) {
	type answer struct {
		q    *queue
		done <-chan struct{}
		sent time.Time
	}
	var asked []answer
	for i, uq := range d.dev.Queues() {
		q := &d.queues[i]
		if q.stats.inFlight() == 0 {
			continue
		}
		if done, sent := q.inquiry.ask(uq.Post, func() *survey { return q.survey(uq) }, 0); done != nil {
			asked = append(asked, answer{q, done, sent})
		}
	}
	var all survey
	var silent time.Duration
	for _, a := range asked {
		if await(a.done, a.sent, surveyTime) {
			all.add(a.q.inquiry.last.Load())
		} else {
			silent = max(silent, time.Since(a.sent))
		}
	}
	now := clockNow()
	st.Oldest = oldestRequest(all.underWay, now, st.Images)
	if s := silent.Seconds(); silent > 0 && (st.Oldest == nil || st.Oldest.Seconds < s) {
		st.Oldest = &api.OldestRequest{Since: time.Now().Add(-silent), Seconds: s, At: api.AtQueue}
	}
	st.Counters.ParkedSeconds = all.parked.age(now)
	st.Standby.HeldSeconds = all.held.age(now)
	st.Standby.StuckSeconds = all.late.age(now)
}

// age is at most a second less than the true one, and not more unless the coarse clock was late.
func (s *sighting) age(now uint32) float64 {
	if s == nil || now <= s.came {
		return 0
	}
	return float64(now - s.came - 1)
}

func oldestRequest(s *sighting, now uint32, images []api.ImageStatus) *api.OldestRequest {
	if s == nil {
		return nil
	}
	o := &api.OldestRequest{Since: coarse.start.Add(time.Duration(s.came+1) * time.Second), Seconds: s.age(now), At: s.at, Op: opNames[s.op], Offset: s.offset, Length: s.len}
	if s.op == ublk.OpFlush {
		o.Offset, o.Length = 0, 0
	}
	if s.at == api.AtTransfer && s.level < len(images) {
		o.File, o.Level, o.FileOffset = images[s.level].Path, &s.level, &s.fileOffset
	}
	return o
}

// inFlight is how many requests have come and not gone.
func (s *stats) inFlight() int64 {
	n := -int64(s.ended.Load()) // before what came, so that the difference isn't negative
	for i := range s.ops {
		n += int64(s.ops[i].Load())
	}
	return n
}
