package stack

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"holdfast/ploop"
	"holdfast/ploop/image"
	"holdfast/ploop/internal/format"
	"holdfast/ploop/internal/storage"
)

// The fault matrix: a mixed workload, of which every operation on a file is
// made to fail once, with every error that sends a device to standby, in every
// way; the caller does what a device does, which is to keep the request and do
// it anew after a resume. In the end everything is there.

// matrixMode is a way to fail.
type matrixMode struct {
	name     string
	persists bool // until the resume; else once
	arrives  bool // it is done nevertheless
	partial  bool // or half of it
}

var matrixModes = []matrixMode{
	{name: "once"},
	{name: "once, done nevertheless", arrives: true},
	{name: "once, half done", partial: true},
	{name: "for good", persists: true},
	{name: "for good, done nevertheless", persists: true, arrives: true},
	{name: "for good, half done", persists: true, partial: true},
}

var matrixErrnos = []syscall.Errno{syscall.EBUSY, syscall.ENOTCONN, syscall.EIO}

// matrixResumes are what a device goes on with.
var matrixResumes = []string{
	"the storage is back",
	"the same files, opened anew",
	"copies of all that the files hold",
	"copies without what failed",
}

// matrixScenes are the stacks.
var matrixScenes = []string{"alone", "over an image", "over a raw base"}

// The disk has two sectors of index, and ends within a cluster.
const (
	matrixClusters = 120
	mc             = 4 // sectors of a cluster
	matrixSectors  = mc*matrixClusters - 1
	matrixRaw      = matrixSectors - 5 // of a raw base
)

type matrix struct {
	scene, resume string
	mode          matrixMode
	errno         syscall.Errno
	k             int // which operation fails; 0: none

	w     *simWorld
	refs  []image.Ref
	s     *Stack
	r     *Reader
	disk  []byte // what was acknowledged
	n     int    // operations so far
	down  bool
	fired bool
	lies  bool   // control: the operation is said to be done
	next  uint64 // version
	sites map[string]bool
	turns int // resumes
}

func (x *matrix) fault(_ *simFile, kind string, off, _ int64) simFault {
	if x.lies && (kind != "write" || off < mc*image.SectorSize) {
		return simFault{}
	}
	x.n++
	if x.sites != nil {
		x.sites[engineSite()] = true
	}
	if x.n == x.k {
		x.fired = true
		x.down = x.mode.persists
	} else if !x.down {
		return simFault{}
	}
	if x.lies {
		return simFault{lost: true}
	}
	return simFault{err: x.errno, arrives: x.mode.arrives, partial: x.mode.partial}
}

// engineSite is the line of the engine that asked the storage for something.
func engineSite() string {
	pc := make([]uintptr, 16)
	frames := runtime.CallersFrames(pc[:runtime.Callers(2, pc)])
	for {
		f, more := frames.Next()
		if !strings.HasSuffix(f.File, "_test.go") && strings.Contains(f.File, "ploop") {
			return fmt.Sprintf("%s:%d", filepath.Base(f.File), f.Line)
		}
		if !more {
			return ""
		}
	}
}

func (x *matrix) prepare() error {
	const sectors = matrixSectors
	x.w = newSimWorld()
	x.w.reserves = x.scene != "over an image"
	x.disk = make([]byte, sectors*image.SectorSize)
	x.next = 1
	switch x.scene {
	case "over an image":
		x.refs = []image.Ref{x.w.addImage("base", 1, mc, sectors)}
		s, err := Open(x.refs, Options{open: x.w.open})
		if err != nil {
			return err
		}
		for i := int64(1); i < matrixClusters-1; i += 2 {
			p := x.stamp(i*mc, mc)
			if _, err := s.WriteAt(p, i*mc*image.SectorSize); err != nil {
				return err
			}
			copy(x.disk[i*mc*image.SectorSize:], p)
		}
		if err := s.Close(); err != nil {
			return err
		}
	case "over a raw base":
		x.disk = x.stamp(0, sectors)
		ref := x.w.add("base", x.disk[:matrixRaw*image.SectorSize])
		ref.Raw = true
		x.refs = []image.Ref{ref}
		clear(x.disk[matrixRaw*image.SectorSize:])
	}
	x.refs = append(x.refs, x.w.addImage("top", 2, mc, sectors))
	x.w.fault = x.fault
	for try := 0; ; try++ {
		// What is left of an attempt is our own.
		var err error
		x.s, err = Open(x.refs, Options{open: x.open, TakeOver: try > 0})
		if err == nil {
			break
		}
		if err := x.failed(err); err != nil {
			return err
		}
		x.down = false
	}
	x.r = x.s.NewReader()
	// Something to append to the file at the end.
	x.s.unknown = []format.Section{{Magic: 2, Flags: format.SectionTransit, Data: []byte("carried along")}}
	return nil
}

func (x *matrix) open(path string, write, direct bool) (storage.File, error) {
	return x.w.open(path, write, direct)
}

func (x *matrix) stamp(first, n int64) []byte {
	p := storage.AlignedBuffer(int(n) * image.SectorSize)
	stamp(p, int(first), x.next)
	x.next++
	return p
}

// failed is nil for an error that a device would go to standby for.
func (x *matrix) failed(err error) error {
	var errno syscall.Errno
	if !errors.As(err, &errno) || errno != x.errno {
		return fmt.Errorf("an error that tells nothing of %v: %w", x.errno, err)
	}
	if !x.fired {
		return fmt.Errorf("an error out of nothing: %w", err)
	}
	return nil
}

