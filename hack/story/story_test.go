package story

import (
	"os"
	"strconv"
	"testing"
	"time"

	"holdfast/api"
	"holdfast/hack/tool"
)

const (
	roundSize = 16 << 20
	diskSize  = 512 << 20 // what daemon.create makes
)

// rounds is how often the storage is taken away: once where people wait for the
// tests, HOLDFAST_ROUNDS times in a soak.
func rounds(t *testing.T) int {
	t.Helper()
	s := os.Getenv("HOLDFAST_ROUNDS")
	if s == "" {
		return 1
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 {
		t.Fatalf("HOLDFAST_ROUNDS=%q: want a number from 1", s)
	}
	return n
}

// needSoak skips what make vm has no time for.
func needSoak(t *testing.T) {
	t.Helper()
	needVM(t)
	if os.Getenv("HOLDFAST_ROUNDS") == "" {
		t.Skip("takes long: make soak")
	}
}

// TestReplace: the bricks die under a device that an initiator writes to, the
// image is replaced by the same file through the other mount, and the initiator
// sees nothing but a wait. The rounds go from mount to mount and back.
func TestReplace(t *testing.T) {
	needVM(t)
	g := needGluster(t)
	d := startDaemon(t)
	image := "/replace.hds"
	d.checkAfter(g.mounts[0] + image)
	disk := d.create("replace", g.mounts[0]+image)
	sd := login(t, exportLIO(t, "replace", disk))
	d.waitStandby("replace", "off") // the target was seen
	for i := range rounds(t) {
		to := g.mounts[(i+1)%2]
		outage(t, d, g, sd, "replace", i, g.mounts[i%2], func() {
			g.revive(t, to)
			start := time.Now()
			d.ok("replace", "replace", "--top", to+image)
			t.Logf("replaced in %v", since(start))
		})
	}
	s := d.status("replace")
	if s.Counters.Errors != 0 || s.Standby.HeldFailed != 0 || s.Standby.Held != 0 || s.Standby.Resumed != uint64(rounds(t)) {
		t.Errorf("afterwards: %+v, %+v", s.Counters, s.Standby)
	}
}

// TestReplaceWithoutManager: the manager is dead from before the outage until after it. The device holds, is
// asked and replaced through its server, and the next manager finds it as it is.
func TestReplaceWithoutManager(t *testing.T) {
	needVM(t)
	if testing.Short() {
		t.Skip("takes long: make soak")
	}
	g := needGluster(t)
	d := startDaemon(t)
	d.needServers()
	image := "/orphan.hds"
	d.checkAfter(g.mounts[0] + image)
	disk := d.create("orphan", g.mounts[0]+image)
	sd := login(t, exportLIO(t, "orphan", disk))
	d.waitStandby("orphan", "off") // the target was seen
	d.kill()
	outage(t, d, g, sd, "orphan", 0, g.mounts[0], func() {
		g.revive(t, g.mounts[1])
		d.ok("replace", "orphan", "--top", g.mounts[1]+image)
	})
	d.start()
	d.waitStandby("orphan", "off")
	s := d.status("orphan")
	if s.Counters.Errors != 0 || s.Standby.HeldFailed != 0 || s.Standby.Held != 0 || s.Standby.Resumed != 1 || !s.Standby.Enabled {
		t.Errorf("afterwards: %+v, %+v", s.Counters, s.Standby)
	}
	if got, err := d.attribute("orphan", "state"); err != nil || got != api.StateLive {
		t.Errorf("state of the next manager's tree: %q, %v", got, err)
	}
}

// TestReopen: the same with nobody there to replace anything. The device finds
// its file again by itself.
func TestReopen(t *testing.T) {
	needSoak(t)
	g := needGluster(t)
	d := startDaemon(t)
	image := g.mounts[0] + "/reopen.hds"
	d.checkAfter(image)
	disk := d.create("reopen", image, "--recovery", "reopen")
	sd := login(t, exportLIO(t, "reopen", disk))
	d.waitStandby("reopen", "off")
	outage(t, d, g, sd, "reopen", 0, g.mounts[0], func() { g.revive(t, g.mounts[0]) })
	if s := d.status("reopen"); s.Counters.Errors != 0 || s.Standby.HeldFailed != 0 || s.Standby.Resumed != 1 {
		t.Errorf("afterwards: %+v, %+v", s.Counters, s.Standby)
	}
}

// TestReplaceTopOfTwo: only the delta is in the storage that dies, its base is a
// local file. The requests held include those that copy up from the base.
func TestReplaceTopOfTwo(t *testing.T) {
	needSoak(t)
	g := needGluster(t)
	d := startDaemon(t)
	base, top := d.dir+"/base.hds", "/top.hds"
	d.checkAfter(base, g.mounts[0]+top)
	d.ok("image", "create", "--size", strconv.Itoa(diskSize), "--cluster-size", "64K", base)
	fillImage(t, d, base)
	d.ok("image", "create", "--backing", base, g.mounts[0]+top)
	disk := d.serve("top", "--image", base, "--image", g.mounts[0]+top)
	sd := login(t, exportLIO(t, "top", disk))
	d.waitStandby("top", "off")
	outage(t, d, g, sd, "top", 0, g.mounts[0], func() {
		g.revive(t, g.mounts[1])
		d.ok("replace", "top", "--top", g.mounts[1]+top)
	})
}

// fillImage gives the base something to be copied up, where round 0 writes.
func fillImage(t *testing.T, d *daemon, image string) {
	t.Helper()
	disk := d.ok("create", "fill", "--image", image)
	must(t, tool.Run("dd", "if=/dev/urandom", "of="+disk, "bs=1M", "count="+strconv.Itoa(roundSize>>20), "oflag=direct"))
	d.ok("remove", "fill")
}

// outage lets fio write to the initiator's disk, takes the bricks away in the
// midst of it, looks at the hold, and has recover end it. Then fio must end as
// if nothing had been.
func outage(t *testing.T, d *daemon, g *gluster, sd *initiatorDisk, name string, round int, mount string, recover func()) {
	t.Helper()
	size, before := roundSize, 100+150*(round%5)
	if testing.Short() {
		size, before = roundSize/4, 50
	}
	j := startFio(t, sd.Path, work{Offset: int64(round) * roundSize % diskSize, Size: int64(size), Rate: 400, Depth: 16})
	d.waitWrites(name, before, j)
	failed := firstError(t, mount)
	g.kill(t)
	d.waitStandby(name, "on")
	on := time.Now()
	s := d.waitHeld(name, 1)
	probe, first := failed(), *s.Since
	if probe.Before(first) {
		first = probe
	}
	if s.Errno == "" || s.Triggers[s.Errno] == 0 {
		t.Errorf("in standby for no error: %+v", s)
	}
	// Long enough for all that the initiator sends to arrive.
	time.Sleep(2 * time.Second)
	s = d.waitHeld(name, 1)
	if j.ended.Load() {
		t.Fatalf("fio ended without its storage: %+v", j.wait(0))
	}
	noErrors(t, sd)

	recover()
	d.waitStandby(name, "off")
	held := since(first)
	r := j.wait(10 * time.Minute)
	noErrors(t, sd)
	if want := int64(size / workBlock); r.Error != 0 || r.Writes < want || r.Verified < want {
		t.Errorf("fio: %+v, want %d writes and as many verified, and no error", r, want)
	}
	t.Logf("round %d: %s; standby %v after the first error in the storage, read as on %v after; %d of %d tags held; recovered after %v; %d writes, %d verified, 0 errors in %v, the slowest took %v",
		round+1, s.Errno, s.Since.Sub(first).Round(time.Millisecond), on.Sub(first).Round(time.Millisecond), s.Held, s.Tags, held,
		r.Writes, r.Verified, r.Duration.Round(10*time.Millisecond), r.Slowest.Round(10*time.Millisecond))
}
