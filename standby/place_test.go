package standby

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// at is a place of a file: 4 KiB.
func at(off int64) Place { return Place{Op: "read", Level: 1, Off: off, Len: 4096} }

// armed is a fixture that holds.
func armed(t *testing.T) *fixture {
	t.Helper()
	f := newFixture()
	f.k.Enable("lio")
	if err := f.d.Attach("lio"); err != nil {
		t.Fatal(err)
	}
	return f
}

// fault is an error at a place, as its owner deals with it; answers is what it would find out.
func (f *fixture) fault(errno unix.Errno, p Place, answers bool) Verdict {
	return f.d.Fault(errno, "it", p, answers && f.d.Known(errno, p, true))
}

// TestOthersAtABusyPlace: an error at a place that erred before a resume is its own only for
// the request that was held for it. Another one comes when that has worked, and is held.
func TestOthersAtABusyPlace(t *testing.T) {
	f := armed(t)
	f.fault(unix.EIO, at(0), true)
	f.d.Reopened()
	if f.d.Known(unix.EIO, at(0), false) || !f.d.Known(unix.EIO, at(0), true) {
		t.Error("another request's error is taken for the one that came back, or that isn't")
	}
	f.fault(unix.EIO, at(0), true)
	if !f.d.Known(unix.EIO, at(0), false) {
		t.Error("a bad range is bad for everybody")
	}
}

// TestBadRange: an error that comes back at its place right after a resume, while the rest
// answers, goes to its user, and does so from then on; every other one is held.
func TestBadRange(t *testing.T) {
	for _, how := range []struct {
		name   string
		resume func(d *Device) bool
	}{{"reopened", (*Device).Reopened}, {"replaced", (*Device).Resume}} {
		t.Run(how.name, func(t *testing.T) {
			f := armed(t)
			want := func(v Verdict, errno unix.Errno, p Place, answers bool) {
				t.Helper()
				if got := f.fault(errno, p, answers); got != v {
					t.Errorf("%v at %+v: %v, want %v", errno, p, got, v)
				}
			}
			want(Hold, unix.EIO, at(0), true) // for the first time
			want(Hold, unix.EIO, at(0), true) // in standby
			if !how.resume(f.d) {
				t.Fatal("it was not in standby")
			}
			want(Pass, unix.EIO, at(0), true)
			want(Pass, unix.EIO, Place{Op: "read", Level: 1, Off: 2048, Len: 512}, true)
			f.now = f.now.Add(time.Hour)
			want(Pass, unix.EIO, at(0), true)
			if s := f.d.Status(); s.Flag || s.Stats.Entered != 1 || len(s.Bad) != 1 || s.Bad[0] != (BadRange{at(0), unix.EIO}) {
				t.Errorf("%+v", s)
			}
			for name, c := range map[string]struct {
				errno   unix.Errno
				p       Place
				answers bool
			}{
				"another error":              {unix.ENOTCONN, at(0), true},
				"another place":              {unix.EIO, at(4096), true},
				"another file":               {unix.EIO, Place{Op: "read", Level: 0, Len: 4096}, true},
				"another operation":          {unix.EIO, Place{Op: "write", Level: 1, Len: 4096}, true},
				"the file as a whole":        {unix.EIO, Place{Op: "read", Level: 1}, true},
				"storage that answers not":   {unix.EIO, at(0), false},
				"a sync, which has no place": {unix.EIO, Place{}, true},
			} {
				f.now = f.now.Add(time.Hour)
				if v := f.fault(c.errno, c.p, c.answers); v != Hold {
					t.Errorf("%s: %v", name, v)
				}
				f.d.Resume()
			}
			// It was a standby, too, in which the storage answered nothing: what is bad stays so.
			want(Pass, unix.EIO, at(0), true)
			// Another file in its place starts anew.
			f.now = f.now.Add(time.Hour)
			f.d.Replaced(0)
			want(Pass, unix.EIO, at(0), true)
			f.d.Replaced(1)
			if s := f.d.Status(); len(s.Bad) != 0 {
				t.Errorf("%+v", s.Bad)
			}
			want(Pass, unix.EIO, at(0), true) // right after
			f.d.Replaced(1)
			f.now = f.now.Add(trial)
			want(Hold, unix.EIO, at(0), true)
		})
	}
}

