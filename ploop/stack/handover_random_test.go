package stack

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"syscall"
	"testing"

	"holdfast/ploop"
	"holdfast/ploop/image"
	"holdfast/ploop/internal/storage"
)

// successionScene is a life of several stacks, one after the other.
type successionScene struct {
	faults   bool // the storage fails now and then before each succession
	lossy    bool // and a failed sync loses what it was to make durable
	trusting bool // control: the new stack takes all of the index for durable
}

// trustIndex forgets what is not known durable.
func (s *Stack) trustIndex() {
	l := &s.index.lost
	l.Lock()
	defer l.Unlock()
	for at := range l.sectors {
		delete(l.sectors, at)
		s.index.mark(s, at)
	}
	l.n.Store(0)
}

// play has stacks succeed one another: on the same files opened anew, on
// copies that hold what a power cut would have left, and now and then the
// succession is undone. The power is cut at random moments, right after the
// successions among them.
func (sc successionScene) play(seed uint64) error {
	rng := rand.New(rand.NewPCG(seed, 11))
	w := newSimWorld()
	w.reserves = rng.IntN(2) == 0
	cut, now := newCutSceneOf(w, rng, 100, 100) // an index of more than one sector
	cut.steps *= 2
	if sc.trusting {
		cut.workers = 1
	}
	open := func(path string, write, direct bool) (storage.File, error) { return w.open(path, write, direct) }
	s, err := Open(cut.refs, Options{open: open})
	if err != nil {
		return err
	}
	m := newCutModel(w, now)
	for range 4 {
		var cuts []cutImage
		w.Lock()
		m.running = true
		w.yield = cut.workers > 1
		cutRNG := rand.New(rand.NewPCG(rng.Uint64(), 1))
		w.event = func() {
			if cutRNG.IntN(50) == 0 && len(cuts) < 8 {
				cuts = append(cuts, m.cut(cutRNG))
			}
		}
		if sc.faults {
			w.fault = sc.fault(m, rand.New(rand.NewPCG(rng.Uint64(), 2)))
		}
		w.Unlock()
		if err := sc.work(m, s, cut, rng); err != nil {
			return err
		}
		w.Lock()
		w.fault = nil
		w.Unlock()

		h, next, nextWorld, image, err := sc.succeed(w, &w, m, s, cut, rng)
		if err != nil {
			return err
		}
		if rng.IntN(4) == 0 {
			if err := h.Abort(); err != nil {
				return fmt.Errorf("undo: %w", err)
			}
			w = m.w
			p := make([]byte, s.Size())
			if _, err := s.ReadAt(p, 0); err != nil {
				return fmt.Errorf("undone: %w", err)
			}
			if err := m.compare(p, 0); err != nil {
				return fmt.Errorf("undone: %w", err)
			}
			if err := sc.work(m, s, cut, rng); err != nil {
				return fmt.Errorf("undone: %w", err)
			}
			if h, next, nextWorld, image, err = sc.succeed(w, &w, m, s, cut, rng); err != nil {
				return fmt.Errorf("undone: %w", err)
			}
		}
		if sc.trusting {
			next.trustIndex()
		}
		if err := h.Commit(); err != nil {
			return err
		}
		s, w = next, nextWorld
		p := make([]byte, s.Size())
		if _, err := s.ReadAt(p, 0); err != nil {
			return err
		}
		if image != nil {
			if now, err = image.read(p); err == nil {
				m.w.Lock()
				m.w.event = nil
				m.w.Unlock()
				m = newCutModel(w, now)
			}
		} else {
			err = m.compare(p, 0)
		}
		if err != nil {
			return fmt.Errorf("after the succession: %w", err)
		}
		// What is written and flushed now stands, whatever is cut then.
		if err := sc.work(m, s, cut, rng); err != nil {
			return err
		}
		if err := m.flush(s.Flush); err != nil {
			return err
		}
		if _, err := s.ReadAt(p, 0); err != nil {
			return err
		}
		if err := m.compare(p, 0); err != nil {
			return err
		}
		w.Lock()
		cuts = append(cuts, m.cut(rng))
		w.event = nil
		w.Unlock()
		for i, c := range cuts {
			if _, _, err := c.verify(cut.refs); err != nil {
				return fmt.Errorf("cut %d of %d: %w", i, len(cuts), err)
			}
		}
	}
	want := make([]byte, s.Size())
	if _, err := s.ReadAt(want, 0); err != nil {
		return err
	}
	if err := s.Close(); err != nil {
		return fmt.Errorf("close: %w", err)
	}
	r, err := ploop.CheckOn(cut.refs, ploop.CheckOptions{}, w.open)
	if err != nil || r.ExitCode() == ploop.ExitCorrupt {
		return fmt.Errorf("check: %+v, %w", r, err)
	}
	if s, err = Open(cut.refs, Options{ReadOnly: true, open: w.open}); err != nil {
		return err
	}
	p := make([]byte, len(want))
	if _, err := s.ReadAt(p, 0); err != nil || !bytes.Equal(p, want) {
		return fmt.Errorf("memory and file disagreed (%w)", err)
	}
	return s.Close()
}

