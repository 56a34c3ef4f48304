package control

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"holdfast/api"
)

// TestManyDevices: a list of a hundred devices is one search for their users, and one question
// to each, all at once: one that hangs may let who asks wait. A hundred removals at once are
// two searches, not a hundred.
func TestManyDevices(t *testing.T) {
	f := newFixture(t)
	const n = 100
	for i := range n {
		f.create(fmt.Sprintf("v%d", i), fmt.Sprintf("i%d", i))
	}
	counts := func(what string, scans, asked int) {
		t.Helper()
		f.k.mu.Lock()
		defer f.k.mu.Unlock()
		if f.k.scans != scans || f.k.asked != asked {
			t.Errorf("%s: %d searches for users, want %d; %d questions to devices, want %d", what, f.k.scans, scans, f.k.asked, asked)
		}
		f.k.scans, f.k.asked = 0, 0
	}
	f.k.set(func() { f.k.scans, f.k.asked = 0, 0 })
	var gather sync.WaitGroup
	gather.Add(n)
	f.k.set(func() { f.k.gather = &gather })
	short, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if snap, err := f.c.Snapshot(short); err != nil || len(snap.Devices) != n {
		t.Fatalf("%v", err)
	}
	f.k.set(func() { f.k.gather = nil })
	counts("list", 1, n)
	gather.Add(n)
	f.k.set(func() { f.k.gather = &gather })
	if got := len(f.d.statuses()); got != n { // for metrics
		t.Errorf("%d statuses", got)
	}
	f.k.set(func() { f.k.gather = nil })
	counts("metrics", 0, n)
	if snap, err := f.c.Brief(ctx); err != nil || len(snap.Devices) != n || snap.Devices[0].Users == nil {
		t.Fatalf("%v", err)
	}
	counts("list without users", 0, n)

	// All at once, while a search is under way.
	hold := make(chan struct{})
	f.k.set(func() { f.k.scanHold = hold })
	for i := range n {
		f.k.setUsers(fmt.Sprintf("v%d", i), api.User{Kind: "mount", Name: "/mnt"})
	}
	done := make(chan error, n)
	remove := func(i int) { done <- f.c.Remove(ctx, fmt.Sprintf("v%d", i), false) }
	go remove(0)
	waitFor(t, "the first search", func() bool { f.k.mu.Lock(); defer f.k.mu.Unlock(); return f.k.scans == 1 })
	for i := 1; i < n; i++ {
		go remove(i)
	}
	waitFor(t, "those who wait for the second", func() bool {
		return f.d.scans.Waiting() == n-1
	})
	close(hold)
	for range n {
		wantCode(t, <-done, api.CodeBusy)
	}
	counts("removals", 2, 0)
}

// TestUsersHang: a search for users that hangs leaves a list without them, and a removal to the
// kernel's own judgement.
func TestUsersHang(t *testing.T) {
	f := newFixture(t)
	f.d.scans.Limit = 10 * time.Millisecond
	f.create("v", "i")
	f.create("w", "j")
	hold := make(chan struct{})
	defer close(hold)
	f.k.set(func() { f.k.scanHold, f.k.scans = hold, 0 })
	for range 3 {
		if snap, err := f.c.Snapshot(ctx); err != nil || len(snap.Devices) != 2 || snap.Devices[0].Users == nil {
			t.Errorf("%+v, %v", snap, err)
		}
	}
	f.k.setUsers("v", mounted)
	wantCode(t, f.c.Remove(ctx, "v", false), api.CodeBusy)
	if err := f.c.Remove(ctx, "w", false); err != nil {
		t.Error(err)
	}
	f.k.mu.Lock()
	defer f.k.mu.Unlock()
	if f.k.scans != 1 {
		t.Errorf("%d searches hang", f.k.scans)
	}
}
