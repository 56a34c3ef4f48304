package standby

import (
	"time"

	"golang.org/x/sys/unix"
)

// Place is where an error came from: an operation on a range of one of the device's files.
// One without a length is about the file as a whole.
type Place struct {
	Op    string
	Level int // of the file
	Off   int64
	Len   int64
}

// BadRange is a place whose error is its own: it came back right after a resume, while the
// rest of the file answered.
type BadRange struct {
	Place
	Errno unix.Errno
}

func (b BadRange) covers(errno unix.Errno, p Place) bool {
	return p.Len > 0 && b.Len > 0 && b.Errno == errno && b.Op == p.Op && b.Level == p.Level && b.Off < p.Off+p.Len && p.Off < b.Off+b.Len
}

const (
	// calm is how long a device must serve without a standby, before another one is no
	// longer part of the same episode: the longest interval between two reopenings.
	calm = 10 * time.Second
	// trial is how long after a resume an error counts as having come back: the requests
	// that were held are done again at once, but one of them may take its time-out.
	trial = time.Minute
	// An episode that finds more bad ranges than that has no bad ranges, but storage that
	// is lost and answers here and there.
	mostInEpisode = 16
	// mostRanges bounds what is kept; the oldest are forgotten.
	mostRanges = 64
)

// episode is one outage: standbys that follow one another.
type episode struct {
	ended   time.Time     // when the last standby did, by a resume
	spent   time.Duration // in earlier standbys of the episode
	found   int           // bad ranges
	lost    bool          // too many
	suspect []BadRange    // what erred in its standbys
	bad     []BadRange    // for good
}

func (e *episode) begin(now time.Time, byHand bool) {
	if byHand || e.ended.IsZero() || now.Sub(e.ended) >= calm {
		e.spent, e.found, e.lost, e.suspect = 0, 0, false, nil
	}
}

func (e *episode) end(now time.Time, lasted time.Duration, resumed bool) {
	e.spent += lasted
	e.ended = now
	if !resumed {
		e.ended, e.suspect = time.Time{}, nil
	}
}

// suspects remembers what erred in a standby.
func (e *episode) suspects(errno unix.Errno, p Place) {
	if p.Len > 0 && len(e.suspect) < mostRanges && !covered(e.suspect, errno, p) {
		e.suspect = append(e.suspect, BadRange{p, errno})
	}
}

func (e *episode) onTrial(now time.Time, errno unix.Errno, p Place) bool {
	return !e.ended.IsZero() && now.Sub(e.ended) < trial && covered(e.suspect, errno, p)
}

// known says whether an error may be the place's own.
func (e *episode) known(now time.Time, errno unix.Errno, p Place) bool {
	return !e.lost && (covered(e.bad, errno, p) || e.onTrial(now, errno, p))
}

// find keeps a bad range; false: there are too many.
func (e *episode) find(errno unix.Errno, p Place) bool {
	if e.found == mostInEpisode {
		e.bad = e.bad[:max(len(e.bad)-e.found, 0)]
		e.lost = true
		return false
	}
	e.found++
	if e.bad = append(e.bad, BadRange{p, errno}); len(e.bad) > mostRanges {
		e.bad = append([]BadRange(nil), e.bad[1:]...)
	}
	return true
}

// replaced puts what is known of a file to the test again.
func (e *episode) replaced(level int) {
	var kept []BadRange
	for _, b := range e.bad {
		if b.Level == level {
			e.suspects(b.Errno, b.Place)
		} else {
			kept = append(kept, b)
		}
	}
	e.bad = kept
}

func covered(list []BadRange, errno unix.Errno, p Place) bool {
	for _, b := range list {
		if b.covers(errno, p) {
			return true
		}
	}
	return false
}

// Known says whether an error may be its place's own: the place is known to be bad, or it erred
// before a resume that has just been, and the request that met the error then does so again.
// Another request's error says less: what erred before may have worked meanwhile, and storage
// that is lost once more often shows at the same busy place first. Who asks then finds out
// whether the storage answers elsewhere, and says so to Fault.
func (d *Device) Known(errno unix.Errno, p Place, again bool) bool {
	d.key.lock()
	defer d.key.mu.Unlock()
	return !d.flag && d.ep.known(d.key.now(), errno, p) && (again || covered(d.ep.bad, errno, p))
}

// Replaced says that another file has taken the place of one: what was bad there may not be
// any more. To be called before Resume.
func (d *Device) Replaced(level int) {
	d.key.lock()
	defer d.key.mu.Unlock()
	if now := d.key.now(); !d.flag {
		d.ep.begin(now, false) // what was long ago is no part of what comes
		d.ep.ended = now
	}
	d.ep.replaced(level)
}

// own decides about an error that may be its place's own, while the storage answers elsewhere.
func (d *Device) own(errno unix.Errno, cause string, p Place) bool {
	now := d.key.now()
	switch {
	case d.flag || !d.ep.known(now, errno, p):
		return false
	case covered(d.ep.bad, errno, p):
		return true
	case !d.ep.find(errno, p):
		return false
	}
	d.settle(Change{Kind: FoundBad, Cause: cause})
	return true
}