func (sc successionScene) fault(m *cutModel, rng *rand.Rand) func(*simFile, string, int64, int64) simFault {
	odds := 5 + rng.IntN(40)
	return func(f *simFile, kind string, off, n int64) simFault {
		if rng.IntN(odds) != 0 {
			return simFault{}
		}
		if kind == "sync" && sc.lossy {
			f.loseCache(rng)
			m.lost = nil
			for _, h := range m.history {
				m.lost = append(m.lost, len(h))
			}
		}
		return simFault{err: []error{syscall.EIO, syscall.EBUSY, syscall.ENOTCONN}[rng.IntN(3)], arrives: rng.IntN(2) == 0}
	}
}

func (sc successionScene) work(m *cutModel, s *Stack, cut *cutScene, rng *rand.Rand) error {
	errs := make([]error, cut.workers)
	var wg sync.WaitGroup
	for i := range errs {
		k := &worker{m: m, s: s, r: s.NewReader(), rng: rand.New(rand.NewPCG(rng.Uint64(), 2))}
		wg.Go(func() {
			for range cut.steps {
				var errno syscall.Errno
				if err := k.step(); errors.Is(err, errWrong) || err != nil && !(sc.faults && errors.As(err, &errno)) {
					errs[i] = err
				}
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// succeed makes the next stack. With a copy it says what that may hold; *at is
// where files are opened.
func (sc successionScene) succeed(w *simWorld, at **simWorld, m *cutModel, s *Stack, cut *cutScene, rng *rand.Rand) (*Handover, *Stack, *simWorld, *cutImage, error) {
	c := Succession{Refs: cut.refs, Drained: rng.IntN(3) > 0}
	var image *cutImage
	if rng.IntN(2) == 0 {
		m.w.Lock()
		i := m.cut(rng)
		m.w.Unlock()
		image = &i
		w = newSimWorld()
		for name, b := range i.files {
			w.add(name, b)
		}
	}
	for range cut.refs {
		c.Reopen = append(c.Reopen, image != nil || rng.IntN(2) == 0)
	}
	h, err := s.BeginHandover()
	if err != nil {
		return nil, nil, nil, nil, err
	}
	if stuck := h.Stuck(); stuck != 0 {
		return nil, nil, nil, nil, fmt.Errorf("%d writes are stuck", stuck)
	}
	*at = w
	next, err := h.Prepare(c)
	if err != nil {
		return nil, nil, nil, nil, errors.Join(h.Abort(), fmt.Errorf("succession (%+v): %w", c, err))
	}
	return h, next, w, image, nil
}

// read wants each sector to be a legal version, and says which.
func (c cutImage) read(p []byte) ([]uint64, error) {
	found := make([]uint64, len(c.legal))
	for i, legal := range c.legal {
		v, ok := stamped(p[i*image.SectorSize:], i)
		if !ok {
			return nil, fmt.Errorf("%w: sector %d holds no version", errWrong, i)
		}
		good := false
		for _, l := range legal {
			good = good || l == v
		}
		if !good {
			return nil, fmt.Errorf("%w: sector %d is version %d, legal are %v", errWrong, i, v, legal)
		}
		found[i] = v
	}
	return found, nil
}

func (sc successionScene) seeds(t *testing.T, usual int) {
	t.Parallel()
	for seed := range cutSeeds(10*usual) / 10 {
		if err := sc.play(uint64(seed)); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
	}
}

// TestSuccession: over any number of successions, undone ones among them, each
// sector holds what it may, and a power cut at any moment leaves a sound image.
func TestSuccession(t *testing.T) { successionScene{}.seeds(t, 60) }

// TestSuccessionFaults: as well after storage that failed in every way.
func TestSuccessionFaults(t *testing.T) { successionScene{faults: true}.seeds(t, 60) }

// TestSuccessionLossy: and lost what it was told to make durable.
func TestSuccessionLossy(t *testing.T) { successionScene{faults: true, lossy: true}.seeds(t, 60) }

// TestSuccessionControl has the new stack take for durable what the old one
// didn't know to be.
func TestSuccessionControl(t *testing.T) {
	control(t)
	for seed := range uint64(200) {
		if err := (successionScene{trusting: true}).play(seed); err != nil {
			t.Logf("seed %d: %v", seed, err)
			return
		}
	}
	t.Error("trusting the index, not one of 200 seeds goes wrong")
}
