package device

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/api"
	"holdfast/ublk"
)

// A request for which the storage has no space is parked: it keeps its tag, and has no worker
// and no goroutine. One of those that are parked, the first, is tried again now and then for
// all of them; when it finds space, the next two are tried, then four, and so on. So a
// storage that is full is asked by one request at a time, however many wait.

// The pause between two tries doubles from the first to the longest, which is dm-ploop's
// interval. A change that may have made space ends it, but at leastPause after the last try.
var (
	leastPause   = 100 * time.Millisecond
	firstPause   = time.Second
	longestPause = 20 * time.Second
)

// parking is what is parked.
type parking struct {
	mu     sync.Mutex
	list   jobs
	out    int // being tried
	window int // as many may be
	freed  bool
	pause  time.Duration
	last   time.Time   // when a try last found no space
	timer  *time.Timer // runs while something is parked and nothing is tried
	ended  bool
	// allocated is how many clusters the top had when space was last missing: when there are
	// more, somebody has found some.
	allocated atomic.Int64
}

// parker holds requests that find no space.
type parker struct{ *Device }

// park keeps a job for which the storage has no space.
func (d parker) park(j *job, err error) {
	if !j.parked {
		j.parked = true
		j.q.slow[j.r.Tag()].parked.Store(true)
		if d.parked.Add(1) == 1 {
			d.parkedSince.Store(time.Now().UnixNano())
			d.emit(api.EventParked, "%v; requests wait, are tried again after %v and then ever more seldom, at last every %v, and go on when space is freed", err, firstPause, longestPause)
		}
	}
	if !d.parking.add(d.Device, j) {
		d.endParked(j)
	}
}

func (d parker) endParked(j *job) {
	d.slow.finish(j, fmt.Errorf("device is being removed: %w", unix.EIO))
}

// unpark ends a job's being parked, if it is; served says that it found space, or that
// another change was made that may have freed some.
func (d parker) unpark(j *job, served bool) {
	p := &d.parking
	switch {
	case j.tried:
		j.tried = false
		p.answered(d.Device, served)
	case served && j.class == changing && d.parked.Load() > 0 && (j.r.Op() != ublk.OpWrite || d.gen.Load().stack.Allocated() > p.allocated.Load()):
		p.wake(d.Device)
	}
	if !j.parked {
		return
	}
	j.parked = false
	j.q.slow[j.r.Tag()].parked.Store(false)
	if d.parked.Add(-1) == 0 {
		d.holding.flowing()
		d.emit(api.EventUnparked, "no request waits for space any more")
	}
}

// endParking fails what is parked, now and from now on.
func (d parker) endParking() {
	p := &d.parking
	p.mu.Lock()
	p.ended = true
	p.mu.Unlock()
	list := p.empty()
	for j := list.pop(); j != nil; j = list.pop() {
		d.endParked(j)
	}
}

// add puts a job into the list; false: nothing is parked any more.
func (p *parking) add(d *Device, j *job) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended {
		return false
	}
	p.allocated.Store(d.gen.Load().stack.Allocated())
	if j.tried {
		j.tried = false
		p.list.pushFront(j)
		p.out--
		p.window, p.last = 1, time.Now()
		if p.freed { // perhaps only after it had looked
			p.pause = leastPause
		}
	} else {
		p.list.push(j)
		if p.timer == nil && p.out == 0 {
			p.pause, p.last = firstPause, time.Now()
		}
	}
	p.sleep(d)
	return true
}

// sleep has the next try come after a pause, if none is under way. The caller holds p.mu.
func (p *parking) sleep(d *Device) {
	if p.out > 0 || p.list.head == nil || p.timer != nil {
		return
	}
	p.freed = false
	p.timer = time.AfterFunc(p.pause, func() { p.expired(d) })
	p.pause = min(max(2*p.pause, firstPause), longestPause)
}

// wake is called when a change was made that may have freed space.
func (p *parking) wake(d *Device) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.freed = true
	if p.timer != nil && p.timer.Stop() {
		p.timer = nil
		p.pause = max(leastPause-time.Since(p.last), 0)
		p.sleep(d)
	}
}

// expired ends a pause.
func (p *parking) expired(d *Device) {
	p.mu.Lock()
	p.timer = nil
	out := p.pick(1)
	p.mu.Unlock()
	d.parker.submitAll(out)
}

// answered ends a try that doesn't end in the list again.
func (p *parking) answered(d *Device, served bool) {
	p.mu.Lock()
	p.out--
	window := 1
	if served {
		window, p.pause = 2*p.window, firstPause
	}
	out := p.pick(window)
	p.mu.Unlock()
	d.parker.submitAll(out)
}

// pick takes out what is to be tried, so that as many tries are under way as a window allows.
// The caller holds p.mu.
func (p *parking) pick(window int) (out jobs) {
	for p.window = min(window, mostWorkers[changing]); p.out < p.window && p.list.head != nil; p.out++ {
		j := p.list.pop()
		j.tried = true
		out.push(j)
	}
	return out
}

func (d parker) submitAll(l jobs) {
	for j := l.pop(); j != nil; j = l.pop() {
		d.slow.submit(j)
	}
}

// empty takes out what is parked and isn't tried.
func (p *parking) empty() (out jobs) {
	p.mu.Lock()
	defer p.mu.Unlock()
	out.take(&p.list)
	if p.timer != nil && p.timer.Stop() {
		p.timer = nil
	}
	return out
}
