package stack

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"

	"holdfast/ploop"
	"holdfast/ploop/image"
	"holdfast/ploop/internal/storage"
)

// cutImage is one possible world after a power cut.
type cutImage struct {
	files   map[string][]byte
	legal   [][]uint64
	running bool
}

func (m *cutModel) cut(rng *rand.Rand) cutImage {
	c := cutImage{files: map[string][]byte{}, running: m.running}
	for name, f := range m.w.files {
		c.files[name] = f.cut(rng)
	}
	for i, h := range m.history {
		c.legal = append(c.legal, slices.Clone(h[m.floor[i]:]))
	}
	return c
}

// verify opens what a power cut left and looks at all of it.
func (c cutImage) verify(refs []image.Ref) (*simWorld, []uint64, error) {
	w := newSimWorld()
	for name, b := range c.files {
		w.add(name, b)
	}
	r, err := ploop.CheckOn(refs, ploop.CheckOptions{}, w.open)
	if err != nil {
		return nil, nil, fmt.Errorf("check: %w", err)
	}
	for _, im := range r.Images {
		for _, f := range im.Findings {
			if f.Kind != ploop.FindingLeak && f.Kind != ploop.FindingInUse {
				return nil, nil, errors.New(f.Message)
			}
			if !im.InUse {
				return nil, nil, fmt.Errorf("in_use is clear and yet: %s", f.Message)
			}
		}
	}
	if top := r.Images[len(refs)-1]; c.running && !top.InUse {
		return nil, nil, errors.New("in_use is clear in the middle of it all")
	}
	s, err := Open(refs, Options{TakeOver: true, open: w.open})
	if err != nil {
		return nil, nil, fmt.Errorf("open: %w", err)
	}
	p := make([]byte, s.Size())
	if _, err := s.ReadAt(p, 0); err != nil {
		return nil, nil, err
	}
	found := make([]uint64, len(c.legal))
	for i, legal := range c.legal {
		v, ok := stamped(p[i*image.SectorSize:], i)
		if !ok || !slices.Contains(legal, v) {
			return nil, nil, fmt.Errorf("sector %d (cluster %d) is version %d (%v) %x, legal are %v",
				i, int64(i)*image.SectorSize/s.cluster, v, ok, p[i*image.SectorSize:][:16], legal)
		}
		found[i] = v
	}
	return w, found, nil
}

// cutScene is one seed's stack and workload.
type cutScene struct {
	refs    []image.Ref
	workers int
	steps   int
	noOrder bool
	hasty   bool
	step    uint64
}

// newCutScene builds a stack in w. Its disk is all zeroes, or what a lower
// image has.
func newCutScene(w *simWorld, rng *rand.Rand) (*cutScene, []uint64) {
	w.reserves = rng.IntN(3) > 0
	return newCutSceneOf(w, rng, 8, 24)
}

// newCutSceneOf takes the number of clusters, and how many more there may be.
func newCutSceneOf(w *simWorld, rng *rand.Rand, clusters, more int) (*cutScene, []uint64) {
	c := []uint32{2, 4, 8, 3}[rng.IntN(4)]
	sectors := uint64(c)*uint64(clusters+rng.IntN(more)) + uint64(rng.IntN(int(c)))
	sc := &cutScene{workers: 1, steps: 30 + rng.IntN(60), step: uint64(rng.IntN(3) * 4)}
	if rng.IntN(3) == 0 {
		sc.workers = 2 + rng.IntN(3)
	}
	version := 1 + rng.IntN(2)
	now := make([]uint64, sectors)
	switch rng.IntN(3) {
	case 0: // one image alone
	case 1:
		b := make([]byte, (sectors-uint64(rng.IntN(int(c))))*image.SectorSize)
		for i := range len(b) / image.SectorSize {
			now[i] = uint64(1 + i%7)
			stamp(b[i*image.SectorSize:][:image.SectorSize], i, now[i])
		}
		ref := w.add("raw", b)
		ref.Raw = true
		sc.refs = append(sc.refs, ref)
	case 2:
		ref := w.addImage("base", 3-version, c, sectors)
		sc.refs = append(sc.refs, ref)
		s, err := Open(sc.refs, Options{open: w.open})
		if err != nil {
			panic(err)
		}
		p := storage.AlignedBuffer(image.SectorSize)
		for i := range now {
			if rng.IntN(3) == 0 {
				now[i] = uint64(1 + i%7)
				stamp(p, i, now[i])
				if _, err := s.WriteAt(p, int64(i)*image.SectorSize); err != nil {
					panic(err)
				}
			}
		}
		if err := s.Close(); err != nil {
			panic(err)
		}
	}
	sc.refs = append(sc.refs, w.addImage("top", version, c, sectors))
	return sc, now
}

