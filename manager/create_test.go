package manager

import (
	"testing"

	"holdfast/api"
)

// creation is the end of one.
type creation struct {
	dev *api.Device
	err error
}

// creating begins to create a device.
func (f *fixture) creating(name, image string) <-chan creation {
	ended := make(chan creation, 1)
	spec := f.spec(name, image)
	go func() {
		dev, err := f.c.Create(ctx, spec)
		ended <- creation{dev, err}
	}()
	return ended
}

// TestCreateWaitsForServer: a server that needs longer for its start than for an answer is waited
// for.
func TestCreateWaitsForServer(t *testing.T) {
	f := newFixture(t)
	f.h.set(func() { f.h.mute = true })
	ended := f.creating("v", "i")
	v := f.h.server("v")
	waitFor(t, "the silence", func() bool { p := f.m.peers.get("v"); return p != nil && p.state() == api.ServerSilent })
	f.h.set(func() { f.h.mute = false })
	v.answer()
	if c := <-ended; c.err != nil || c.dev.State != api.StateLive {
		t.Fatalf("%+v, %v", c.dev, c.err)
	}
}

// TestCommandOutwaitsSilence: a command waits for a server that has just begun to be silent, and is
// carried out when it answers.
func TestCommandOutwaitsSilence(t *testing.T) {
	f := newFixture(t)
	f.create("v", "i")
	v := f.h.server("v")
	f.m.peers.get("v").set(func(o *observation) { o.state = api.ServerSilent })
	v.silence()
	ended := make(chan error, 1)
	came := v.requests()
	go func() {
		_, err := f.c.Attach(ctx, "v", "me")
		ended <- err
	}()
	waitFor(t, "a question to the silent server", func() bool { return v.requests() > came })
	v.answer()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// TestCreateAnswersWithPath: what others are told while a device is being created is not the answer
// to who creates it.
func TestCreateAnswersWithPath(t *testing.T) {
	f := newFixture(t)
	making := make(chan struct{})
	f.h.set(func() { f.h.making = making })
	ended := f.creating("v", "i")
	f.eventually("v", api.StateCreating)
	if dev, err := f.c.Device(ctx, "v"); err != nil || dev.Path != "" {
		t.Fatalf("%+v, %v", dev, err)
	}
	close(making)
	if c := <-ended; c.err != nil || c.dev.State != api.StateLive || c.dev.Path == "" {
		t.Fatalf("%+v, %v", c.dev, c.err)
	}
}
