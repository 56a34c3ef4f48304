package kill

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"holdfast/api"
	"holdfast/hack/tool"
	"holdfast/ploop"
)

// The steps of the loop, each a death of the serving process: at a random time, or
// at a place of internal/failpoint. Those that belong to a replacement, an upgrade or a
// recovery are given one. The order puts first what needs unallocated clusters.
var (
	stepsOfThree = []string{
		"cow", "index-half", "index-written", "data-index", "random", "fetch", "commit",
		"replace-prepared", "replace-committed", "replace-swapped", "random",
		"twice", "recover-started", "recover-locked", "recover-fetched", "recover-ended", "recover-recorded",
		"upgrade-left", "upgrade-released",
	}
	// What an upgrade passes in a server that has its device for itself.
	upgradeOfOne = []string{"leave-left"}
	stepsOfOne   = []string{"discard-index", "discard-punch", "index-half", "random", "fetch", "data-index", "commit", "twice"}
)

const loopSize = 64 << 20

// TestKillLoop kills the server HOLDFAST_KILLS times, under a load that checks what
// it reads.
func TestKillLoop(t *testing.T) {
	kills := count(t, "HOLDFAST_KILLS", 6)
	s := newServer(t, "--targets", "none")
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	l := &loop{server: s, rng: rand.New(rand.NewPCG(seed, 0)), missed: map[string]int{}}
	for round := 0; l.kills < kills; round++ {
		make, steps, name := threeDeltas, stepsOfThree, "three"
		if s.managed() {
			steps = slices.DeleteFunc(slices.Clone(steps), func(step string) bool { return strings.HasPrefix(step, "upgrade-") })
			steps = append(steps, upgradeOfOne...)
		}
		if round%2 == 1 {
			make, steps, name = oneDelta, stepsOfOne, "one"
		}
		dir := t.TempDir()
		var options []string
		if round%4 >= 2 {
			mountLoop(t, dir, 1<<30)
			options = []string{"--data-path", "copy"}
		}
		if left := kills - l.kills; kills < len(steps) {
			steps = l.some(steps, min((kills+1)/2, left))
		} else if left < len(steps) {
			steps = steps[:left]
		}
		l.round(fmt.Sprintf("%s-%d", name, round), make(t, dir, loopSize, seed+uint64(round)), steps, options)
	}
	t.Logf("%d kills of a serving process, %d recoveries; %d more kills in recovery; %d requests reissued by the driver, %d failed",
		l.kills, l.recovered, l.early, l.reissued, l.errors)
	slices.Sort(l.times)
	t.Logf("serving again after its start: median %v, longest %v", round(l.times[len(l.times)/2]), round(l.times[len(l.times)-1]))
	if l.kills != l.recovered || l.recovered == 0 {
		t.Errorf("%d kills, %d recoveries", l.kills, l.recovered)
	}
	if l.reissued == 0 {
		t.Error("no request was reissued: nothing was in flight when the server was killed")
	}
	if l.errors != 0 {
		t.Errorf("%d requests failed", l.errors)
	}
	for place, n := range l.missed {
		t.Errorf("%s was not reached %d times", place, n)
	}
}

// loop is the state of a kill loop.
type loop struct {
	*server
	rng *rand.Rand

	kills     int // of a process that serves
	early     int // of one that recovers, or has just done so
	recovered int
	reissued  int
	errors    int
	times     []time.Duration
	missed    map[string]int
}

// some chooses n steps of many, in their order.
func (l *loop) some(steps []string, n int) []string {
	chosen := l.rng.Perm(len(steps))[:min(n, len(steps))]
	slices.Sort(chosen)
	some := make([]string, 0, n)
	for _, k := range chosen {
		some = append(some, steps[k])
	}
	return some
}

// round kills the server once for each step, over fresh images.
func (l *loop) round(name string, g *images, steps, options []string) {
	l.t.Helper()
	began := time.Now()
	w := l.serve(name, g, 12, options...)
	requeued, failed := countRequests(l.t, "block_rq_requeue", w.disk), countRequests(l.t, "block_rq_error", w.disk)
	kills, early := l.kills, l.early
	for _, step := range steps {
		w.advances(uint64(1 + l.rng.IntN(150)))
		deaths := l.step(name, g, w, step)
		n := l.recoveries(name)
		// A journal outlives its server, and may have more than the last one's.
		if n < 1 || n > 1 && (!l.managed() || n > deaths) {
			l.t.Errorf("%s: the device is said to have been recovered %d times", step, n)
		}
		l.recovered += min(n, 1)
		if n, words := g.model.Wrong(); n != 0 {
			l.t.Fatalf("%s: %d sectors read wrong: %v", step, n, words)
		}
		if n, words := g.model.Errors(); n != 0 {
			l.t.Fatalf("%s: %d operations failed: %v", step, n, words)
		}
	}
	w.advances(50)
	l.reissued += requeued.hits()
	l.errors += failed.hits()
	l.t.Logf("%s: %d kills and %d in recovery in %v, %d requests reissued, %v", name, l.kills-kills, l.early-early, round(time.Since(began)), requeued.hits(), w)
	l.remove(name, w)
}