// run works on the stack and cuts the power at random moments, count times in
// all about. It returns what the cuts left.
func (sc *cutScene) run(w *simWorld, now []uint64, rng *rand.Rand, count int) ([]cutImage, error) {
	m := newCutModel(w, now)
	w.yield = sc.workers > 1
	var cuts []cutImage
	every := max(sc.steps*sc.workers*3/count, 1)
	cutRNG := rand.New(rand.NewPCG(rng.Uint64(), 1))
	w.event = func() {
		if cutRNG.IntN(every) == 0 && len(cuts) < 2*count {
			cuts = append(cuts, m.cut(cutRNG))
		}
	}
	s, err := Open(sc.refs, Options{TakeOver: true, open: w.open, noOrder: sc.noOrder, hasty: sc.hasty, step: sc.step})
	if err != nil {
		return nil, err
	}
	w.Lock()
	m.running = true
	w.Unlock()
	errs := make([]error, sc.workers)
	var wg sync.WaitGroup
	for i := range errs {
		k := &worker{m: m, s: s, r: s.NewReader(), rng: rand.New(rand.NewPCG(rng.Uint64(), 2))}
		wg.Go(func() {
			for n := 0; n < sc.steps && errs[i] == nil; n++ {
				errs[i] = k.step()
			}
		})
	}
	wg.Wait()
	w.Lock()
	m.running = false
	w.Unlock()
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	if err := m.flush(s.Close); err != nil {
		return nil, fmt.Errorf("close: %w", err)
	}
	w.Lock()
	defer w.Unlock()
	cuts = append(cuts, m.cut(cutRNG))
	return cuts, nil
}

// powerCuts plays one seed: a workload, cuts, and workloads on what some of
// them left, cut again.
func powerCuts(seed uint64, change func(*cutScene)) (cuts int, err error) {
	rng := rand.New(rand.NewPCG(seed, 0))
	w := newSimWorld()
	sc, now := newCutScene(w, rng)
	change(sc)
	for range 3 {
		images, err := sc.run(w, now, rng, 10)
		if err != nil {
			return cuts, err
		}
		at := rng.IntN(len(images))
		for i, c := range images {
			cw, found, err := c.verify(sc.refs)
			if err != nil {
				return cuts, fmt.Errorf("cut %d: %w", i, err)
			}
			cuts++
			if i == at {
				// Go on from here: TakeOver has written already, and what
				// it wrote isn't durable yet either.
				w, now = cw, found
			}
		}
	}
	return cuts, nil
}

// cutSeeds is how many seeds to play.
func cutSeeds(usual int) int {
	if n, err := strconv.Atoi(os.Getenv("HOLDFAST_POWERCUT_SEEDS")); err == nil {
		return n
	}
	switch {
	case raceEnabled: // one goroutine each: there is little for the detector to see
		return usual / 20
	case testing.Short():
		return usual / 10
	}
	return usual
}

// control is for tests that show that another one can fail: once will do, in make unit.
func control(t *testing.T) {
	t.Helper()
	if raceEnabled || testing.Short() {
		t.Skip("shows that another test can fail; slow")
	}
	t.Parallel()
}

// TestPowerCut is promise 2 of the engine: a power cut at any point leaves an
// image that checks clean but for leaked clusters, and each sector holds a
// version that was acknowledged or in flight, none older than the last flush.
// HOLDFAST_POWERCUT_SEEDS asks for more than the usual number of seeds.
func TestPowerCut(t *testing.T) {
	t.Parallel()
	seeds := cutSeeds(400)
	total := 0
	for seed := range seeds {
		n, err := powerCuts(uint64(seed), func(*cutScene) {})
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		total += n
	}
	t.Logf("%d cuts of %d seeds", total, seeds)
}

// TestPowerCutControls leave out the syncs that order data and index, or take the room that the
// file was given for durable at once. If the test above can't see that, it sees nothing.
func TestPowerCutControls(t *testing.T) {
	for _, c := range []struct {
		what   string
		change func(*cutScene)
		atMost int // seeds that don't show it
	}{
		{"without order", func(sc *cutScene) { sc.noOrder = true }, 180},
		{"without durable room", func(sc *cutScene) { sc.hasty, sc.step = true, 1 }, 195},
	} {
		t.Run(c.what, func(t *testing.T) {
			control(t)
			found := 0
			for seed := range 200 {
				if _, err := powerCuts(uint64(seed), c.change); err != nil {
					if found == 0 {
						t.Logf("seed %d: %v", seed, err)
					}
					found++
				}
			}
			if found < 200-c.atMost {
				t.Errorf("only %d of 200 seeds go wrong", found)
			}
		})
	}
}