// do does a request until it is done.
func (x *matrix) do(request func() error) error {
	for try := 0; ; try++ {
		err := request()
		if err == nil {
			return nil
		}
		if err := x.failed(err); err != nil {
			return err
		}
		if try == 10 {
			return fmt.Errorf("still after ten resumes: %w", err)
		}
		if err := x.restart(); err != nil {
			return err
		}
	}
}

// verify opens what the files hold and looks at all of it.
func (x *matrix) verify(w *simWorld, takeOver bool) error {
	r, err := ploop.CheckOn(x.refs, ploop.CheckOptions{}, w.open)
	if err != nil {
		return err
	}
	for _, im := range r.Images {
		for _, f := range im.Findings {
			if f.Kind != ploop.FindingLeak && !(takeOver && f.Kind == ploop.FindingInUse) {
				return errors.New(f.Message)
			}
		}
	}
	s, err := Open(x.refs, Options{open: w.open, ReadOnly: true})
	if err != nil {
		return err
	}
	defer s.Close()
	p := make([]byte, len(x.disk))
	if _, err := s.ReadAt(p, 0); err != nil {
		return err
	}
	return x.same(p)
}

// run plays one case.
func (x *matrix) run() error {
	if err := x.prepare(); err != nil {
		return fmt.Errorf("open: %w", err)
	}
	if err := x.work(); err != nil {
		return err
	}
	// Everything is flushed, so the power may go.
	for seed := range uint64(2) {
		w := newSimWorld()
		for name, f := range x.w.files {
			w.add(name, f.cut(rand.New(rand.NewPCG(seed, 3))))
		}
		if err := x.verify(w, true); err != nil {
			return fmt.Errorf("after a power cut: %w", err)
		}
	}
	err := x.s.Close()
	for try := 0; err != nil; try++ {
		if err := x.failed(err); err != nil || try == 10 {
			return fmt.Errorf("close: %w", err)
		}
		x.down = false
		// Taken over, as after a crash, and closed again.
		if x.s, err = Open(x.refs, Options{open: x.open, TakeOver: true}); err == nil {
			err = x.s.Close()
		}
	}
	x.w.fault = nil
	if err := x.verify(x.w, false); err != nil {
		return fmt.Errorf("closed: %w", err)
	}
	return nil
}

// matrixStep is how many points apart the cases of one kind are. Their first
// points differ, so that each point has its turn in some way.
func matrixStep() int {
	switch {
	case os.Getenv("HOLDFAST_FAULT_MATRIX") == "full":
		return 1
	case raceEnabled:
		return 197
	case testing.Short():
		return 97
	}
	return 47
}

// TestFaultMatrix: no acknowledged write is lost, and nothing is acknowledged
// that isn't there, whatever operation on the storage fails in whatever way.
// HOLDFAST_FAULT_MATRIX=full plays every case, which takes minutes.
func TestFaultMatrix(t *testing.T) {
	t.Parallel()
	points, cases, turns := 0, 0, 0
	sites := map[string]bool{}
	for _, scene := range matrixScenes {
		x := &matrix{scene: scene, sites: sites}
		if err := x.run(); err != nil {
			t.Fatalf("%s, without a fault: %v", scene, err)
		}
		points += x.n
		step := matrixStep()
		for i, resume := range matrixResumes {
			for m, mode := range matrixModes {
				for e, errno := range matrixErrnos {
					for k := 1 + (i*18+m*3+e)*5%step; ; k += step {
						x := &matrix{scene: scene, resume: resume, mode: mode, errno: errno, k: k, sites: sites}
						if err := x.run(); err != nil {
							t.Errorf("%s; operation %d fails by %v, %s; then %s: %v", scene, k, errno, mode.name, resume, err)
						}
						cases++
						turns += x.turns
						if !x.fired {
							break
						}
					}
				}
			}
		}
	}
	t.Logf("%d points in %d scenes, %d errors, %d ways to fail, %d ways to resume: %d cases, %d times resumed, %d places of the engine",
		points, len(matrixScenes), len(matrixErrnos), len(matrixModes), len(matrixResumes), cases, turns, len(sites))
	want := engineSites(t)
	for _, site := range want {
		if !sites[site] {
			t.Errorf("%s asks the storage, and the workload never comes there", site)
		}
	}
}

// TestFaultMatrixControl has one write of data not be done and say that it was.
// The matrix must see that, unless it was of no consequence.
func TestFaultMatrixControl(t *testing.T) {
	control(t)
	for _, scene := range matrixScenes {
		seen, k := 0, 1
		for ; ; k++ {
			x := &matrix{scene: scene, lies: true, k: k}
			err := x.run()
			if !x.fired {
				break
			}
			if err != nil {
				seen++
			}
		}
		t.Logf("%s: %d of %d lies are seen", scene, seen, k-1)
		if seen < (k-1)*9/10 || k < 20 {
			t.Errorf("%s: only %d of %d lies are seen", scene, seen, k-1)
		}
	}
}

// engineSites are the lines of the engine that ask the storage for something.
func engineSites(t *testing.T) (sites []string) {
	t.Helper()
	names, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	asks := regexp.MustCompile(`\bFile\.(ReadAt|WriteAt|Sync|Truncate|Allocate|Zero|Size)\(`)
	// Those don't work on a live stack, or have tests of their own.
	skip := []string{"elsewhere.go"}
	for _, path := range append(names, "../internal/format/delta.go") {
		name := filepath.Base(path)
		if strings.HasSuffix(name, "_test.go") || slices.Contains(skip, name) {
			continue
		}
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for i, line := range strings.Split(string(b), "\n") {
			if asks.MatchString(line) {
				sites = append(sites, fmt.Sprintf("%s:%d", name, i+1))
			}
		}
	}
	return sites
}