// strike kills the device's server, or all that there is.
func (l *loop) strike(name string) {
	l.t.Helper()
	if l.rng.IntN(3) == 0 {
		l.kill()
	} else {
		l.killServer(name)
	}
}

// step kills the server and has another one serve. It tells how many servers died.
func (l *loop) step(name string, g *images, w *load, step string) (deaths int) {
	l.t.Helper()
	l.kills++
	deaths = 1
	switch kind, _, _ := strings.Cut(step, "-"); {
	case step == "random":
		time.Sleep(time.Duration(l.rng.IntN(200)) * time.Millisecond)
		l.strike(name)
	case step == "twice":
		l.strike(name)
		l.begin()
		l.early++
		deaths++
		time.Sleep(time.Duration(l.rng.IntN(300)) * time.Millisecond)
		l.strike(name)
	case kind == "recover":
		was := l.arm(step)
		l.strike(name)
		l.begin()
		l.early++
		deaths++
		l.reached(name, step, was)
	case kind == "replace":
		was := l.arm(step)
		undo := l.replacement(name, g)
		l.reached(name, step, was)
		undo()
	case kind == "upgrade":
		was := l.arm(step)
		ended := make(chan struct{})
		go func() { l.run("upgrade"); close(ended) }()
		l.reached(name, step, was)
		<-ended
		l.times = append(l.times, l.heir(name))
		return deaths
	case kind == "leave":
		was := l.arm(step)
		ended := make(chan struct{})
		go func() { l.run("upgrade", name); close(ended) }()
		l.reached(name, step, was)
		<-ended
	default:
		passes := 3
		if step == "fetch" || step == "commit" {
			passes = 300
		}
		place := fmt.Sprintf("%s:%d", step, 1+l.rng.IntN(passes))
		l.reached(name, step, l.arm(place))
	}
	l.times = append(l.times, l.back(name))
	return deaths
}

// reached waits for the device's server to die at the place that was armed, where so many had
// died before.
func (l *loop) reached(name, place string, before int) {
	l.t.Helper()
	if err := wait(time.Minute, func() error {
		if l.died(place) == before {
			if !l.managed() && l.dead() {
				l.t.Fatalf("the server died of something else than %s:\n%s", place, l.logTail())
			}
			return fmt.Errorf("nobody has died at %s", place)
		}
		return nil
	}); err != nil {
		l.missed[place]++
		l.strike(name)
	}
	if !l.managed() {
		l.dies(time.Minute)
	}
	l.started = time.Now()
	l.disarm()
}

// heir is restart after a death in the midst of an upgrade: the new process may have
// taken over, or not.
func (l *loop) heir(name string) time.Duration {
	l.t.Helper()
	l.start()
	began := l.started
	if err := wait(time.Minute, func() error {
		if info, err := l.client.Daemon(l.t.Context()); err != nil {
			if l.dead() { // it found the other one, who is gone since
				l.start()
			}
			return err
		} else if info.PID != l.process.Pid {
			l.dies(time.Minute)
			p, err := os.FindProcess(info.PID)
			if err != nil {
				return err
			}
			l.adopt(p)
		}
		return nil
	}); err != nil {
		l.t.Fatalf("%v\n%s", err, l.logTail())
	}
	l.serves(name)
	return time.Since(began)
}

// replacement begins to replace the top by the same file under another name, or the
// middle by a copy, in turn.
func (l *loop) replacement(name string, g *images) (done func()) {
	l.t.Helper()
	level := 1 + l.rng.IntN(2)
	d, err := l.client.Device(l.t.Context(), name)
	must(l.t, err)
	now := d.Images[level].Path
	next := strings.TrimSuffix(now, ".other")
	if next == now {
		next += ".other"
	}
	if _, err := os.Stat(next); err != nil {
		if level == len(g.refs)-1 {
			must(l.t, os.Link(now, next))
		} else {
			copyFile(l.t, now, next)
		}
	}
	ended := make(chan error, 1)
	go func() {
		_, err := l.client.Replace(context.Background(), name, api.ReplaceRequest{Level: &level, Image: ploop.ImageRef{Path: next}, Drain: api.Duration(time.Minute)})
		ended <- err
	}()
	return func() {
		if err := <-ended; err == nil {
			l.t.Errorf("a replacement of %s ended well though its server died", filepath.Base(now))
		}
	}
}

// mountLoop mounts a fresh ext4 on a loop device at dir. Its direct I/O is really under
// way, other than tmpfs's, which is done when it was begun.
func mountLoop(t *testing.T, dir string, size int64) {
	t.Helper()
	must(t, tool.Run("modprobe", "-a", "loop", "ext4"))
	file := filepath.Join(t.TempDir(), "disk")
	must(t, os.WriteFile(file, nil, 0o600))
	must(t, os.Truncate(file, size))
	must(t, tool.Run("mkfs.ext4", "-q", "-O", "^has_journal", "-E", "lazy_itable_init=1,nodiscard", file))
	must(t, tool.Run("mount", "-o", "loop", file, dir))
	t.Cleanup(func() {
		if t.Failed() { // the server may have it still
			tool.Run("umount", "--lazy", dir)
		} else if err := wait(time.Minute, func() error { return tool.Run("umount", dir) }); err != nil {
			t.Error(err)
		}
	})
}