// TestNotBad: what doesn't come back right after a resume is no bad range.
func TestNotBad(t *testing.T) {
	f := armed(t)
	f.fault(unix.EIO, at(0), true)
	f.d.Reopened()
	f.now = f.now.Add(trial)
	if v := f.fault(unix.EIO, at(0), true); v != Hold {
		t.Errorf("long after: %v", v)
	}
	f.d.Clear("by hand")
	if v := f.fault(unix.EIO, at(0), true); v != Hold {
		t.Errorf("after a standby without a resume: %v", v)
	}
	// All that erred in a standby is on trial, not only what began it.
	f.fault(unix.EIO, at(1<<20), true)
	f.d.Reopened()
	for _, off := range []int64{1 << 20, 0} {
		if v := f.fault(unix.EIO, at(off), true); v != Pass {
			t.Errorf("at %d: %v", off, v)
		}
	}
	if n := f.d.Status().Stats.Entered; n != 3 {
		t.Errorf("entered %d times", n)
	}
	// A fuse that is off passes everything, and finds nothing.
	f.k.Disable("lio")
	if v := f.fault(unix.EIO, at(5<<20), true); v != Pass || len(f.d.Status().Bad) != 2 {
		t.Errorf("%v, %+v", v, f.d.Status().Bad)
	}
}

// TestLostAfterAll: storage that errs at ever more places after each resume is lost, however
// much of it answers, and its errors are held; when it has been well, that is forgotten.
func TestLostAfterAll(t *testing.T) {
	f := armed(t)
	passed := 0
	for i := range int64(100) {
		if f.fault(unix.EIO, at(i<<20), true) != Hold {
			t.Fatal("a new place is passed")
		}
		f.now = f.now.Add(time.Second)
		f.d.Reopened()
		if f.fault(unix.EIO, at(i<<20), true) == Pass {
			passed++
		}
		f.d.Reopened()
	}
	if s := f.d.Status(); passed != mostInEpisode || len(s.Bad) != 0 {
		t.Errorf("%d errors were passed, %d ranges are bad", passed, len(s.Bad))
	}
	f.now = f.now.Add(calm)
	f.fault(unix.EIO, at(0), true)
	f.d.Reopened()
	if v := f.fault(unix.EIO, at(0), true); v != Pass {
		t.Errorf("in the next episode: %v", v)
	}
	// What is kept is bounded.
	for i := range int64(4 * mostRanges) {
		f.now = f.now.Add(calm)
		f.fault(unix.EIO, at(i<<20), true)
		f.d.Reopened()
		f.fault(unix.EIO, at(i<<20), true)
	}
	if n := len(f.d.Status().Bad); n != mostRanges {
		t.Errorf("%d ranges are kept", n)
	}
}

// TestEpisode: time in standbys that follow one another adds up, until the device has been
// well for a time; one by hand is by itself.
func TestEpisode(t *testing.T) {
	f := armed(t)
	spent := func(want time.Duration) {
		t.Helper()
		if got := f.d.Status().Spent; got != want {
			t.Errorf("%v were spent before, want %v", got, want)
		}
	}
	for i := range 3 {
		f.fault(unix.EIO, at(int64(i)<<20), false)
		spent(time.Duration(i) * 3 * time.Second)
		f.now = f.now.Add(3 * time.Second)
		f.d.Reopened()
		f.now = f.now.Add(calm - time.Second)
	}
	f.now = f.now.Add(time.Second)
	f.fault(unix.EIO, at(0), false)
	spent(0)
	f.now = f.now.Add(time.Second)
	f.d.Reopened()
	f.now = f.now.Add(time.Hour)
	f.d.Replaced(0) // which is no outage
	f.fault(unix.EIO, at(0), false)
	spent(0)
	f.now = f.now.Add(time.Second)
	f.d.Reopened()
	if err := f.d.Set(); err != nil {
		t.Fatal(err)
	}
	spent(0)
	f.now = f.now.Add(time.Second)
	f.d.Clear("by hand")
	f.fault(unix.EIO, at(0), false)
	spent(0)
}
