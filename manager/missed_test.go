package manager

import (
	"errors"
	"slices"
	"testing"

	"holdfast/api"
)

// TestMissed: a server that the launcher could not start at boot is started once it can be, and one
// that was stopped is not.
func TestMissed(t *testing.T) {
	f := newFixture(t)
	f.h.set(func() { f.h.forks = false })
	f.restart()
	for _, name := range []string{"v", "stopped"} {
		spec := f.spec(name, name)
		spec.Persist = true
		if _, err := f.c.Create(ctx, spec); err != nil {
			t.Fatal(err)
		}
	}
	f.create("once", "once")
	if err := f.h.Stop(ctx, "stopped"); err != nil {
		t.Fatal(err)
	}
	f.eventually("stopped", api.StateEnded)
	f.h.server("v").terminate()
	f.eventually("v", api.StateEnded)
	f.stop()
	// The next boot. What runs is of this one, as far as its record tells.
	rec, _, err := f.h.records().ReadOne("v")
	if err != nil || rec == nil {
		t.Fatal(rec, err)
	}
	rec.BootID = "before"
	if err := f.h.records().Save(rec); err != nil {
		t.Fatal(err)
	}
	f.h.set(func() { f.h.calls = map[string]int{}; f.h.startErr = errors.New("no file system") })
	f.start()
	waitFor(t, "questions", func() bool { return f.h.called("missed v") > 2 })
	if n := f.h.called("start v"); n != 0 {
		t.Errorf("%d starts of what is about to be started anyway", n)
	}
	f.h.set(func() { f.h.missed = true })
	waitFor(t, "tries", func() bool { return f.h.called("start v") > 2 })
	f.h.set(func() { f.h.startErr = nil })
	f.eventually("v", api.StateLive)
	for _, name := range []string{"stopped", "once"} {
		if a, b := f.h.called("missed "+name), f.h.called("start "+name); a+b != 0 {
			t.Errorf("%s: %d questions, %d starts", name, a, b)
		}
	}
}

// TestMounts: the launcher knows where the images are, however they came there.
func TestMounts(t *testing.T) {
	f := newFixture(t)
	f.create("v", "i")
	known := func(image string) func() bool {
		want := []string{f.image(image).Path}
		return func() bool { f.h.mu.Lock(); defer f.h.mu.Unlock(); return slices.Equal(f.h.mounts["v"], want) }
	}
	waitFor(t, "the first", known("i"))
	if _, err := f.c.Replace(ctx, "v", api.ReplaceRequest{Image: f.image("j")}); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the second", known("j"))
	// Without a manager, and told to the next one.
	f.stop()
	if _, err := api.NewServerClient(f.run(), "v").Replace(ctx, "v", api.ReplaceRequest{Image: f.image("k")}); err != nil {
		t.Fatal(err)
	}
	f.start()
	waitFor(t, "the third", known("k"))
}
